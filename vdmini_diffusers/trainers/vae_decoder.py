"""Fine-tuning the decoder of a pruned VAE (appendix A).

`training/train_vae_decoder.py` parses its arguments and calls `train_vae_decoder`.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.latents import PrecomputedLatents
from vdmini_diffusers.data.skipped_videos import SkipLog
from vdmini_diffusers.data.vae_clips import encode_for_decoder
from vdmini_diffusers.data.video_dataset import load_video_dataset
from vdmini_diffusers.distillation.averaging import ShardedEMA, averaged
from vdmini_diffusers.distillation.checkpoints import Checkpoints
from vdmini_diffusers.distillation.critics import Critic, CriticSettings
from vdmini_diffusers.distillation.decoder_arguments import DecoderLossArguments, DecoderTrainingArguments
from vdmini_diffusers.distillation.decoder_loop import Prepare, decoder_training_loop
from vdmini_diffusers.distillation.decoder_losses import PerceptualLoss, lpips_distance
from vdmini_diffusers.distillation.engine import (
    check_optimizer,
    make_accelerator,
    make_checkpoints,
    make_critic,
    make_dataloader,
    make_lr_scheduler,
    make_optimizer,
    report_settings,
    whole_state_dict,
)
from vdmini_diffusers.distillation.patch_discriminator import PatchDiscriminator
from vdmini_diffusers.pruning.student_folder import check_student
from vdmini_diffusers.pruning.vae_folder import COMPRESSED, find_vae, read_decoder_plan
from vdmini_diffusers.serialization.atomic import check_apart
from vdmini_diffusers.serialization.repository import check_push
from vdmini_diffusers.trainers.before_training import (
    check_images,
    data_sources,
    only_run_in,
    warn_of_late_start,
)
from vdmini_diffusers.trainers.trained_pipeline import push, show_on_trackers
from vdmini_diffusers.trainers.trained_vae import (
    decoder_inputs,
    save_trained_vae,
    with_decoder,
    write_validation_pictures,
)


logger = logging.getLogger(__name__)

# Relative error of precomputed latents against this encoder's. Half precision and other kernels explain less.
MAX_LATENT_ERROR = 0.02


def train_vae_decoder(
    args: DecoderTrainingArguments,
    loss_args: DecoderLossArguments,
    data_args: VideoDataArguments,
    vae_name: str,
    teacher_name: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    teacher_variant: str | None = None,
    perceptual: PerceptualLoss | None = None,
) -> Path:
    """Train the decoder, and write the whole VAE to `args.output_dir`, which is returned.

    Args:
        vae_name: folder or Hub id of a VAE that `conversion/prune_vae_decoder.py` wrote, or of a pipeline with one.
        teacher_name: folder or Hub id of the VAE before pruning, or of a pipeline with it: for distillation, and for
            comparison in the validation pictures.
        variant, teacher_variant: variants of the weight files, e.g. `"fp16"`.
        revision: revision of the pruned VAE on the Hub.
        perceptual: replaces the loss that `loss_args.perceptual_loss` names.

    Raises:
        FloatingPointError: if a loss, or a weight that is about to be saved, is not finite.
        ImportError, RuntimeError: if a package is missing, or LPIPS' network, see `lpips_distance`.
        OSError: if a file cannot be read or written, the Hub does not let the user in, or another training writes to
            the same folder.
        PruningPlanError: a `ValueError`; if the VAE was not pruned from this teacher.
        ValueError: for data, models or settings that do not work.
    """
    accelerator = make_accelerator(args)
    checkpoints = make_checkpoints(args)
    check_apart(args.output_dir, {"the pruned VAE": vae_name, "the teacher": teacher_name} | data_sources(data_args))
    check_images(args.validation_images)
    check_optimizer(args)
    checkpoints.choose()
    if loss_args.uses_teacher and teacher_name is None:
        raise ValueError("Distillation needs `--pretrained_teacher_model_name_or_path`, the VAE that was pruned.")
    if loss_args.adversarial_weight > 0:
        start_step = loss_args.adversarial_start_step
        warn_of_late_start("The adversarial loss", "adversarial_start_step", start_step, args.max_train_steps)
    writes = accelerator.is_main_process and not args.dry_run
    with only_run_in(args.output_dir) if writes else nullcontext():
        if writes and args.push_to_hub:
            check_push(args.repository)
        torch.manual_seed(args.seed)
        models = load_vaes(args, loss_args, accelerator, vae_name, teacher_name, variant, revision, teacher_variant)
        perceptual = perceptual or load_perceptual(loss_args, accelerator)
        dataloader, num_frames, size = open_decoder_data(args, loss_args, data_args, models.vae, accelerator)
        critic = make_discriminator(loss_args, size, accelerator.device) if loss_args.adversarial_weight > 0 else None
        if accelerator.is_main_process:
            record = {"vae": vae_name, "teacher": teacher_name}
            for group in (args, loss_args, data_args):
                record |= asdict(group)
            if data_args.precomputed_data_dir is not None:  # which does not say more of its clips
                shape = {"num_frames": num_frames, "height": size[0], "width": size[1]}
                record |= {**shape, "fps": None, "motion_bucket_id": None}
            report_decoder_run(record, models, critic, None if args.dry_run else args.output_dir)
        if not args.dry_run:
            run_decoder_training(
                args, loss_args, accelerator, checkpoints, models, dataloader, size, perceptual, critic
            )
    return args.output_dir


class Models(NamedTuple):
    """The VAE to train, the original one, the pairs of their stages to compare, and the pruned VAE's other files."""

    vae: Any
    teacher: Any | None
    pairs: Sequence[tuple[str, str, tuple[int, ...]]]
    companions: Mapping[str, Path]


