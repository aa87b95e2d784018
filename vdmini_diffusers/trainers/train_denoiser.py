"""Training of denoisers: a pruned student towards its teacher (ICMD), or a teacher to few steps (SF-V, T2V-Turbo)."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import DataLoader

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.distillation.arguments import CriticArguments, DenoiserTrainingArguments, ICMDArguments
from vdmini_diffusers.distillation.averaging import ShardedEMA, averaged
from vdmini_diffusers.distillation.checkpoints import Checkpoints
from vdmini_diffusers.distillation.critics import Critic, CriticFeatures
from vdmini_diffusers.distillation.engine import (
    DTYPES,
    make_accelerator,
    make_checkpoints,
    make_dataloader,
    make_lr_scheduler,
    make_optimizer,
    report_settings,
)
from vdmini_diffusers.distillation.loop import LoopSettings, icmd_training_loop
from vdmini_diffusers.distillation.ranking import rank_held_out
from vdmini_diffusers.distillation.sharding import is_sharded, shard_blocks
from vdmini_diffusers.distillation.tasks.base import Task
from vdmini_diffusers.pruning import PruningPlan
from vdmini_diffusers.serialization.repository import check_push
from vdmini_diffusers.trainers.before_training import check_run, only_run_in, seen_by_critics
from vdmini_diffusers.trainers.critics import ModelSource, make_critics
from vdmini_diffusers.trainers.lora import add_lora, lora_config
from vdmini_diffusers.trainers.teacher_and_student import TeacherAndStudent
from vdmini_diffusers.trainers.trained_pipeline import push, show_on_trackers
from vdmini_diffusers.trainers.training_data import find_data, open_data, order_of, split_held_out


logger = logging.getLogger(__name__)


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
            check_push(args.repository)
        found = find_data(args, data_args, accelerator)
        if found is not None:  # what is wrong with it is said before models are loaded
            split_held_out(found, critic_args.num_held_out_clips, args.train_batch_size)
        torch.manual_seed(args.seed)
        denoiser, plan = load_models(pair, args, accelerator)
        backbone = load_backbone(pair, args, sources.backbone, accelerator)
        teacher = pair.teacher_denoiser
        pairs = pair.feature_pairs(plan) if plan is not None and icmd_args.lambda_icd > 0 else ()
        teacher_channels = plan.feature_channels if plan is not None else {}

        dataset, encode = open_data(pair, found, args, data_args, accelerator)
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
            record = settings_of_run(pair, plan, (args, critic_args, icmd_args, data_args), sources.backbone)
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


def settings_of_run(
    pair: TeacherAndStudent, plan: PruningPlan | None, groups: Sequence[Any], backbone: ModelSource | None
) -> dict[str, Any]:
    """What a run is made of, as `training.json` holds it.

    Args:
        groups: the settings of the run, the critics, ICMD and the data.
    """
    *_, data_args = groups
    record = {
        "teacher": pair.teacher_name,
        "student": pair.student_name,
        "teacher_variant": pair.teacher_source.variant,
        "teacher_revision": pair.teacher_source.revision,
        "plan": plan.name if plan is not None else None,
    }
    record |= pair.settings()
    for group in groups:
        record |= asdict(group)
    source = backbone or ModelSource("none")
    record |= {
        "critic_backbone": source.name,
        "critic_backbone_variant": source.variant,
        "critic_backbone_revision": source.revision,
    }
    if data_args.precomputed_data_dir is not None:  # motion buckets are each clip's own
        shape = pair.clip_shape
        record |= asdict(shape) | {"fps": shape.fps or None, "motion_bucket_id": None}
    return record


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
