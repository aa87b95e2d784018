"""Distillation of denoisers: a pruned student towards its teacher (ICMD), or a teacher to few steps (SF-V, T2V-Turbo).

The scripts in `training/` parse their arguments and call `train_denoiser`; `distill` is the same as a function.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from diffusers import ModelMixin
from diffusers.loaders import PeftAdapterMixin
from diffusers.training_utils import cast_training_params
from torch import nn
from torch.utils.data import DataLoader

from vdmini_diffusers.data.arguments import (
    TextToVideoDataArguments,
    TransformerDataArguments,
    VideoDataArguments,
)
from vdmini_diffusers.distillation.arguments import (
    CriticArguments,
    DenoiserTrainingArguments,
    ICMDArguments,
    TrainingArguments,
    UNetCriticArguments,
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
from vdmini_diffusers.distillation.engine import (
    DTYPES,
    check_optimizer,
    make_accelerator,
    make_checkpoints,
    make_dataloader,
    make_lr_scheduler,
    make_optimizer,
    report_settings,
)
from vdmini_diffusers.distillation.flow_matching_arguments import (
    FlowMatchingArguments,
    FlowMatchingCriticArguments,
    FlowMatchingICMDArguments,
    FlowMatchingTrainingArguments,
)
from vdmini_diffusers.distillation.loop import LoopSettings, icmd_training_loop
from vdmini_diffusers.distillation.ranking import rank_held_out
from vdmini_diffusers.distillation.sharding import is_sharded, shard_blocks
from vdmini_diffusers.distillation.tasks.base import Task
from vdmini_diffusers.families import find_trainable_family
from vdmini_diffusers.pruning import PruningPlan
from vdmini_diffusers.serialization.atomic import check_apart
from vdmini_diffusers.trainers.before_training import (
    check_critic_flags,
    check_images,
    check_push,
    check_sizes_of_saved_heads,
    data_sources,
    only_run_in,
    warn_of_late_start,
    warn_of_short_warmup,
)
from vdmini_diffusers.trainers.consistency import ConsistencyPair
from vdmini_diffusers.trainers.critics import FoundDiscriminator, ModelSource, find_discriminator, make_critics
from vdmini_diffusers.trainers.flow_matching import FlowMatchingPair
from vdmini_diffusers.trainers.single_step import SingleStepPair
from vdmini_diffusers.trainers.teacher_and_student import TeacherAndStudent
from vdmini_diffusers.trainers.trained_pipeline import push, show_on_trackers
from vdmini_diffusers.trainers.training_data import open_data, order_of, split_held_out


logger = logging.getLogger(__name__)


class CriticSources(NamedTuple):
    """What the critics are made of: the network that they stand on, and the heads that they start from."""

    backbone: ModelSource | None
    discriminator: FoundDiscriminator | None


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
    "single_step": Objective(
        SingleStepPair, (TrainingArguments, UNetCriticArguments, ICMDArguments, VideoDataArguments)
    ),
    "consistency": Objective(
        ConsistencyPair,
        (TextToVideoTrainingArguments, UNetCriticArguments, TextToVideoICMDArguments, TextToVideoDataArguments),
        own=(ConsistencyArguments, RewardArguments),
    ),
    "flow_matching": Objective(
        FlowMatchingPair,
        (
            FlowMatchingTrainingArguments,
            FlowMatchingCriticArguments,
            FlowMatchingICMDArguments,
            TransformerDataArguments,
        ),
        own=(FlowMatchingArguments,),
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
    args: DenoiserTrainingArguments,
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
    sources = check_run(pair, args, critic_args, icmd_args, data_args, checkpoints)
    writes = accelerator.is_main_process and not args.dry_run
    with only_run_in(args.output_dir) if writes else nullcontext():
        if writes and args.push_to_hub:
            check_push(args)
        torch.manual_seed(args.seed)
        denoiser, plan = load_models(pair, args, accelerator)
        backbone = load_backbone(pair, args, sources.backbone, accelerator)
        teacher = pair.teacher_denoiser
        pairs = pair.feature_pairs(plan) if plan is not None and icmd_args.lambda_icd > 0 else ()
        teacher_channels = plan.feature_channels if plan is not None else {}

        dataset, encode = open_data(pair, args, data_args, accelerator)
        if encode is None:
            pair.rest_encoders()
        dataset, held_out = split_held_out(dataset, critic_args.num_held_out_clips, args.train_batch_size)
        order = order_of(dataset, args.seed)
        dataloader = make_dataloader(accelerator, dataset, args, data_args.dataloader_num_workers, order)
        task = pair.make_task(denoiser, critic_args, encode)
        condition_dim = pair.family.critic_condition_dim(pair.teacher)
        channels = None if backbone is None else pair.critic_channels(critic_args, backbone.config)
        critics = make_critics(
            channels,
            teacher.config.out_channels,
            condition_dim,
            critic_args,
            icmd_args,
            sources.discriminator,
            accelerator.device,
            args.seed,
            seen_by_critics(sources.backbone, critic_args),
        )
        if accelerator.is_main_process:
            record = {"teacher": pair.teacher_name, "student": pair.student_name}
            record |= {
                "teacher_variant": pair.teacher_source.variant,
                "teacher_revision": pair.teacher_source.revision,
            }
            record |= {"plan": plan.name if plan is not None else None} | pair.settings()
            for group in (args, critic_args, icmd_args, data_args):
                record |= asdict(group)
            source = sources.backbone or ModelSource("none")
            record |= {
                "critic_backbone": source.name,
                "critic_backbone_variant": source.variant,
                "critic_backbone_revision": source.revision,
            }
            if data_args.precomputed_data_dir is not None:  # motion buckets are each clip's own
                shape = pair.clip_shape
                record |= asdict(shape) | {"fps": shape.fps or None, "motion_bucket_id": None}
            report_run(record, denoiser, critics, pairs, None if args.dry_run else args.output_dir)
        if not args.dry_run:
            features = CriticFeatures(task, backbone, None if channels is None else tuple(channels), pair.token_grid)
            run_training(
                pair,
                args,
                icmd_args,
                accelerator,
                checkpoints,
                denoiser,
                task,
                dataloader,
                pairs,
                teacher_channels,
                critics,
                features,
                held_out,
            )
    return args.output_dir


def check_run(
    pair: TeacherAndStudent,
    args: DenoiserTrainingArguments,
    critic_args: CriticArguments,
    icmd_args: ICMDArguments,
    data_args: VideoDataArguments,
    checkpoints: Checkpoints,
) -> CriticSources:
    """Check all that is known without loading a model, and find what the critics are made of.

    Raises as `train_denoiser`.
    """
    check_critic_flags(critic_args, icmd_args)
    check_apart(args.output_dir, pair.sources() | data_sources(data_args))
    check_images(getattr(args, "validation_images", ()))
    check_optimizer(args)
    checkpoints.choose()
    pair.check(args)
    if args.rank is not None:
        lora_config(args.rank, pair.lora_targets)
    if icmd_args.lambda_mca == 0 and icmd_args.lambda_data_critic == 0:
        return CriticSources(None, None)
    if icmd_args.lambda_mca > 0:
        warn_of_late_start("MCA", "mca_start_step", icmd_args.mca_start_step, args.max_train_steps)
        if not (icmd_args.joint_critic or critic_args.mca_from_discriminator):
            warn_of_short_warmup(critic_args, icmd_args)
    backbone = pair.find_critic_backbone(critic_args)
    discriminator = None
    if icmd_args.lambda_data_critic > 0 or critic_args.mca_from_discriminator:
        discriminator = find_discriminator(pair.teacher_source, critic_args)
    if discriminator is not None:
        discriminator.check_features(seen_by_critics(backbone, critic_args))
        check_sizes_of_saved_heads(critic_args, icmd_args, discriminator.config)
        check_apart(args.output_dir, {"the pipeline of the discriminator": discriminator.source.name})
    if backbone is not None:
        check_apart(args.output_dir, {"the critics' backbone": backbone.name})
        logger.info("critics stand on %s%s", backbone.name, f" ({backbone.variant})" if backbone.variant else "")
    if icmd_args.lambda_data_critic > 0 and discriminator is None:
        late = critic_args.critic_warmup_steps
        warn_of_late_start("The data critic", "critic_warmup_steps", late, args.max_train_steps)
    return CriticSources(backbone, discriminator)


def seen_by_critics(backbone: ModelSource | None, args: CriticArguments) -> str:
    """The critics' features in words, which stay the same where folders move."""
    if backbone is None:
        return "noisy latents"
    return " ".join(filter(None, (args.features_in_words, "of", Path(backbone.name).name, backbone.variant)))


