"""The VAE of VideoCrafter2, which is Stable Diffusion's: the original names of its tensors, and its config."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from vdmini_diffusers.t2v_turbo.tensors import Source, axis_size


PREFIX = "first_stage_model."
LEVELS = 4
RENAMED = {
    r"^(\w+)\.down_blocks\.(\d)\.resnets\.": r"\1.down.\2.block.",
    r"^(\w+)\.down_blocks\.(\d)\.downsamplers\.0\.": r"\1.down.\2.downsample.",
    r"^(\w+)\.up_blocks\.(\d)\.resnets\.": r"\1.up.\2.block.",
    r"^(\w+)\.up_blocks\.(\d)\.upsamplers\.0\.": r"\1.up.\2.upsample.",
    r"\.mid_block\.resnets\.0\.": ".mid.block_1.",
    r"\.mid_block\.resnets\.1\.": ".mid.block_2.",
    r"\.mid_block\.attentions\.0\.": ".mid.attn_1.",
    r"\.group_norm\.": ".norm.",
    r"\.to_([qkv])\.": r".\1.",
    r"\.to_out\.0\.": ".proj_out.",
    r"\.conv_shortcut\.": ".nin_shortcut.",
    r"\.conv_norm_out\.": ".norm_out.",
}


def original_vae_key(key: str) -> Source:
    """The original of a tensor of [`AutoencoderKL`], without the prefix that it has in a whole checkpoint."""
    for pattern, replacement in RENAMED.items():
        key = re.sub(pattern, replacement, key)
    # The original counts the decoder's levels from the pixels, diffusers from the latents.
    return Source(re.sub(r"\.up\.(\d)\.", lambda match: f".up.{LEVELS - 1 - int(match[1])}.", key))


def vae_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config of [`AutoencoderKL`] that these tensors, under their original names, fill.

    Raises:
        OriginalCheckpointError: if the tensors by which the sizes are known are missing.
    """
    size = partial(axis_size, tensors, "VAE of VideoCrafter2")
    return {
        "down_block_types": ("DownEncoderBlock2D",) * LEVELS,
        "up_block_types": ("UpDecoderBlock2D",) * LEVELS,
        "block_out_channels": tuple(size(f"encoder.down.{level}.block.0.conv2.weight", 0) for level in range(LEVELS)),
        "layers_per_block": 2,
        "latent_channels": size("post_quant_conv.weight", 0),
        "sample_size": 512,
        "scaling_factor": 0.18215,
    }