def load_vaes(
    args: DecoderTrainingArguments,
    loss_args: DecoderLossArguments,
    accelerator: Accelerator,
    vae_name: str,
    teacher_name: str | None,
    variant: str | None,
    revision: str | None,
    teacher_variant: str | None,
) -> Models:
    """Load both VAEs to the device, the decoder to train with gradients. Raises as `train_vae_decoder`."""
    source = find_vae(vae_name, revision)
    if source.class_name not in [cls.__name__ for cls in COMPRESSED]:
        raise ValueError(f"{vae_name} is not pruned; `conversion/prune_vae_decoder.py` makes a VAE to train of it.")
    companions = source.companions()
    vae = source.load(variant).to(accelerator.device)
    teacher, pairs = None, ()
    if teacher_name is not None:
        teacher = find_vae(teacher_name).load(teacher_variant).to(accelerator.device)
        if loss_args.uses_teacher:
            plan, coupled = read_decoder_plan(companions, vae_name)
            check_student(plan, teacher.config, vae.config, vae_name)
            if loss_args.feature_distillation_weight > 0:
                pairs = plan.stage_pairs(teacher.config, coupled)
    if args.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    vae.decoder.requires_grad_(True).train()
    return Models(vae, teacher, pairs, companions)


def load_perceptual(loss_args: DecoderLossArguments, accelerator: Accelerator) -> PerceptualLoss | None:
    if loss_args.perceptual_weight == 0 or loss_args.perceptual_loss == "none":
        return None
    with accelerator.local_main_process_first():  # which downloads
        return lpips_distance(loss_args.lpips_net, loss_args.lpips_random_trunk).to(accelerator.device)


def report_decoder_run(record: dict[str, Any], models: Models, critic: Critic | None, output_dir: Path | None) -> None:
    """Print the settings and what is trained; with a folder, keep the settings there."""
    report_settings(record, output_dir)
    counted = {"decoder": models.vae.decoder} | ({"discriminator": critic.heads} if critic is not None else {})
    for name, model in counted.items():
        logger.info("trained parameters of the %s: %s", name, f"{sum(p.numel() for p in model.parameters()):,}")
    for student_module, teacher_module, kept in models.pairs:
        logger.info("distilled: %s towards %d channels of %s", student_module, len(kept), teacher_module)


