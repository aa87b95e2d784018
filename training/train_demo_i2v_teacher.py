#!/usr/bin/env python
"""Train the small SVD-style teacher that ships with the package, from nothing, on a CPU or a GPU.

    python training/train_demo_i2v_teacher.py --output_dir outputs/teacher

Four stages, each of which saves its state and resumes when the same command is run again: the VAE; the latents of a
fixed set of clips; the U-Net together with the image encoder; the VAE's decoder a while longer. The pipeline folder
appears in `OUTPUT_DIR/pipeline` when all are done. Data: `vdmini_diffusers.demo.moving_pictures` (extra `teacher`).
"""

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.logging import get_logger
from accelerate.state import PartialState
from diffusers import (
    AutoencoderKLTemporalDecoder,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm
from transformers import (
    CLIPImageProcessor,
    CLIPVisionModelWithProjection,
    get_cosine_schedule_with_warmup,
    set_seed,
)

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.image_to_video_networks import (
    SIZE,
    build_i2v_scheduler,
    build_i2v_unet,
    build_image_encoder,
    build_vae,
)
from vdmini_diffusers.demo.moving_pictures import FPS, NUM_FRAMES, TRAIN_PHOTOS, MovingPictures
from vdmini_diffusers.demo.training_state import load_state, picture_loss, save_state, to_tensor, write_tensors


logger = get_logger(__name__, log_level="INFO")


@dataclass
class Arguments:
    output_dir: Path = field(metadata={"help": "Where the state of each stage and the finished pipeline go."})
    init_from: Path | None = field(
        default=None,
        metadata={"help": "Pipeline folder to start from. Its VAE is kept; its U-Net and image encoder train on."},
    )
    seed: int = field(default=0, metadata={"help": "Seeds the weights, the clips and the noise."})
    vae_width: int = field(default=96, metadata={"help": "Channels of the VAE's stages."})
    vae_only: bool = field(
        default=False, metadata={"help": "Stop after the VAE and its decoder, and write OUTPUT_DIR/vae."}
    )
    vae_steps: int = field(default=800, metadata={"help": "Optimiser steps of the whole VAE."})
    decoder_steps: int = field(default=1600, metadata={"help": "Further steps of its decoder, encoder frozen."})
    vae_learning_rate: float = field(default=3e-4, metadata={"help": "Peak learning rate of the VAE."})
    vae_kl_weight: float = field(default=1e-4, metadata={"help": "Weight of the KL term (mean over latent values)."})
    num_clips: int = field(default=2048, metadata={"help": "Clips whose latents are cached for the U-Net."})
    unet_steps: int = field(default=1800, metadata={"help": "Optimiser steps of the U-Net."})
    unet_learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of the U-Net."})
    train_batch_size: int = field(default=8, metadata={"help": "Clips per step of the U-Net."})
    conditioning_dropout_prob: float = field(default=0.05, metadata={"help": "Share of clips without their image."})
    noise_aug_strength: float = field(default=0.02, metadata={"help": "Noise on the first frame, as the pipeline's."})
    checkpointing_steps: int = field(default=200, metadata={"help": "Save the state every so many steps."})
    mixed_precision: bool = field(
        default=True, metadata={"help": "Autocast the U-Net to bfloat16. Slow on CPUs without such instructions."}
    )


def train_vae(args: Arguments, device: torch.device, stop: int) -> AutoencoderKLTemporalDecoder:
    """Train, or go on, up to step `stop`; past `args.vae_steps` the encoder is frozen, as latents depend on it.

    L1 on pixels and on their gradients, which keeps edges, plus a light KL that keeps latents near unit scale.
    """
    total = args.vae_steps + args.decoder_steps
    path = args.output_dir / "vae.pt"
    set_seed(args.seed)
    vae: Any = build_vae(args.vae_width)
    vae.to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.vae_learning_rate, weight_decay=1e-4, fused=True)
    lr_scheduler = get_cosine_schedule_with_warmup(optimizer, 50, total)
    parts = {"vae": vae, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
    start = load_state(path, parts, device)
    pictures, psnrs = MovingPictures(TRAIN_PHOTOS, recolour=True), []
    for step in tqdm(range(start, stop), initial=start, total=stop, desc="vae"):
        if step >= args.vae_steps:
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)
        rng = np.random.default_rng((args.seed, 1, step))
        torch.manual_seed(args.seed + step)
        # Eight images a step: crops of single frames at first, which are varied and cheap; then whole, moving ones.
        num_clips, num_frames, side = (8, 1, SIZE // 2) if step < 0.85 * total else (2, 4, SIZE)
        first = int(rng.integers(NUM_FRAMES - num_frames + 1))
        top, left = rng.integers(SIZE - side + 1, size=2)
        clips = np.stack([pictures.clip(rng).frames[first : first + num_frames] for _ in range(num_clips)])
        pixels = to_tensor(clips[..., top : top + side, left : left + side, :]).flatten(0, 1).to(device)
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample(), num_frames=num_frames).sample
        l1_loss, gradient_loss = picture_loss(decoded, pixels)
        kl_loss = posterior.kl().mean() / posterior.mean[0].numel()
        loss = l1_loss + gradient_loss + args.vae_kl_weight * kl_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        psnrs.append(-10 * math.log10(F.mse_loss(decoded, pixels).item() / 4))
        if (step + 1) % args.checkpointing_steps == 0 or step + 1 == stop:
            logger.info("vae step %d: l1 %.4f, kl %.2f, psnr %.1f dB", step + 1, l1_loss, kl_loss, np.mean(psnrs))
            psnrs.clear()
            save_state(path, step + 1, parts)
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def cache_latents(args: Arguments, vae: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """Unscaled posterior means of all frames, the noised first frames' means, the first frames and the buckets."""
    path = args.output_dir / "latents.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    vae.encoder.to(memory_format=torch.channels_last)  # a third faster on a CPU
    pictures = MovingPictures(TRAIN_PHOTOS, recolour=True)
    rows = {"latents": [], "image_latents": [], "first_frames": [], "motion_bucket_ids": []}
    generator = torch.Generator().manual_seed(args.seed)
    for index in tqdm(range(args.num_clips), desc="latents"):
        clip = pictures.clip(np.random.default_rng((args.seed, 2, index)))
        pixels = to_tensor(clip.frames)
        noised = pixels[:1] + args.noise_aug_strength * torch.randn(pixels[:1].shape, generator=generator)
        means = vae.encode(
            torch.cat([pixels, noised]).to(device, memory_format=torch.channels_last)
        ).latent_dist.mean.cpu()
        rows["latents"].append(means[:-1].half())
        rows["image_latents"].append(means[-1].half())
        rows["first_frames"].append(torch.from_numpy(clip.frames[0]))
        rows["motion_bucket_ids"].append(torch.tensor(clip.motion_bucket_id))
    latents = {name: torch.stack(values) for name, values in rows.items()}
    write_tensors(latents, path)
    return latents


def sample_sigmas(num: int) -> torch.Tensor:
    """SVD's log-normal (0.7, 1.6); a quarter spread evenly over ln 10 to ln 700, where sampling starts."""
    log_sigmas = 0.7 + 1.6 * torch.randn(num)
    high = math.log(10) + (math.log(700) - math.log(10)) * torch.rand(num)
    return torch.where(torch.rand(num) < 0.25, high, log_sigmas).exp()


def train_unet(
    args: Arguments, latents: dict[str, torch.Tensor], scaling_factor: float, device: torch.device
) -> tuple[UNetSpatioTemporalConditionModel, CLIPVisionModelWithProjection]:
    """EDM denoising with SVD's preconditioning; the image encoder learns along, through its one token."""
    path = args.output_dir / "unet.pt"
    set_seed(args.seed + 1)
    if args.init_from is None:
        unet, image_encoder = build_i2v_unet(), build_image_encoder()
    else:
        unet = UNetSpatioTemporalConditionModel.from_pretrained(args.init_from / "unet", dtype=torch.float32)
        image_encoder = CLIPVisionModelWithProjection.from_pretrained(
            args.init_from / "image_encoder", dtype=torch.float32
        )
    for model in (unet, image_encoder):
        torch.nn.Module.to(model, device).train()
    parameters = [*unet.parameters(), *image_encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.unet_learning_rate, weight_decay=1e-3, fused=True)
    lr_scheduler = get_cosine_schedule_with_warmup(optimizer, 100, args.unet_steps)
    ema = EMAModel(parameters, decay=0.998)
    parts: dict[str, Any] = {
        **{"unet": unet, "image_encoder": image_encoder},
        **{"optimizer": optimizer, "lr_scheduler": lr_scheduler, "ema": ema},
    }
    start = load_state(path, parts, device)
    feature_extractor = CLIPImageProcessor()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (feature_extractor.image_mean, feature_extractor.image_std))

    losses, started = [], time.monotonic()
    for step in tqdm(range(start, args.unet_steps), initial=start, total=args.unet_steps, desc="unet"):
        torch.manual_seed(args.seed + 1_000_003 * (step + 1))
        rows = torch.randint(len(latents["latents"]), (args.train_batch_size,))
        x_0 = latents["latents"][rows].float() * scaling_factor  # (batch, frames, channels, height, width)
        image_latents = latents["image_latents"][rows].float()  # unscaled, as in the SVD pipeline
        first_frames = latents["first_frames"][rows].movedim(-1, -3).float() / 255
        sigmas = sample_sigmas(len(rows))
        noisy_latents = x_0 + sigmas.view(-1, 1, 1, 1, 1) * torch.randn_like(x_0)
        added_time_ids = torch.stack(
            [
                torch.full((len(rows),), FPS - 1.0),
                latents["motion_bucket_ids"][rows].float(),
                torch.full((len(rows),), args.noise_aug_strength),
            ],
            dim=1,
        )
        keep = (torch.rand(len(rows)) >= args.conditioning_dropout_prob).float()
        s = sigmas.view(-1, 1, 1, 1, 1)
        target = (x_0 - noisy_latents / (s**2 + 1)) * -((s**2 + 1).sqrt() / s)  # the target of f_theta, Eq. 2

        pixel_values = F.interpolate(first_frames, size=(224, 224), mode="bicubic", align_corners=True).clamp(0, 1)
        pixel_values = ((pixel_values - mean) / std).to(device)
        model_input = torch.cat(
            [
                noisy_latents / (s**2 + 1).sqrt(),
                (image_latents * keep.view(-1, 1, 1, 1)).unsqueeze(1).expand(-1, NUM_FRAMES, -1, -1, -1),
            ],
            dim=2,
        ).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.mixed_precision):
            image_embeds = image_encoder(pixel_values).image_embeds * keep.view(-1, 1).to(device)
            prediction = unet(
                model_input,
                (0.25 * sigmas.log()).to(device),
                image_embeds.unsqueeze(1),
                added_time_ids.to(device),
                return_dict=False,
            )[0]
        # On f_theta, plain MSE equals the weight (1 + sigma^2) / sigma^2 on the denoised latents.
        loss = F.mse_loss(prediction.float(), target.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        ema.step(parameters)
        losses.append(loss.item())
        if (step + 1) % args.checkpointing_steps == 0 or step + 1 == args.unet_steps:
            pace = (time.monotonic() - started) / (step + 1 - start)
            logger.info("unet step %d: loss %.4f, %.2f s a step", step + 1, np.mean(losses), pace)
            losses.clear()
            save_state(path, step + 1, parts)
    ema.copy_to(parameters)
    return unet.eval(), image_encoder.eval()


def save_pipeline(
    vae: AutoencoderKLTemporalDecoder,
    unet: UNetSpatioTemporalConditionModel,
    image_encoder: CLIPVisionModelWithProjection,
    folder: Path,
) -> None:
    """In half precision."""
    pipeline = StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=image_encoder,
        unet=unet,
        scheduler=build_i2v_scheduler(),
        feature_extractor=CLIPImageProcessor(),
    )
    for model in (vae, unet, image_encoder):
        model.half()
    pipeline.save_pretrained(folder)
    logger.info("saved %s", folder)


def main(args: Arguments) -> None:
    PartialState()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.vae_only:
        train_vae(args, device, stop=args.vae_steps + args.decoder_steps).save_pretrained(args.output_dir / "vae")
        return
    if args.init_from is None:
        vae = train_vae(args, device, stop=args.vae_steps)
        latents = cache_latents(args, vae, device)
        # Latents of unit variance, as the scheduler assumes; the factor is the VAE's own, as in every diffusers VAE.
        vae.register_to_config(scaling_factor=1 / latents["latents"].float().std().item())
    else:
        vae = AutoencoderKLTemporalDecoder.from_pretrained(args.init_from / "vae", dtype=torch.float32)
        torch.nn.Module.to(vae, device)
        vae.eval().requires_grad_(False)
        latents = cache_latents(args, vae, device)
    scaling_factor = vae.config.scaling_factor
    unet, image_encoder = train_unet(args, latents, scaling_factor, device)
    if args.init_from is None:
        vae = train_vae(args, device, stop=args.vae_steps + args.decoder_steps)
        vae.register_to_config(scaling_factor=scaling_factor)
    save_pipeline(vae, unet, image_encoder, args.output_dir / "pipeline")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
