"""Distillation of denoisers: a pruned student towards its teacher (ICMD), or a teacher to few steps (SF-V, T2V-Turbo).

The scripts in `training/` parse their arguments and call `train_denoiser`; `distill` is the same as a function.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from diffusers.loaders import PeftAdapterMixin
from torch import nn
from torch.utils.data import DataLoader, Dataset

from vdmini_diffusers.data.arguments import TextToVideoDataArguments, VideoDataArguments
from vdmini_diffusers.data.skipped_videos import SkipLog
from vdmini_diffusers.data.video_dataset import load_video_dataset
from vdmini_diffusers.distillation.arguments import (
    CriticArguments,
    ICMDArguments,
    TrainingArguments,
    UNetTrainingArguments,
)
from vdmini_diffusers.distillation.averaging import ShardedEMA, averaged
from vdmini_diffusers.distillation.checkpoints import Checkpoints
from vdmini_diffusers.distillation.consistency_arguments import (
    ConsistencyArguments,
    RewardArguments,
    TextToVideoICMDArguments,
    TextToVideoTrainingArguments,
)
from vdmini_diffusers.distillation.critics import Critic, CriticFeatures
from vdmini_diffusers.distillation.discriminator import DiscriminatorHeads, LatentDiscriminator
from vdmini_diffusers.distillation.engine import (
    DTYPES,
    check_optimizer,
    make_accelerator,
    make_checkpoints,
    make_critic,
    make_dataloader,
    make_lr_scheduler,
    make_optimizer,
    report_settings,
    shard_frozen,
    whole_state_dict,
)
from vdmini_diffusers.distillation.loop import LoopSettings, icmd_training_loop
from vdmini_diffusers.distillation.tasks.base import Encode, Generators, Task
from vdmini_diffusers.families import TrainableFamily, find_trainable_family
from vdmini_diffusers.pruning import PruningPlan
from vdmini_diffusers.serialization.atomic import check_apart
from vdmini_diffusers.trainers.before_training import (
    check_images,
    check_push,
    data_sources,
    only_run_in,
    warn_of_late_start,
)
from vdmini_diffusers.trainers.consistency import ConsistencyPair
from vdmini_diffusers.trainers.single_step import SingleStepPair
from vdmini_diffusers.trainers.teacher_and_student import TeacherAndStudent
from vdmini_diffusers.trainers.trained_pipeline import push, show_on_trackers


logger = logging.getLogger(__name__)


class Objective(NamedTuple):
    """A training objective: the pairs of models that it trains, and the groups of its settings.

    Args:
        arguments: the groups for the run, the critics, ICMD and the data, in this order.
        own: further groups, which `pair` takes.
    """

    pair: type[TeacherAndStudent]
    arguments: tuple[type[Any], type[Any], type[Any], type[Any]]
    own: tuple[type[Any], ...] = ()


OBJECTIVES = {
    "single_step": Objective(SingleStepPair, (TrainingArguments, CriticArguments, ICMDArguments, VideoDataArguments)),
    "consistency": Objective(
        ConsistencyPair,
        (TextToVideoTrainingArguments, CriticArguments, TextToVideoICMDArguments, TextToVideoDataArguments),
        own=(ConsistencyArguments, RewardArguments),
    ),
}


def distill(
    pretrained_teacher_model_name_or_path: str | os.PathLike,
    pretrained_student_model_name_or_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    variant: str | None = None,
    revision: str | None = None,
    student_variant: str | None = None,
    **settings: Any,
) -> Path:
    """Train a pruned student towards its teacher by ICMD (section 3.3), and write the whole pipeline.

        distill("path/to/sf-v", "vdmini-i2v-pruned", "vdmini-i2v", train_data_dir="path/to/videos")

    Args:
        pretrained_teacher_model_name_or_path: folder or Hub id of the unpruned pipeline.
        pretrained_student_model_name_or_path: folder or Hub id of a pipeline that `prune_pipeline` wrote. Its family
            decides on the objective.
        output_dir: folder for checkpoints and the finished pipeline. Called again, an interrupted run goes on from
            there.
        variant: variant of the teacher's weight files, e.g. `"fp16"`.
        revision: revision of the teacher on the Hub.
        student_variant: variant of the student's weight files.
        settings: the flags of `training/train_icmd.py` under their names, e.g. `max_train_steps=1000`.

    Returns:
        `output_dir`.

    Raises:
        TypeError: for a setting that does not exist.
        Exception: as `train_denoiser`.
    """
    teacher, student = str(pretrained_teacher_model_name_or_path), str(pretrained_student_model_name_or_path)
    objective = OBJECTIVES[find_trainable_family(student).task]
    settings = {**settings, "output_dir": Path(output_dir)}
    groups = (*objective.arguments, *objective.own)
    known = {kind: {field.name for field in fields(kind)} for kind in groups}
    if unknown := sorted(settings.keys() - set().union(*known.values())):
        raise TypeError(f"`distill` has no setting {unknown[0]!r}; see `training/train_icmd.py --help`.")
    run, critic, icmd, data, *own = (
        kind(**{name: settings[name] for name in names & settings.keys()}) for kind, names in known.items()
    )
    pair = objective.pair(teacher, student, *own, variant=variant, revision=revision, student_variant=student_variant)
    return train_denoiser(pair, run, critic, icmd, data)


def train_denoiser(
    pair: TeacherAndStudent,
    args: UNetTrainingArguments,
    critic_args: CriticArguments,
    icmd_args: ICMDArguments,
    data_args: VideoDataArguments,
) -> Path:
    """Train, and write a whole pipeline to `args.output_dir`, which is returned.

    Raises:
        FloatingPointError: if a loss, or a weight that is about to be saved, is not finite.
        ImportError: if a package that the settings need is not installed.
        OSError: if a file cannot be read or written, the Hub does not let the user in, or another training writes to
            the same folder.
        PruningPlanError: a `ValueError`; if the student's plan does not lead from this teacher to this student.
        ValueError: for models, data or settings that do not work.
    """
    accelerator = make_accelerator(args)
    checkpoints = make_checkpoints(args)
    check_run(pair, args, icmd_args, data_args, checkpoints)
    writes = accelerator.is_main_process and not args.dry_run
    with only_run_in(args.output_dir) if writes else nullcontext():
        if writes and args.push_to_hub:
            check_push(args)
        torch.manual_seed(args.seed)
        denoiser, plan = load_models(pair, args, accelerator)
        teacher = pair.teacher_denoiser
        pairs = plan.feature_pairs(teacher.config) if plan is not None and icmd_args.lambda_icd > 0 else ()

        dataset, encode = open_data(pair, args, data_args, accelerator)
        dataloader = make_dataloader(accelerator, dataset, args, data_args.dataloader_num_workers)
        task = pair.make_task(denoiser, critic_args, encode)
        condition_dim = pair.family.critic_condition_dim(pair.teacher)
        critics = make_critics(pair.family, teacher.config, condition_dim, critic_args, icmd_args, accelerator.device)
        if accelerator.is_main_process:
            record = {"teacher": pair.teacher_name, "student": pair.student_name}
            record |= {"plan": plan.name if plan is not None else None} | pair.settings()
            for group in (args, critic_args, icmd_args, data_args):
                record |= asdict(group)
            report_run(record, denoiser, critics, pairs, None if args.dry_run else args.output_dir)
        if not args.dry_run:
            backbone = teacher if critic_args.discriminator_backbone == "teacher" else None
            features = CriticFeatures(task, backbone)
            run_training(
                pair, args, icmd_args, accelerator, checkpoints, denoiser, task, dataloader, pairs, critics, features
            )
    return args.output_dir


def check_run(
    pair: TeacherAndStudent,
    args: UNetTrainingArguments,
    icmd_args: ICMDArguments,
    data_args: VideoDataArguments,
    checkpoints: Checkpoints,
) -> None:
    """Check all that is known without loading a model. Raises as `train_denoiser`."""
    check_apart(args.output_dir, pair.sources() | data_sources(data_args))
    check_images(getattr(args, "validation_images", ()))
    check_optimizer(args)
    if args.rank is not None:
        lora_config(args.rank)
    checkpoints.choose()
    pair.check(args)
    if icmd_args.lambda_mca > 0:
        warn_of_late_start("MCA", "mca_start_step", icmd_args.mca_start_step, args.max_train_steps)


def load_models(
    pair: TeacherAndStudent, args: UNetTrainingArguments, accelerator: Accelerator
) -> tuple[Any, PruningPlan | None]:
    """Load the teacher to the device, and return the denoiser to train with its plan."""
    frozen = pair.load_teacher(args, DTYPES[accelerator.mixed_precision])
    denoiser, plan = pair.load_student(args)
    for model in frozen:
        model.to(accelerator.device).eval().requires_grad_(False)
    if args.shard_teacher:
        shard_frozen(pair.teacher_denoiser)
    if args.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    if args.rank is not None:
        add_lora(denoiser, args.rank)
    return denoiser, plan


def run_training(
    pair: TeacherAndStudent,
    args: UNetTrainingArguments,
    icmd_args: ICMDArguments,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    denoiser: Any,
    task: Task,
    dataloader: DataLoader,
    pairs: Sequence[tuple[str, str]],
    critics: Sequence[Critic],
    critic_features: CriticFeatures,
) -> None:
    """Make optimiser and average, run the loop, and save the result."""
    optimizer = make_optimizer(args, trainable(denoiser.train()))
    lr_scheduler = make_lr_scheduler(args, optimizer)
    prepared, optimizer = accelerator.prepare(denoiser, optimizer)
    trained = trainable(denoiser)  # after `prepare`, which may have replaced them
    ema = ShardedEMA(trained, decay=args.ema_decay) if args.use_ema else None
    if args.tracker is not None:
        accelerator.init_trackers("vdmini")

    def validate(step: int) -> None:
        with averaged(ema, trained):
            state_dict = whole_state_dict(accelerator, prepared)
            if accelerator.is_main_process:
                paths = pair.write_validation_videos(args, denoiser, state_dict, step)
                show_on_trackers(accelerator.trackers, paths, step)
        accelerator.wait_for_everyone()

    icmd_training_loop(
        accelerator=accelerator,
        task=task,
        student=prepared,
        teacher=pair.teacher_denoiser,
        dataloader=dataloader,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        settings=loop_settings(args, icmd_args),
        checkpoints=checkpoints,
        pairs=pairs,
        critics=critics,
        critic_features=critic_features,
        ema=ema,
        validate=validate if pair.validation_inputs(args) else None,
    )

    with averaged(ema, trained):
        state_dict = whole_state_dict(accelerator, prepared)
        if accelerator.is_main_process:
            pair.save(args, denoiser, state_dict)
            if args.push_to_hub:
                push(args)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def loop_settings(args: UNetTrainingArguments, icmd_args: ICMDArguments) -> LoopSettings:
    given = asdict(args) | asdict(icmd_args)
    return LoopSettings(**{name: given[name] for name in (field.name for field in fields(LoopSettings))})


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def lora_config(rank: int) -> Any:
    """LoRA on the attention of a U-Net. Raises `ImportError` if peft is not installed."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("`--rank` needs peft: `pip install -e '.[train]'`.") from error
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"])