def run_decoder_training(
    args: DecoderTrainingArguments,
    loss_args: DecoderLossArguments,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    models: Models,
    dataloader: DataLoader,
    size: tuple[int, int],
    perceptual: PerceptualLoss | None,
    critic: Critic | None,
) -> None:
    """Make optimiser and average, run the loop, and save the result."""
    vae, teacher = models.vae, models.teacher
    optimizer = make_optimizer(args, vae.decoder.parameters())
    lr_scheduler = make_lr_scheduler(args, optimizer)
    decoder, optimizer = accelerator.prepare(vae.decoder, optimizer)
    trained = list(vae.decoder.parameters())  # after `prepare`, which may have replaced them
    ema = ShardedEMA(trained, decay=args.ema_decay) if args.use_ema else None
    if args.tracker is not None:
        accelerator.init_trackers("vdmini-vae")

    def validate(step: int) -> None:
        with averaged(ema, trained):
            state_dict = whole_state_dict(accelerator, decoder)
            if accelerator.is_main_process:
                path = args.output_dir / "validation" / f"step-{step:06d}.png"
                shown = with_decoder(vae, state_dict).to(accelerator.device).eval()
                decoders = [shown.decoder] if teacher is None else [teacher.decoder, shown.decoder]
                values = write_validation_pictures(args.validation_images, shown, decoders, size, path)
                logger.info("step %d: PSNR %s dB", step, ", ".join(f"{value:.2f}" for value in values))
                accelerator.log({f"validation/psnr-{i}": value for i, value in enumerate(values)}, step=step)
                show_on_trackers(accelerator.trackers, [path], step)
        accelerator.wait_for_everyone()

    decoder_training_loop(
        accelerator=accelerator,
        decoder=decoder,
        prepare=make_prepare(vae, accelerator.device),
        dataloader=dataloader,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        args=args,
        loss_args=loss_args,
        checkpoints=checkpoints,
        perceptual=perceptual,
        critic=critic,
        teacher=teacher.decoder if teacher is not None and loss_args.uses_teacher else None,
        pairs=models.pairs,
        ema=ema,
        validate=validate if args.validation_images else None,
    )

    with averaged(ema, trained):
        state_dict = whole_state_dict(accelerator, decoder)
        if accelerator.is_main_process:
            save_trained_vae(args, vae, state_dict, models.companions)
            if args.push_to_hub:
                push(args)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def open_decoder_data(
    args: DecoderTrainingArguments,
    loss_args: DecoderLossArguments,
    data_args: VideoDataArguments,
    vae: Any,
    accelerator: Accelerator,
) -> tuple[DataLoader, int, tuple[int, int]]:
    """Batches, the number of frames of their clips, and the height and width of these."""
    if data_args.precomputed_data_dir is not None:
        dataset = PrecomputedLatents(data_args.precomputed_data_dir)
        sample = dataset[0]
        if missing := sorted({"latents", "pixel_values"} - set(sample)):
            raise ValueError(
                f"{data_args.precomputed_data_dir} has no {', '.join(missing)}: it was not made by"
                " `training/precompute_latents.py --latents_for vae_decoder`."
            )
        check_latents(sample, vae, data_args.precomputed_data_dir)
        num_frames, _, *size = sample["pixel_values"].shape
    else:
        dataset = load_video_dataset(
            data_args,
            SkipLog(args.output_dir / "skipped_videos"),
            seed=args.seed,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )
        num_frames, size = data_args.num_frames, (data_args.height, data_args.width)
    if loss_args.min_num_frames > num_frames:
        raise ValueError(
            f"The data has clips of {num_frames} frames, fewer than `--min_num_frames` {loss_args.min_num_frames}."
        )
    dataloader = make_dataloader(accelerator, dataset, args, data_args.dataloader_num_workers)
    return dataloader, num_frames, (size[0], size[1])


def check_latents(sample: Mapping[str, Tensor], vae: Any, folder: str) -> None:
    """Raises `ValueError` if latents are not those that the VAE's own encoder gives."""
    ours = encode_for_decoder({"pixel_values": to_values(sample["pixel_values"][None, :1])}, vae)["latents"].cpu()
    theirs = sample["latents"][None, :1].float()
    error = (ours - theirs).norm() / ours.norm() if ours.shape == theirs.shape else torch.inf
    if not error < MAX_LATENT_ERROR:
        raise ValueError(
            f"The latents in {folder} are not those of this VAE's encoder (relative error {float(error):.2g}): they"
            " were made with another VAE, or scaled."
        )


def to_values(pixel_values: Tensor) -> Tensor:
    """Pixel values from -1 to 1. Decoded videos have them already; precomputed clips are uint8."""
    return pixel_values if pixel_values.is_floating_point() else 2 * (pixel_values.float() / 255) - 1


def make_prepare(vae: Any, device: torch.device) -> Prepare:
    """Where batches are videos, only the frames that are taken are encoded."""

    @torch.no_grad()
    def prepare(batch: Mapping[str, Any], frames: slice) -> tuple[Tensor, Tensor]:
        target = to_values(batch["pixel_values"][:, frames].to(device))
        if "latents" in batch:
            latents = batch["latents"][:, frames].to(device).float()
        else:
            latents = encode_for_decoder({"pixel_values": target}, vae)["latents"]
        return decoder_inputs(vae, latents), target

    return prepare


def make_discriminator(loss_args: DecoderLossArguments, size: tuple[int, int], device: torch.device) -> Critic:
    heads = PatchDiscriminator(loss_args.discriminator, loss_args.discriminator_width)
    heads.check_size(size)
    settings = CriticSettings(
        real={"data": loss_args.adversarial_start_step},
        weight=loss_args.adversarial_weight,
        generator_loss="hinge",
    )
    return make_critic(
        "adversarial",
        heads,
        settings,
        device,
        learning_rate=loss_args.discriminator_learning_rate,
        adam_beta1=loss_args.discriminator_adam_beta1,
    )
