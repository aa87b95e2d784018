"""Training an image-to-video U-Net: a pruned student towards its teacher (ICMD), or a teacher to one step (SF-V).

`training/train_icmd.py` and `training/train_sf_v.py` parse their arguments and call `train_image_to_video`.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.loaders import PeftAdapterMixin
from diffusers.optimization import get_scheduler
from torch import nn
from torch.utils.data import DataLoader

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.latents import PrecomputedLatents, encode_image_to_video
from vdmini_diffusers.data.skipped_videos import SkipLog
from vdmini_diffusers.data.video_dataset import load_video_dataset
from vdmini_diffusers.distillation.arguments import CriticArguments, ICMDArguments, TrainingArguments
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
from vdmini_diffusers.distillation.tasks.single_step import SingleStepTask
from vdmini_diffusers.models import VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.pipelines import VDMiniI2VPipeline
from vdmini_diffusers.pruning import PruningPlan, feature_pairs
from vdmini_diffusers.pruning.student_folder import check_student, read_plan
from vdmini_diffusers.trained_pipeline import (
    ClipShape,
    push,
    save_trained_pipeline,
    show_on_trackers,
    write_validation_videos,
)


logger = logging.getLogger(__name__)

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def train_image_to_video(
    args: TrainingArguments,
    critic_args: CriticArguments,
    icmd_args: ICMDArguments,
    data_args: VideoDataArguments,
    teacher_name: str,
    student_name: str | None,
    variant: str | None = None,
    revision: str | None = None,
    student_variant: str | None = None,
) -> Path:
    """Train, and write a whole pipeline to `args.output_dir`, which is returned.

    Args:
        teacher_name: folder or Hub id of an SVD-style pipeline. Frozen; it also carries the critics' features.
        student_name: of a pruned one, as `conversion/convert_svd_to_vdmini.py` writes it. None: the teacher's own
            U-Net is trained to one step (SF-V).
        variant: of the teacher's weight files, e.g. `"fp16"`.
        revision: of the teacher on the Hub.
        student_variant: of the student's weight files.

    Raises:
        FloatingPointError: if a loss is not finite.
        PruningPlanError: a `ValueError`; if the student's plan does not lead from this teacher to this student.
        ValueError: for data or settings that cannot be meant.
    """
    accelerator = make_accelerator(args)
    torch.manual_seed(args.seed)

    # Models
    for image in args.validation_images:
        if not image.is_file():
            raise ValueError(f"`--validation_images`: there is no file {image}.")
    load_teacher = partial(VDMiniI2VPipeline.from_pretrained, teacher_name, variant=variant, revision=revision)
    teacher = load_teacher(dtype=DTYPES[accelerator.mixed_precision])
    unet, plan = load_student(load_teacher, teacher, student_name, student_variant)
    pairs = feature_pairs(plan, teacher.unet.config) if plan is not None and icmd_args.lambda_icd > 0 else ()
    for model in (teacher.unet, teacher.vae, teacher.image_encoder):
        model.to(accelerator.device).eval().requires_grad_(False)
    if args.shard_teacher:
        shard_frozen(teacher.unet)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if args.rank is not None:
        add_lora(unet, args.rank)

    # Objective
    dataloader, encode, shape = open_data(args, data_args, teacher, accelerator)
    task = SingleStepTask(
        instance_noise_mean=critic_args.instance_noise_mean,
        instance_noise_std=critic_args.instance_noise_std,
        encode=encode,
    )
    critics = make_critics(teacher, task, critic_args, icmd_args, accelerator.device)
    if accelerator.is_main_process:
        record = {"teacher": teacher_name, "student": student_name, "plan": plan.name if plan is not None else None}
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
                paths = write_validation_videos(args, shape, teacher, unet, state_dict, step)
                show_on_trackers(accelerator.trackers, paths, step)
        accelerator.wait_for_everyone()

    icmd_training_loop(
        accelerator=accelerator,
        task=task,
        student=prepared,
        teacher=teacher.unet,
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
        critic_features=CriticFeatures(
            task, teacher.unet if critic_args.discriminator_backbone == "teacher" else None
        ),
        ema=ema,
        validate=validate if args.validation_images else None,
    )

    with averaged(ema, trained):
        state_dict = accelerator.get_state_dict(prepared)
        if accelerator.is_main_process:
            save_trained_pipeline(args, load_teacher, unet, state_dict, teacher_name, student_name)
            if args.push_to_hub:
                push(args)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return args.output_dir


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def load_student(
    load_teacher: Callable[..., VDMiniI2VPipeline],
    teacher: VDMiniI2VPipeline,
    student_name: str | None,
    variant: str | None,
) -> tuple[UNetSpatioTemporalConditionModel, PruningPlan | None]:
    """The U-Net to train, in float32, and the plan that it was pruned by; without a name, a copy of the teacher's."""
    if student_name is None:
        return load_teacher(dtype=torch.float32).unet, None
    unet = VDMiniUNetSpatioTemporalConditionModel.from_pretrained(
        student_name, subfolder="unet", variant=variant, dtype=torch.float32
    )
    plan = read_plan(student_name)
    check_student(plan, teacher.unet.config, unet.config, student_name)
    return unet, plan


