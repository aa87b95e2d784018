"""Tiny text-to-video U-Nets with the four stages of VideoCrafter2, what their forward pass takes, and pipelines."""

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler
from tiny import randomise, student_of
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vdmini_diffusers import VDMiniT2VPipeline, VDMiniUNet3DConditionModel, VDMiniVideoCrafterDDIMScheduler
from vdmini_diffusers.pruning import VDMINI_UNET


# A part of CLIP's vocabulary, under its true ids: any text can be written with it.
CLIP_EXCERPT = Path(__file__).parent / "clip_excerpt"


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
# What the members of the family are conditioned on, as fields of the config and as arguments of the forward pass.
MODELSCOPE = {"time_cond_proj_dim": None, "fps_cond": False, "motion_cond_proj_dim": None}
VIDEOCRAFTER2 = {"time_cond_proj_dim": None, "motion_cond_proj_dim": None}
T2V_TURBO = {"motion_cond_proj_dim": None}
T2V_TURBO_V2 = {}
# Outer and inner stage alone, with one layer each: quick, where the paper's plan need not fit.
TWO_STAGES = {
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
}


def tiny_t2v_teacher(**config: Any) -> VDMiniUNet3DConditionModel:
    """T2V-Turbo-v2 with motion guidance, or another teacher by `config`; every tensor random."""
    return randomise(VDMiniUNet3DConditionModel(**{**TEACHER_CONFIG, **config})).eval()


def tiny_t2v_inputs(
    model: Any = None, batch: int = 2, frames: int = 3, height: int = 8, width: int = 8, dtype: Any = torch.float32
) -> dict[str, torch.Tensor]:
    """The forward pass's inputs, as far as `model` takes them; each sample has its own."""
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


@functools.cache
def _student(**config: Any) -> VDMiniUNet3DConditionModel:
    return student_of(tiny_t2v_teacher(**config), VDMINI_UNET)


def tiny_t2v_student(**config: Any) -> VDMiniUNet3DConditionModel:
    """A copy, which takes a quarter of the time that pruning a teacher does."""
    return copy.deepcopy(_student(**config))


def tiny_t2v_components(unet: Any = None) -> dict[str, Any]:
    """A pipeline's components with `unet`, by default the student; 16 x 16 pixels. The scheduler fits its kind."""
    unet = tiny_t2v_student() if unet is None else unet
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        scaling_factor=0.25,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            hidden_act="gelu",
        )
    )
    if unet.config.time_cond_proj_dim is None:
        cls = VDMiniVideoCrafterDDIMScheduler if unet.config.get("fps_cond") else DDIMScheduler
        scheduler = cls(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        )
    else:
        scheduler = LCMScheduler(original_inference_steps=200)
    return {
        "vae": randomise(vae, 1).eval(),
        "text_encoder": randomise(text_encoder, 2).eval(),
        "tokenizer": CLIPTokenizer.from_pretrained(CLIP_EXCERPT),
        "unet": unet,
        "scheduler": scheduler,
    }


def tiny_t2v_pipeline(unet: Any = None) -> VDMiniT2VPipeline:
    pipe = VDMiniT2VPipeline(**tiny_t2v_components(unet))
    pipe.set_progress_bar_config(disable=True)
    return pipe
