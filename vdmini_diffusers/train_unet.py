"""Training a U-Net: a pruned student towards its teacher (ICMD), or a teacher of few steps (SF-V, T2V-Turbo).

The scripts in `training/` parse their arguments and call `train_unet` with what their base model brings:
[`ImageToVideo`] or [`TextToVideo`].
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.loaders import PeftAdapterMixin
from diffusers.optimization import get_scheduler
from torch import nn
from torch.utils.data import Dataset

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.skipped_videos import SkipLog
from vdmini_diffusers.data.video_dataset import load_video_dataset
from vdmini_diffusers.distillation.arguments import CriticArguments, ICMDArguments, UNetTrainingArguments
from vdmini_diffusers.distillation.averaging import ShardedEMA, averaged
from vdmini_diffusers.distillation.checkpoints import Checkpoints
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
from vdmini_diffusers.distillation.tasks.base import Encode, Generators, Task
from vdmini_diffusers.pruning import PruningPlan, feature_pairs
from vdmini_diffusers.trained_pipeline import push, show_on_trackers


logger = logging.getLogger(__name__)

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class BaseModel(Protocol):
    """A pair of teacher and student of one family of models, by their names. No inheritance is needed.

    Attributes:
        teacher_name: folder or Hub id. Frozen; the teacher also carries the critics' features.
        student_name: of a pruned one. None: the teacher's own U-Net is trained, to fewer steps.
        teacher: the teacher's pipeline, once loaded.
    """

    teacher_name: str
    student_name: str | None
    teacher: DiffusionPipeline

    def load_teacher(self, args: Any, dtype: torch.dtype) -> list[nn.Module]:
        """Read the teacher, and give all that is frozen and goes to the device. Wrong names are refused first."""
        ...

    def load_student(self, args: Any) -> tuple[ModelMixin, PruningPlan | None]:
        """The U-Net to train, in float32, and the plan that it was pruned by, if it was."""
        ...

    def precomputed(self, folder: str) -> Dataset:
        """Read what `training/precompute_latents.py` wrote."""
        ...

    def describe(self, clips: VideoDataArguments | Mapping[str, Any]) -> None:
        """Note what the clips are like, from the arguments or from a precomputed one, for validation."""
        ...

    def encode(self, batch: Mapping[str, Any], generators: Generators) -> Mapping[str, Any]:
        """A batch of videos to one of latents and conditions."""
        ...

    def make_task(self, unet: nn.Module, critic_args: CriticArguments, encode: Encode | None) -> Task:
        """The objective of the U-Net to train, wrapped or not."""
        ...

    @property
    def critic_condition_dim(self) -> int:
        """Width of what critics are conditioned on."""
        ...

    def settings(self) -> dict[str, Any]:
        """Of its own, for the record."""
        ...

    def wants_validation(self, args: Any) -> bool:
        """Whether there is something to validate."""
        ...

    def write_validation_videos(self, args: Any, unet: nn.Module, state_dict: Any, step: int) -> list[Path]:
        """With these weights, in `output_dir/validation`."""
        ...

    def save(self, args: Any, unet: nn.Module, state_dict: Any) -> None:
        """The whole pipeline with these weights, its plan and its card, in `output_dir`."""
        ...


def train_unet(
    base: BaseModel,
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
    frozen = base.load_teacher(args, DTYPES[accelerator.mixed_precision])
    unet, plan = base.load_student(args)
    teacher = base.teacher.unet
    pairs = feature_pairs(plan, teacher.config) if plan is not None and icmd_args.lambda_icd > 0 else ()
    for model in frozen:
        model.to(accelerator.device).eval().requires_grad_(False)
    if args.shard_teacher:
        shard_frozen(teacher)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if args.rank is not None:
        add_lora(unet, args.rank)

    # Objective
    dataset, encode = open_data(base, args, data_args, accelerator)
    dataloader = make_dataloader(accelerator, dataset, args, data_args.dataloader_num_workers)
    task = base.make_task(unet, critic_args, encode)
    critics = make_critics(teacher.config, base.critic_condition_dim, task, critic_args, icmd_args, accelerator.device)
    if accelerator.is_main_process:
        record = {"teacher": base.teacher_name, "student": base.student_name}
        record |= {"plan": plan.name if plan is not None else None} | base.settings()
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
                paths = base.write_validation_videos(args, unet, state_dict, step)
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
        validate=validate if base.wants_validation(args) else None,
    )

    with averaged(ema, trained):
        state_dict = accelerator.get_state_dict(prepared)
        if accelerator.is_main_process:
            base.save(args, unet, state_dict)
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
    base: BaseModel, args: UNetTrainingArguments, data_args: VideoDataArguments, accelerator: Accelerator
) -> tuple[Dataset, Encode | None]:
    """Samples, and what makes latents of a batch of them if they are videos."""
    if data_args.precomputed_data_dir is not None:
        dataset = base.precomputed(data_args.precomputed_data_dir)
        base.describe(dataset[0])
        return dataset, None
    dataset = load_video_dataset(
        data_args,
        SkipLog(args.output_dir / "skipped_videos"),
        seed=args.seed,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    base.describe(data_args)

    def encode(batch: Mapping[str, Any], generators: Generators) -> Mapping[str, Any]:
        encoded = base.encode(batch, generators)
        return {
            name: value.to(accelerator.device) if isinstance(value, torch.Tensor) else value
            for name, value in encoded.items()
        }

    return dataset, encode


def make_critics(
    config: Mapping[str, Any],
    condition_dim: int,
    task: Task,
    critic_args: CriticArguments,
    icmd_args: ICMDArguments,
    device: torch.device,
) -> list[Critic]:
    """MCA's critic, and the task's own; those whose weight is 0 are left out. `config`: of the teacher's U-Net."""
    wanted: tuple[tuple[str, Literal["teacher", "data"], float, int], ...] = (
        ("mca", "teacher", icmd_args.lambda_mca, icmd_args.mca_start_step),
        ("sf_v", "data", icmd_args.lambda_data_critic, 0),
    )
    critics = []
    for name, real, weight, start_step in wanted:
        if weight == 0:
            continue
        if critic_args.discriminator_backbone == "teacher":
            channels = dict(zip(task.critic_taps, config["block_out_channels"], strict=True))
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
