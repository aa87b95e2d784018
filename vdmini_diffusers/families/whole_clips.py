"""What families of text to video share whose VAE compresses a clip as a whole, time as well as space."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vdmini_diffusers.families.base import ClipShape


def clip_shape(sample: Mapping[str, Tensor], pipe: Any) -> ClipShape:
    """The clip whose latents `(frames, channels, h, w)` a precomputed sample holds."""
    num_frames, _, height, width = sample["latents"].shape
    space, time = pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal
    return ClipShape((num_frames - 1) * time + 1, height * space, width * space, float(sample["fps"]))


def sample_video(pipe: Any, prompt: str, shape: ClipShape, generator: torch.Generator) -> list[Any]:
    """The frames that `pipe` makes from a prompt with its default settings."""
    size = {"height": shape.height, "width": shape.width, "num_frames": shape.num_frames}
    return pipe(prompt, **size, generator=generator, output_type="pil").frames[0]
