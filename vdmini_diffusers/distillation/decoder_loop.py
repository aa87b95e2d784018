"""Fine-tuning of a compressed VAE decoder (appendix A) on one page. Engine, data and losses are arguments."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import TemporalDecoder
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from vdmini_diffusers.data.vae_clips import decode_clips
from vdmini_diffusers.distillation.batches import endless_batches
from vdmini_diffusers.distillation.checkpoints import Checkpoints
from vdmini_diffusers.distillation.critics import Critic
from vdmini_diffusers.distillation.decoder_arguments import DecoderLossArguments, DecoderTrainingArguments
from vdmini_diffusers.distillation.decoder_losses import PerceptualLoss, perceptual_loss, pixel_loss, stage_loss
from vdmini_diffusers.distillation.feature_taps import FeatureTaps
from vdmini_diffusers.distillation.hyperparameters import keeping_hyperparameters, set_learning_rate
from vdmini_diffusers.distillation.loop import refuse_nan
from vdmini_diffusers.distillation.loss_log import LossLog
from vdmini_diffusers.distillation.losses import adaptive_weight


# Maps a batch and the frames to take of each clip to the decoder's inputs and targets.
Prepare = Callable[[Mapping[str, Any], slice], tuple[Tensor, Tensor]]


def decoder_training_loop(
    *,
    accelerator: Accelerator,
    decoder: nn.Module,
    prepare: Prepare,
    dataloader: DataLoader,
    optimizer: torch.optim.Optimizer,
    lr_scheduler: Any,
    args: DecoderTrainingArguments,
    loss_args: DecoderLossArguments,
    checkpoints: Checkpoints,
    perceptual: PerceptualLoss | None = None,
    critic: Critic | None = None,
    teacher: nn.Module | None = None,
    pairs: Sequence[tuple[str, str, tuple[int, ...]]] = (),
    ema: EMAModel | None = None,
    validate: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train `decoder`, and return it bare.

    `accelerator` has prepared decoder, optimiser and data; the schedule counts optimiser steps and is not prepared.

    Args:
        teacher: the original decoder, frozen; only for distillation.
        pairs: as `DecoderPruningPlan.stage_pairs` returns them.

    Raises:
        FloatingPointError: if a loss, or a weight that is about to be saved, is not finite; the last checkpoint is
            left as it is.
    """
    bare: Any = extract_model_from_parallel(decoder, keep_torch_compile=False)
    trained = list(bare.parameters())
    last_layer = bare.time_conv_out.weight if isinstance(bare, TemporalDecoder) else bare.conv_out.weight
    others: dict[str, Any] = {"lr_scheduler": lr_scheduler}
    others |= {critic.name: critic} if critic is not None else {}
    others |= {"ema": ema} if ema is not None else {}
    with keeping_hyperparameters(optimizer):
        progress = checkpoints.resume(accelerator, others)
    set_learning_rate(optimizer, lr_scheduler)
    if ema is not None:
        ema.to(accelerator.device)
    log = LossLog(accelerator)
    batches = endless_batches(dataloader, progress)
    bar = tqdm(
        initial=progress.step, total=args.max_train_steps, desc="decoder", disable=not accelerator.is_main_process
    )

    while progress.step < args.max_train_steps:
        rng = np.random.default_rng((args.seed, progress.step))  # the same in all processes
        active = critic if critic is not None and progress.step >= critic.settings.start_step else None

        for _ in range(args.gradient_accumulation_steps):
            batch = next(batches)
            frames = draw_frames(batch["pixel_values"].shape[1], loss_args.min_num_frames, rng)
            latents, target = prepare(batch, frames)
            with accelerator.accumulate(decoder):
                # The decoder, and the original one
                with accelerator.autocast(), FeatureTaps(bare, [pair[0] for pair in pairs]) as features:
                    decoded = decode_clips(decoder, latents).float()
                teacher_decoded, teacher_features = target, {}  # unless it runs
                if teacher is not None:
                    taps = FeatureTaps(teacher, [pair[1] for pair in pairs])
                    with torch.no_grad(), accelerator.autocast(), taps as teacher_features:
                        teacher_decoded = decode_clips(teacher, latents).float()

                # Losses
                losses = {
                    "reconstruction": loss_args.reconstruction_weight
                    * pixel_loss(decoded, target, loss_args.reconstruction_loss)
                }
                if perceptual is not None:
                    losses["perceptual"] = loss_args.perceptual_weight * perceptual_loss(decoded, target, perceptual)
                if loss_args.output_distillation_weight > 0:
                    distance = pixel_loss(decoded, teacher_decoded, loss_args.reconstruction_loss)
                    losses["output_distillation"] = loss_args.output_distillation_weight * distance
                if pairs:
                    distance = stage_loss(features, teacher_features, pairs)
                    losses["feature_distillation"] = loss_args.feature_distillation_weight * distance
                if active is not None:
                    adversarial = active.loss_for_student({"clips": decoded}, [])
                    if loss_args.adaptive_adversarial_weight:
                        likeness = losses["reconstruction"] + losses.get("perceptual", 0)
                        adversarial = adversarial * adaptive_weight(likeness, adversarial, last_layer)
                    losses["adversarial"] = active.settings.weight * adversarial

                # Decoder step
                total = torch.stack(list(losses.values())).sum()
                refuse_nan(total, losses, progress.step)
                accelerator.backward(total)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(trained, args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()

            # Discriminator step, on the decoder's output from before its step
            if active is not None:
                loss = active.loss_for_heads({"clips": decoded}, [{"clips": target}]).loss
                losses["discriminator"] = loss
                refuse_nan(loss, losses, progress.step)
                (loss / args.gradient_accumulation_steps).backward()
            log.add(losses)

        learning_rate = lr_scheduler.get_last_lr()[0]
        lr_scheduler.step()
        if active is not None:
            active.step(args.max_grad_norm)
        if ema is not None:
            ema.step(trained)

        # Book-keeping
        progress.step += 1
        bar.update()
        if progress.step % args.logging_steps == 0 or progress.step == args.max_train_steps:
            log.report(progress.step, lr=learning_rate)
        if progress.step % args.checkpointing_steps == 0 or progress.step == args.max_train_steps:
            checkpoints.save(accelerator, progress)
        if validate is not None and progress.step % args.validation_steps == 0:
            validate(progress.step)
    return bare


def draw_frames(num_frames: int, shortest: int, rng: np.random.Generator) -> slice:
    """Draw a stretch of `shortest` to `num_frames` frames: its length first, then its start, each uniformly."""
    length = int(rng.integers(shortest, num_frames + 1))
    start = int(rng.integers(0, num_frames - length + 1))
    return slice(start, start + length)