def load_backbone(
    pair: TeacherAndStudent, args: DenoiserTrainingArguments, source: ModelSource | None, accelerator: Accelerator
) -> Any:
    """Load the frozen network that carries the critics' features to the device; None if they see the latents."""
    if source is None:
        return None
    backbone: Any = pair.load_critic_backbone(source, DTYPES[accelerator.mixed_precision])
    if args.gradient_checkpointing:  # else its activations are the most of all that a step holds
        pair.checkpoint_activations(backbone)
    if backbone is not pair.teacher_denoiser:
        backbone.to(accelerator.device).eval().requires_grad_(False)
        if args.shard_teacher:
            shard_blocks(backbone)
    return backbone


def load_models(
    pair: TeacherAndStudent, args: DenoiserTrainingArguments, accelerator: Accelerator
) -> tuple[Any, PruningPlan | None]:
    """Load the teacher to the device, and return the denoiser to train with its plan."""
    frozen = pair.load_teacher(args, accelerator)
    denoiser, plan = pair.load_student(args, accelerator)
    for model in frozen:
        model.to(accelerator.device).eval().requires_grad_(False)
    if args.shard_teacher and not is_sharded(pair.teacher_denoiser):
        shard_blocks(pair.teacher_denoiser)
    if args.gradient_checkpointing:
        pair.checkpoint_activations(denoiser)
    if args.rank is not None:
        add_lora(denoiser, lora_config(args.rank, pair.lora_targets))
    return denoiser, plan


