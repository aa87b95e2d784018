#!/usr/bin/env python
"""Train the small VideoCrafter2-style teacher that ships with the package, on a CPU or a GPU.

    python training/train_demo_t2v_teacher.py --output_dir outputs/t2v_teacher

Stages, each of which saves its state and resumes when the same command is run again: the latents of a fixed set of
clips, by the encoder of the image-to-video demo teacher; the U-Net together with the text encoder, on single
frames and then on clips; the VAE's decoder, without layers in time. The pipeline folder appears in
`OUTPUT_DIR/pipeline` when all are done. `train_t2v_turbo.py` makes a teacher of few steps of it. Data:
`vdmini_diffusers.demo.captioned_clips` (extra `teacher`).
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
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer, get_cosine_schedule_with_warmup, set_seed

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.captioned_clips import FPS, CaptionedClips, all_scenes
from vdmini_diffusers.demo.teachers import I2V_TEACHER, MULTI_STEP
from vdmini_diffusers.demo.text_to_video_networks import (
    build_t2v_scheduler,
    build_t2v_unet,
    build_text_encoder,
    build_tokenizer,
    frame_by_frame,
    start_from_image_to_video,
)
from vdmini_diffusers.demo.training_state import load_state, picture_loss, save_state, to_tensor, write_tensors
from vdmini_diffusers.models import VDMiniUNet3DConditionModel
from vdmini_diffusers.pipelines import VDMiniT2VPipeline


logger = get_logger(__name__, log_level="INFO")

# Timesteps are drawn as Stable Diffusion 3 shifts its noise levels: what moves which way is settled at the high ones.
TIMESTEP_SHIFT = 3.0


@dataclass
class Arguments:
    output_dir: Path = field(metadata={"help": "Where the state of each stage and the finished pipeline go."})
    seed: int = field(default=0, metadata={"help": "Seeds the weights, the clips and the noise."})
    num_clips: int = field(default=2048, metadata={"help": "Clips whose latents are cached."})
    image_steps: int = field(default=600, metadata={"help": "Optimiser steps on single frames, before clips."})
    clip_steps: int = field(default=3600, metadata={"help": "Optimiser steps on clips."})
    learning_rate: float = field(default=6e-4, metadata={"help": "Peak learning rate of U-Net and text encoder."})
    train_batch_size: int = field(default=2, metadata={"help": "Clips a step, or eight times as many frames."})
    proportion_empty_prompts: float = field(default=0.1, metadata={"help": "Share of samples without their caption."})
    decoder_steps: int = field(default=200, metadata={"help": "Optimiser steps of the VAE's decoder."})
    decoder_learning_rate: float = field(default=2e-4, metadata={"help": "Its peak learning rate."})
    checkpointing_steps: int = field(default=100, metadata={"help": "Save the state every so many steps."})


@torch.no_grad()
def cache_latents(args: Arguments, vae: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """Unscaled posterior means `(clips, frames, channels, height, width)`, frames, and the captions' tokens."""
    path = args.output_dir / "latents.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    clips, tokenizer = CaptionedClips(), build_tokenizer(scene.caption for scene in all_scenes())
    vae.to(device).encoder.to(memory_format=torch.channels_last)  # a third faster on a CPU
    rows = {"latents": [], "frames": [], "input_ids": []}
    for index in tqdm(range(args.num_clips), desc="latents"):
        rng = np.random.default_rng((args.seed, index))
        scene = clips.scene(rng)
        frames = clips.frames(scene, rng)
        pixels = to_tensor(frames).to(device, memory_format=torch.channels_last)
        rows["latents"].append(vae.encode(pixels).latent_dist.mean.cpu().half())
        rows["frames"].append(torch.from_numpy(frames))
        rows["input_ids"].append(tokenize(tokenizer, scene.caption))
    latents = {name: torch.stack(values) for name, values in rows.items()}
    write_tensors(latents, path)
    return latents


def tokenize(tokenizer: CLIPTokenizer, caption: str) -> torch.Tensor:
    ids = torch.tensor(tokenizer(caption).input_ids)
    return F.pad(ids, (0, tokenizer.model_max_length - len(ids)))


