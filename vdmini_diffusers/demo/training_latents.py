"""Latents of the clips that demo teachers and their students are trained on, as the training scripts read them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from vdmini_diffusers.data.latents import LatentShards
from vdmini_diffusers.data.vae_clips import encode_for_decoder
from vdmini_diffusers.demo.scenes import draw_captioned_clip, draw_hidden_clip
from vdmini_diffusers.families import find_trainable_family
from vdmini_diffusers.pruning.vae_folder import find_vae
from vdmini_diffusers.serialization.hashes import weights_sha256


CLIPS_PER_SHARD = 32
Sample = tuple[str, dict[str, torch.Tensor]]  # caption, and tensors of a batch of one


def write_training_latents(
    folder: str | os.PathLike, teacher: str | os.PathLike, num_clips: int, seed: int = 0
) -> Path:
    """Draw clips, encode them as the teacher is trained on them (by its VAE and image or text encoder), and return the
    folder, for `--precomputed_data_dir`. Shards that are there from an earlier start are kept.

    Raises:
        ImportError: without the packages that the photographs come with (extra `teacher`).
        ValueError: if the folder holds latents of other encoders, another number or seed.
    """
    family = find_trainable_family(str(teacher))
    pipe: Any = family.pipeline.from_pretrained(teacher, unet=None, dtype=torch.float32)
    encoders = [weights_sha256(model) for model in pipe.components.values() if isinstance(model, torch.nn.Module)]
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    fps = 7 if family.given == "image" else 8  # the defaults of the two pipelines

    def draw(index: int) -> Sample:
        frames, caption = draw_training_clip(family.given, index, seed)
        batch = {"pixel_values": as_values(frames), "caption": [caption], "fps": [fps], "motion_bucket_id": [127]}
        encoded = family.encode(batch, pipe, [torch.Generator().manual_seed(index)])
        encoded.pop("caption", None)
        return caption, {name: tensor.cpu() for name, tensor in encoded.items()}

    return _write(folder, {"num_clips": num_clips, "seed": seed, "encoders": encoders}, draw)


def write_decoder_clips(folder: str | os.PathLike, teacher: str | os.PathLike, num_clips: int, seed: int = 0) -> Path:
    """The same for fine-tuning a VAE's decoder: clips, and their latents by the teacher's VAE."""
    vae = find_vae(str(teacher)).load()

    def draw(index: int) -> Sample:
        frames, caption = draw_training_clip("image", index, seed)
        return caption, encode_for_decoder({"pixel_values": as_values(frames)}, vae)

    return _write(folder, {"num_clips": num_clips, "seed": seed, "encoders": [weights_sha256(vae)]}, draw)


def draw_training_clip(given: Literal["image", "text"], index: int, seed: int = 0) -> tuple[np.ndarray, str]:
    """The clip that latents number `index` are of, uint8 `(16, 64, 64, 3)`, and its caption."""
    draw = draw_hidden_clip if given == "image" else draw_captioned_clip
    return draw(np.random.default_rng((seed, 11, index)))


def as_values(frames: np.ndarray) -> torch.Tensor:
    """`(1, frames, 3, height, width)`, -1 to 1."""
    return torch.from_numpy(frames).movedim(-1, 1)[None] / 127.5 - 1


def _write(folder: str | os.PathLike, settings: dict[str, Any], draw: Callable[[int], Sample]) -> Path:
    num_clips = settings["num_clips"]
    shards = LatentShards(folder, settings)
    bar = tqdm(total=num_clips, desc="latents", unit="clip")
    for shard, start in enumerate(range(0, num_clips, CLIPS_PER_SHARD)):
        rows = range(start, min(start + CLIPS_PER_SHARD, num_clips))
        if not shards.is_finished(shard):
            samples, infos = [], []
            for i in rows:
                caption, tensors = draw(i)
                samples.append({name: tensor[0] for name, tensor in tensors.items()})
                infos.append({"name": str(i), "caption": caption})
                bar.update()
            shards.write(shard, samples, infos)
        else:
            bar.update(len(rows))
    bar.close()
    shards.finish([])
    return Path(folder)