def run_training(
    pair: TeacherAndStudent,
    args: DenoiserTrainingArguments,
    icmd_args: ICMDArguments,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    denoiser: Any,
    task: Task,
    dataloader: DataLoader,
    pairs: Sequence[tuple[str, str]],
    teacher_channels: Mapping[str, Sequence[int]],
    critics: Sequence[Critic],
    critic_features: CriticFeatures,
    held_out: DataLoader | None,
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
        if held_out is not None and critics:
            batches = (send_to_device(batch, accelerator.device) for batch in held_out)
            measures = rank_held_out(
                critics, critic_features, prepared, pair.teacher_denoiser, batches, accelerator.autocast, args.seed
            )
            accelerator.log({f"held_out/{name}": value for name, value in measures.items()}, step=step)
            if accelerator.is_main_process:
                logger.info("step %d, held-out clips: %s", step, json.dumps(measures))
        if not pair.validation_inputs(args):
            return
        with averaged(ema, trained):
            paths = pair.write_validation_videos(args, accelerator, prepared, denoiser, step)
            if accelerator.is_main_process:
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
        teacher_channels=teacher_channels,
        critics=critics,
        critic_features=critic_features,
        ema=ema,
        validate=validate,
    )

    with averaged(ema, trained):
        judges_data: list[Any] = [critic.heads for critic in critics if "data" in critic.settings.real]
        pair.save(args, accelerator, prepared, denoiser, discriminator=next(iter(judges_data), None))
        if accelerator.is_main_process:
            logger.info("the trained pipeline is in %s; its README.md shows how to open it", args.output_dir)
            if args.push_to_hub:
                push(args)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def loop_settings(args: DenoiserTrainingArguments, icmd_args: ICMDArguments) -> LoopSettings:
    given = asdict(args) | asdict(icmd_args)
    return LoopSettings(**{name: given[name] for name in (field.name for field in fields(LoopSettings))})


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def lora_config(rank: int, targets: Sequence[str]) -> Any:
    """LoRA on linear layers of these names. Raises `ImportError` if peft is not installed."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("`--rank` needs peft: `pip install -e '.[train]'`.") from error
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets))


def add_lora(denoiser: ModelMixin, config: Any) -> None:
    """Freeze the denoiser, and add LoRA to it, in float32."""
    if not isinstance(denoiser, PeftAdapterMixin):
        raise ValueError("`--rank` trains a pruned student; diffusers' own U-Net classes take no adapter.")
    denoiser.requires_grad_(False)
    denoiser.add_adapter(config)
    cast_training_params(denoiser, torch.float32)


def report_run(
    record: dict[str, Any],
    denoiser: nn.Module,
    critics: list[Critic],
    pairs: Sequence[tuple[str, str]],
    output_dir: Path | None,
) -> None:
    """Print the settings and what is trained; with a folder, keep the settings there."""
    report_settings(record, output_dir)
    logger.info("trained parameters of the denoiser: %s", f"{sum(p.numel() for p in trainable(denoiser)):,}")
    for critic in critics:
        count = sum(p.numel() for p in critic.heads.parameters())
        logger.info("critic %s, from step %d on: %s parameters", critic.name, critic.settings.start_step, f"{count:,}")
    for student, teacher in pairs:
        logger.info("ICD: student %s, teacher %s", student, teacher)
