"""Distillation of denoisers: a pruned student towards its teacher (ICMD), or a teacher to few steps (SF-V, T2V-Turbo).

The scripts in `training/` parse their arguments and call `train_denoiser`; `distill` is the same as a function.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from diffusers.loaders import PeftAdapterMixin
from diffusers.optimization import get_scheduler
from torch import nn
from torch.utils.data import Dataset

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
    make_accelerator,
    make_critic,
    make_dataloader,
    make_optimizer,
    report_settings,
    shard_frozen,
)
from vdmini_diffusers.distillation.loop import LoopSettings, icmd_training_loop
from vdmini_diffusers.distillation.tasks.base import Encode, Generators
from vdmini_diffusers.families import Family, find_family
from vdmini_diffusers.trainers.consistency import ConsistencyPair
from vdmini_diffusers.trainers.single_step import SingleStepPair
from vdmini_diffusers.trainers.teacher_and_student import TeacherAndStudent
from vdmini_diffusers.trainers.trained_pipeline import push, show_on_trackers


logger = logging.getLogger(__name__)

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Objective(NamedTuple):
    """A task of families: the pairs that it trains, and the groups of its settings.

    Args:
        arguments: of the run, the critics, ICMD and the data, in this order.
        own: further groups, with which `pair` is made.
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
        output_dir: for checkpoints and the finished pipeline. Called again, an interrupted run goes on from there.
        variant: of the teacher's weight files, e.g. `"fp16"`.
        revision: of the teacher on the Hub.
        student_variant: of the student's weight files.
        settings: the flags of `training/train_icmd.py` under their names, e.g. `max_train_steps=1000`.

    Returns:
        `output_dir`.

    Raises:
        FloatingPointError: if a loss is not finite.
        PruningPlanError: a `ValueError`; if the student's plan does not lead from this teacher to this student.
        TypeError: for a setting that does not exist.
        ValueError: for models, data or settings that cannot be meant.
    """
    teacher, student = str(pretrained_teacher_model_name_or_path), str(pretrained_student_model_name_or_path)
    objective = OBJECTIVES[find_family(student).task]
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
        FloatingPointError: if a loss is not finite.
        PruningPlanError: a `ValueError`; if the student's plan does not lead from this teacher to this student.
        ValueError: for models, data or settings that cannot be meant.
    """
    accelerator = make_accelerator(args)
    torch.manual_seed(args.seed)

    # Models
    frozen = pair.load_teacher(args, DTYPES[accelerator.mixed_precision])
    unet, plan = pair.load_student(args)
    teacher = pair.teacher_denoiser
    pairs = plan.feature_pairs(teacher.config) if plan is not None and icmd_args.lambda_icd > 0 else ()
    for model in frozen:
        model.to(accelerator.device).eval().requires_grad_(False)
    if args.shard_teacher:
        shard_frozen(teacher)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if args.rank is not None:
        add_lora(unet, args.rank)

    # Objective
    dataset, encode = open_data(pair, args, data_args, accelerator)
    dataloader = make_dataloader(accelerator, dataset, args, data_args.dataloader_num_workers)
    task = pair.make_task(unet, critic_args, encode)
    condition_dim = pair.family.critic_condition_dim(pair.teacher)
    critics = make_critics(pair.family, teacher.config, condition_dim, critic_args, icmd_args, accelerator.device)
    if accelerator.is_main_process:
        record = {"teacher": pair.teacher_name, "student": pair.student_name}
        record |= {"plan": plan.name if plan is not None else None} | pair.settings()
        for group in (args, critic_args, icmd_args, data_args):
            record |= asdict(group)
        report_run(record, unet, critics, pairs, None if args.dry_run else args.output_dir)
    if args.dry_run:
        return args.output_dir

    # Optimiser
    optimizer = make_optimizer(args, trainable(unet.train()))
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=args.max_train_steps,
    )
    prepared, optimizer = accelerator.prepare(unet, optimizer)
    trained = trainable(unet)  # after `prepare`, which may have replaced them
    ema = ShardedEMA(trained, decay=args.ema_decay) if args.use_ema else None
    if args.report_to is not None:
        accelerator.init_trackers("vdmini")

    def validate(step: int) -> None:
        with averaged(ema, trained):
            state_dict = accelerator.get_state_dict(prepared)  # of all processes, where it is sharded
            if accelerator.is_main_process:
                paths = pair.write_validation_videos(args, unet, state_dict, step)
                show_on_trackers(accelerator.trackers, paths, step)
        accelerator.wait_for_everyone()

    icmd_training_loop(
        accelerator=accelerator,
        task=task,
        student=prepared,
        teacher=teacher,
        dataloader=dataloader,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        settings=LoopSettings(
            seed=args.seed,
            max_train_steps=args.max_train_steps,
            train_batch_size=args.train_batch_size,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            max_grad_norm=args.max_grad_norm,
            lambda_icd=icmd_args.lambda_icd,
            icd_reduction=icmd_args.icd_reduction,
            icd_normalize=icmd_args.icd_normalize,
            logging_steps=args.logging_steps,
            checkpointing_steps=args.checkpointing_steps,
            validation_steps=args.validation_steps,
        ),
        checkpoints=Checkpoints(
            args.output_dir,
            None if args.resume_from_checkpoint == "none" else args.resume_from_checkpoint,
            args.checkpoints_total_limit,
        ),
        pairs=pairs,
        critics=critics,
        critic_features=CriticFeatures(task, teacher if critic_args.discriminator_backbone == "teacher" else None),
        ema=ema,
        validate=validate if pair.validation_inputs(args) else None,
    )

    with averaged(ema, trained):
        state_dict = accelerator.get_state_dict(prepared)
        if accelerator.is_main_process:
            pair.save(args, unet, state_dict)
            if args.push_to_hub:
                push(args)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return args.output_dir


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def add_lora(unet: ModelMixin, rank: int) -> None:
    """Freeze the U-Net, and add LoRA to its attention."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("`--rank` needs peft: `pip install vdmini_diffusers[train]`.") from error
    if not isinstance(unet, PeftAdapterMixin):
        raise ValueError("`--rank` trains a pruned student; diffusers' own U-Net classes take no adapter.")
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))


def open_data(
    pair: TeacherAndStudent, args: UNetTrainingArguments, data_args: VideoDataArguments, accelerator: Accelerator
) -> tuple[Dataset, Encode | None]:
    """Samples, and what makes latents of a batch of them if they are videos."""
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
    family: Family,
    config: Mapping[str, Any],
    condition_dim: int,
    critic_args: CriticArguments,
    icmd_args: ICMDArguments,
    device: torch.device,
) -> list[Critic]:
    """MCA's critic, and the task's own; those whose weight is 0 are left out.

    Args:
        config: the teacher denoiser's.
        condition_dim: width of what critics are conditioned on.
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
    pairs: tuple[tuple[str, str], ...],
    output_dir: Path | None,
) -> None:
    """Print what will be done; with a folder, keep the settings there."""
    report_settings(record, output_dir)
    logger.info("trained parameters of the U-Net: %s", f"{sum(p.numel() for p in trainable(unet)):,}")
    for critic in critics:
        count = sum(p.numel() for p in critic.heads.parameters())
        logger.info("critic %s, from step %d on: %s parameters", critic.name, critic.start_step, f"{count:,}")
    for student, teacher in pairs:
        logger.info("ICD: student %s, teacher %s", student, teacher)