def add_lora(unet: ModelMixin, rank: int) -> None:
    """Freeze the U-Net, and add LoRA to its attention."""
    if not isinstance(unet, PeftAdapterMixin):
        raise ValueError("`--rank` trains a pruned student; diffusers' own U-Net classes take no adapter.")
    unet.requires_grad_(False)
    unet.add_adapter(lora_config(rank))


def open_data(
    pair: TeacherAndStudent, args: UNetTrainingArguments, data_args: VideoDataArguments, accelerator: Accelerator
) -> tuple[Dataset, Encode | None]:
    """The data set, and the function that encodes its batches if they are videos."""
    if data_args.precomputed_data_dir is not None:
        dataset = pair.precomputed(data_args.precomputed_data_dir)
        pair.set_clip_shape(dataset[0])
        return dataset, None
    dataset = load_video_dataset(
        data_args,
        SkipLog(args.output_dir / "skipped_videos"),
        seed=args.seed,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    pair.set_clip_shape(data_args)

    def encode(batch: Mapping[str, Any], generators: Generators) -> Mapping[str, Any]:
        encoded = pair.encode(batch, generators)
        return {
            name: value.to(accelerator.device) if isinstance(value, torch.Tensor) else value
            for name, value in encoded.items()
        }

    return dataset, encode


def make_critics(
    family: TrainableFamily,
    config: Mapping[str, Any],
    condition_dim: int,
    critic_args: CriticArguments,
    icmd_args: ICMDArguments,
    device: torch.device,
) -> list[Critic]:
    """MCA's critic and the task's own, without those whose weight is 0.

    Args:
        config: config of the teacher's denoiser.
        condition_dim: width of the critics' condition.
    """
    wanted: tuple[tuple[str, Literal["teacher", "data"], float, int], ...] = (
        ("mca", "teacher", icmd_args.lambda_mca, icmd_args.mca_start_step),
        ("sf_v", "data", icmd_args.lambda_data_critic, 0),
    )
    critics = []
    for name, real, weight, start_step in wanted:
        if weight == 0:
            continue
        if critic_args.discriminator_backbone == "teacher":
            channels = dict(zip(family.critic_taps, family.critic_channels(config), strict=True))
            heads = DiscriminatorHeads(
                channels,
                condition_dim,
                critic_args.discriminator_width,
                temporal_kernel_size=critic_args.temporal_kernel_size,
            )
        else:
            width = critic_args.discriminator_width
            heads = LatentDiscriminator(
                config["out_channels"],
                condition_dim,
                (width // 4, width // 2, width),
                temporal_kernel_size=critic_args.temporal_kernel_size,
            )
        critic = make_critic(
            name,
            real,
            heads,
            device,
            weight=weight,
            start_step=start_step,
            learning_rate=critic_args.discriminator_learning_rate,
            adam_beta1=critic_args.discriminator_adam_beta1,
            generator_loss=critic_args.generator_loss if real == "teacher" else critic_args.data_generator_loss,
            r1_weight=critic_args.r1_weight,
        )
        critics.append(critic)
    return critics


def report_run(
    record: dict[str, Any],
    unet: nn.Module,
    critics: list[Critic],
    pairs: Sequence[tuple[str, str]],
    output_dir: Path | None,
) -> None:
    """Print the settings and what is trained; with a folder, keep the settings there."""
    report_settings(record, output_dir)
    logger.info("trained parameters of the U-Net: %s", f"{sum(p.numel() for p in trainable(unet)):,}")
    for critic in critics:
        count = sum(p.numel() for p in critic.heads.parameters())
        logger.info("critic %s, from step %d on: %s parameters", critic.name, critic.start_step, f"{count:,}")
    for student, teacher in pairs:
        logger.info("ICD: student %s, teacher %s", student, teacher)