def add_lora(unet: UNetSpatioTemporalConditionModel, rank: int) -> None:
    """Freeze the U-Net, and add LoRA to its attention."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("`--rank` needs peft: `pip install vdmini_diffusers[train]`.") from error
    if not isinstance(unet, PeftAdapterMixin):
        raise ValueError("`--rank` trains a pruned student; diffusers' own class of SVD's U-Net takes no adapter.")
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))


def open_data(
    args: TrainingArguments, data_args: VideoDataArguments, teacher: VDMiniI2VPipeline, accelerator: Accelerator
) -> tuple[DataLoader, Any, ClipShape]:
    """Batches, what makes latents of them if they are videos, and what the clips are like."""
    if data_args.precomputed_data_dir is not None:
        dataset = PrecomputedLatents(data_args.precomputed_data_dir)
        encode = None
        if missing := sorted({"latents", "image_latents", "image_embeds", "added_time_ids"} - set(dataset[0])):
            raise ValueError(
                f"{data_args.precomputed_data_dir} has no {', '.join(missing)}: it was not made by"
                " training/precompute_latents.py for image to video."
            )
        shape = ClipShape.of_latents(dataset[0], 2 ** (len(teacher.vae.config.block_out_channels) - 1))
    else:
        dataset = load_video_dataset(
            data_args,
            SkipLog(args.output_dir / "skipped_videos"),
            seed=args.seed,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )

        def encode_batch(batch: Mapping[str, Any], generators: list[torch.Generator]) -> Mapping[str, torch.Tensor]:
            encoded = encode_image_to_video(
                dict(batch), teacher.vae, teacher.image_encoder, teacher.feature_extractor, generators=generators
            )
            return {name: tensor.to(accelerator.device) for name, tensor in encoded.items()}

        encode = encode_batch

        shape = ClipShape(
            data_args.num_frames, data_args.height, data_args.width, data_args.fps, data_args.motion_bucket_id
        )

    return make_dataloader(accelerator, dataset, args, data_args.dataloader_num_workers), encode, shape


def make_critics(
    teacher: VDMiniI2VPipeline,
    task: SingleStepTask,
    critic_args: CriticArguments,
    icmd_args: ICMDArguments,
    device: torch.device,
) -> list[Critic]:
    """MCA's critic, and the task's own; those whose weight is 0 are left out."""
    config = teacher.unet.config
    condition_dim = teacher.image_encoder.config.projection_dim
    wanted: tuple[tuple[str, Literal["teacher", "data"], float, int], ...] = (
        ("mca", "teacher", icmd_args.lambda_mca, icmd_args.mca_start_step),
        ("sf_v", "data", icmd_args.lambda_data_critic, 0),
    )
    critics = []
    for name, real, weight, start_step in wanted:
        if weight == 0:
            continue
        if critic_args.discriminator_backbone == "teacher":
            channels = dict(zip(task.critic_taps, config.block_out_channels, strict=True))
            heads = DiscriminatorHeads(
                channels,
                condition_dim,
                critic_args.discriminator_width,
                temporal_kernel_size=critic_args.temporal_kernel_size,
            )
        else:
            width = critic_args.discriminator_width
            heads = LatentDiscriminator(
                config.out_channels,
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