def train_unet(
    args: Arguments, latents: dict[str, torch.Tensor], scaling_factor: float, device: torch.device
) -> tuple[VDMiniUNet3DConditionModel, CLIPTextModel]:
    """Denoising, by v-prediction; the text encoder learns along."""
    path = args.output_dir / "unet.pt"
    set_seed(args.seed)
    tokenizer, noise_scheduler = build_tokenizer(scene.caption for scene in all_scenes()), build_t2v_scheduler()
    unet, text_encoder = build_t2v_unet(), build_text_encoder(tokenizer)
    image_to_video = UNetSpatioTemporalConditionModel.from_pretrained(
        I2V_TEACHER, subfolder="unet", variant=MULTI_STEP, dtype=torch.float32
    )
    start_from_image_to_video(unet, image_to_video)
    for model in (unet, text_encoder):
        torch.nn.Module.to(model, device).eval()  # without dropout
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    total = args.image_steps + args.clip_steps
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=1e-3, fused=True)
    lr_scheduler = get_cosine_schedule_with_warmup(optimizer, 100, total)
    ema = EMAModel(parameters, decay=0.998)
    parts: dict[str, Any] = {
        **{"unet": unet, "text_encoder": text_encoder},
        **{"optimizer": optimizer, "lr_scheduler": lr_scheduler, "ema": ema},
    }
    start = load_state(path, parts, device)
    no_words = tokenize(tokenizer, "")

    losses, started = [], time.monotonic()
    num_clips, num_frames = latents["latents"].shape[:2]
    for step in tqdm(range(start, total), initial=start, total=total, desc="unet"):
        torch.manual_seed(args.seed + 1_000_003 * (step + 1))
        if step < args.image_steps:
            rows = torch.randint(num_clips, (args.train_batch_size * num_frames,))
            x_0 = latents["latents"][rows, torch.randint(num_frames, rows.shape)][:, None]
        else:
            rows = torch.randint(num_clips, (args.train_batch_size,))
            x_0 = latents["latents"][rows]
        x_0 = (x_0.float() * scaling_factor).transpose(1, 2)  # (batch, channels, frames, height, width)
        input_ids = torch.where(
            torch.rand(len(rows), 1) < args.proportion_empty_prompts, no_words, latents["input_ids"][rows]
        )
        share = torch.rand(len(rows))
        share = TIMESTEP_SHIFT * share / (1 + (TIMESTEP_SHIFT - 1) * share)
        timesteps = (share * noise_scheduler.config.num_train_timesteps).long()
        noise = torch.randn_like(x_0)
        noisy_latents = noise_scheduler.add_noise(x_0, noise, timesteps)
        target = noise_scheduler.get_velocity(x_0, noise, timesteps)
        prompt_embeds = text_encoder(input_ids.to(device)).last_hidden_state
        prediction = unet(noisy_latents.to(device), timesteps.to(device), prompt_embeds, fps=FPS).sample
        loss = F.mse_loss(prediction, target.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        ema.step(parameters)
        losses.append(loss.item())
        if (step + 1) % args.checkpointing_steps == 0 or step + 1 == total:
            pace = (time.monotonic() - started) / (step + 1 - start)
            logger.info("unet step %d: loss %.4f, %.2f s a step", step + 1, np.mean(losses), pace)
            losses.clear()
            save_state(path, step + 1, parts)
    ema.copy_to(parameters)
    return unet, text_encoder


def train_decoder(
    args: Arguments, vae: AutoencoderKL, latents: dict[str, torch.Tensor], device: torch.device
) -> AutoencoderKL:
    """L1 on pixels and on their gradients, which keeps edges, on crops; the encoder stays as it is."""
    path = args.output_dir / "decoder.pt"
    set_seed(args.seed)
    torch.nn.Module.to(vae, device)
    optimizer = torch.optim.AdamW(
        vae.decoder.parameters(), lr=args.decoder_learning_rate, weight_decay=1e-4, fused=True
    )
    lr_scheduler = get_cosine_schedule_with_warmup(optimizer, 20, args.decoder_steps)
    parts = {"vae": vae, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
    start = load_state(path, parts, device)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    psnrs = []
    for step in tqdm(range(start, args.decoder_steps), initial=start, total=args.decoder_steps, desc="decoder"):
        torch.manual_seed(args.seed + step)
        rows = torch.randint(len(latents["latents"]), (8,))
        frames = torch.randint(latents["latents"].shape[1], rows.shape)
        z = latents["latents"][rows, frames].float()
        pixels = to_tensor(latents["frames"][rows, frames].numpy())
        if step < 0.7 * args.decoder_steps:  # quarters of frames first, which are cheap, then whole ones
            side = z.shape[-1] // 2
            top, left = torch.randint(side + 1, (2,)).tolist()
            z = z[..., top : top + side, left : left + side]
            top, left, side = factor * top, factor * left, factor * side
            pixels = pixels[..., top : top + side, left : left + side]
        pixels = pixels.to(device)
        decoded = vae.decode(z.to(device)).sample  # pyright: ignore[reportArgumentType] - any tensor
        l1_loss, gradient_loss = picture_loss(decoded, pixels)
        (l1_loss + gradient_loss).backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        psnrs.append(-10 * math.log10(F.mse_loss(decoded, pixels).item() / 4))
        if (step + 1) % args.checkpointing_steps == 0 or step + 1 == args.decoder_steps:
            logger.info("decoder step %d: psnr %.1f dB", step + 1, np.mean(psnrs))
            psnrs.clear()
            save_state(path, step + 1, parts)
    return vae


def main(args: Arguments) -> None:
    PartialState()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = AutoencoderKLTemporalDecoder.from_pretrained(I2V_TEACHER / "vae", dtype=torch.float32)
    latents = cache_latents(args, encoder, device)
    # Latents of unit variance, as the scheduler assumes.
    scaling_factor = 1 / latents["latents"].float().std().item()
    unet, text_encoder = train_unet(args, latents, scaling_factor, device)
    vae = train_decoder(args, frame_by_frame(encoder), latents, device)
    vae.register_to_config(scaling_factor=scaling_factor)
    for model in (vae, unet, text_encoder):
        model.half()
    scheduler: Any = build_t2v_scheduler()
    pipeline = VDMiniT2VPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=build_tokenizer(scene.caption for scene in all_scenes()),
        unet=unet,
        scheduler=scheduler,
    )
    pipeline.save_pretrained(args.output_dir / "pipeline")
    logger.info("saved %s", args.output_dir / "pipeline")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
