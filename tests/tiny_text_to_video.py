"""Tiny text-to-video U-Nets with the four stages of VideoCrafter2, and what their forward pass takes."""

from typing import Any

import torch
from tiny import randomise

from vdmini_diffusers import VDMiniUNet3DConditionModel


# Two channels in each group of the norms: with one, a norm takes away every bias before it.
STOCK_CONFIG = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 64, 64),
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
}
TEACHER_CONFIG = {
    **STOCK_CONFIG,
    "down_block_types": ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
    "up_block_types": ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
    "layers_per_block": 2,
    "mid_block_type": "UNetMidBlock3DCrossAttn",
    "time_cond_proj_dim": 12,
    "fps_cond": True,
    "motion_cond_proj_dim": 10,
}
# What the members of the family are told, as fields of the config and as arguments of the forward pass.
MODELSCOPE = {"time_cond_proj_dim": None, "fps_cond": False, "motion_cond_proj_dim": None}
VIDEOCRAFTER2 = {"time_cond_proj_dim": None, "motion_cond_proj_dim": None}
T2V_TURBO = {"motion_cond_proj_dim": None}
T2V_TURBO_V2 = {}


def tiny_t2v_teacher(**config: Any) -> VDMiniUNet3DConditionModel:
    """T2V-Turbo-v2 with motion guidance, or another teacher by `config`; every tensor random."""
    return randomise(VDMiniUNet3DConditionModel(**{**TEACHER_CONFIG, **config})).eval()


def tiny_t2v_inputs(
    model: Any = None, batch: int = 2, frames: int = 3, height: int = 8, width: int = 8, dtype: Any = torch.float32
) -> dict[str, torch.Tensor]:
    """Of the forward pass, as far as `model` takes them; each sample with its own."""
    generator = torch.Generator().manual_seed(1)
    config = getattr(model, "config", TEACHER_CONFIG)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    inputs = {
        "sample": normal(batch, 4, frames, height, width),
        "timestep": torch.tensor([999, 459])[:batch],
        "encoder_hidden_states": normal(batch, 5, 16),
    }
    if config.get("time_cond_proj_dim"):
        inputs["timestep_cond"] = normal(batch, config["time_cond_proj_dim"])
    if config.get("motion_cond_proj_dim"):
        inputs["motion_cond"] = normal(batch, config["motion_cond_proj_dim"])
    if config.get("fps_cond"):
        inputs["fps"] = torch.tensor([8, 24])[:batch]
    return inputs
