"""HunyuanVideo and VDMini-T2V-HY: text to video."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel

from vdmini_diffusers.families.base import Denoiser, Family
from vdmini_diffusers.families.stock import pipeline_layout


def example_inputs(config: Mapping[str, Any], num_frames: int, height: int, width: int) -> dict[str, Any]:
    """What the transformer takes for one clip of that many pixels, and a prompt of 256 tokens without padding."""
    latent_frames = (num_frames - 1) // 4 + 1
    inputs = {
        "hidden_states": torch.zeros(1, config["in_channels"], latent_frames, height // 8, width // 8),
        "timestep": torch.zeros(1, dtype=torch.long),
        "encoder_hidden_states": torch.zeros(1, 256, config["text_embed_dim"]),
        "encoder_attention_mask": torch.ones(1, 256, dtype=torch.bool),
        "pooled_projections": torch.zeros(1, config["pooled_projection_dim"]),
    }
    return inputs | ({"guidance": torch.zeros(1)} if config["guidance_embeds"] else {})


HUNYUAN_VIDEO = Family(
    name="HunyuanVideo",
    layout=pipeline_layout(HunyuanVideoPipeline),
    denoisers={
        "transformer": Denoiser("transformer", (HunyuanVideoTransformer3DModel,), HunyuanVideoTransformer3DModel)
    },
    pipeline=HunyuanVideoPipeline,
    default_plan="vdmini_hy",
    card="vdmini_t2v_hy.md",
    pipeline_tag="text-to-video",
    tags=("vdmini", "video-diffusion", "pruning", "hunyuan-video", "text-to-video"),
    example_inputs=example_inputs,
)
FAMILY = HUNYUAN_VIDEO
