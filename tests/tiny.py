"""Tiny real components: SVD's own classes and four stages, narrow. Nothing is mocked."""

from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    StableVideoDiffusionPipeline,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from vdmini_diffusers import (
    VDMiniAutoencoderKL,
    VDMiniAutoencoderKLTemporalDecoder,
    VDMiniUNet3DConditionModel,
    VDMiniUNetSpatioTemporalConditionModel,
)
from vdmini_diffusers.demo.networks import build_i2v_scheduler
from vdmini_diffusers.pruning import DecoderPruningPlan, UNetPruningPlan


TINY_UNET_CONFIG = {
    "sample_size": 8,
    "block_out_channels": (32, 32, 64, 64),
    "num_attention_heads": (1, 1, 2, 2),
    "cross_attention_dim": 16,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
    "num_frames": 2,
}
# Outer and inner stage alone, with one layer each: quick, where the paper's plan need not fit.
TWO_STAGES = {
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "block_out_channels": (32, 64),
    "num_attention_heads": (1, 2),
    "layers_per_block": 1,
}

# Four stages whose widths agree and differ where those of SVD's VAE do.
TINY_VAE_CONFIGS = {
    "temporal": {"block_out_channels": (64, 96, 128, 128), "layers_per_block": 2, "sample_size": 16},
    "image": {"block_out_channels": (16, 24, 32, 32), "layers_per_block": 2, "sample_size": 16, "norm_num_groups": 8},
}
VAE_CLASSES = {  # stock and ours
    "temporal": (AutoencoderKLTemporalDecoder, VDMiniAutoencoderKLTemporalDecoder),
    "image": (AutoencoderKL, VDMiniAutoencoderKL),
}


def tiny_decoder_plans(kind: str) -> dict[str, DecoderPruningPlan]:
    """Like the paper's, which folds both shortcuts away; and one that keeps them and all of the mid block."""
    n = {"temporal": 32, "image": 8}[kind]  # the groups of the norms
    up = {0: (0, 1, 2), 1: (0, 2), 2: (0, 1, 2), 3: (0,)}
    folds = DecoderPruningPlan("folds", (0,), False, up, (4 * n, 3 * n, 2 * n, n), (3 * n, 2 * n, n))
    up = {0: (0, 1, 2), 1: (1, 2), 2: (0, 2), 3: (0, 1)}
    keeps = DecoderPruningPlan("keeps", (0, 1), True, up, (3 * n, 3 * n, 2 * n, n), (3 * n, 3 * n, 2 * n))
    return {plan.name: plan for plan in (folds, keeps)}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter, as layers that start at zero or one hide errors. In place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            # Scaled so that activations keep their size through the depth of the network.
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 16
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return model


def in_own_memory(model: nn.Module) -> nn.Module:
    """Let every weight begin where an allocator puts it. In place; returns `model`.

    Those of a file are mapped from wherever they stand in it, and the kernels of some CPUs (with AVX2 alone) round
    differently there, so that equal weights give outputs that differ in the last bit.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def tiny_teacher_unet(**config: Any) -> UNetSpatioTemporalConditionModel:
    return UNetSpatioTemporalConditionModel(**{**TINY_UNET_CONFIG, **config})


def tiny_unet_inputs(
    batch: int = 1, frames: int = 2, height: int = 8, width: int = 8, tokens: int = 1
) -> tuple[torch.Tensor, ...]:
    """Positional arguments of the U-Net: sample, timestep, encoder_hidden_states, added_time_ids.

    SVD has one token, to which all attend alike; with more, the queries and keys of cross-attention matter as well.
    """
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, frames, 8, height, width, generator=generator),
        torch.linspace(-1.0, 1.5, batch),
        torch.randn(batch, tokens, 16, generator=generator),
        torch.rand(batch, 3, generator=generator),
    )


def tiny_teacher_vae(kind: str = "temporal") -> AutoencoderKLTemporalDecoder | AutoencoderKL:
    """With random tensors."""
    config = {"down_block_types": ("DownEncoderBlock2D",) * 4, **TINY_VAE_CONFIGS[kind]}
    if kind == "image":
        config["up_block_types"] = ("UpDecoderBlock2D",) * 4
    return randomise(VAE_CLASSES[kind][0](**config)).eval()


def tiny_latents(frames: int = 2, height: int = 2, width: int = 3) -> torch.Tensor:
    return torch.randn(frames, 4, height, width, generator=torch.Generator().manual_seed(1))


def decode(vae: nn.Module, latents: torch.Tensor, num_frames: int | None = None) -> torch.Tensor:
    """By either kind of VAE; all latents are frames of one clip by default."""
    if isinstance(vae, AutoencoderKLTemporalDecoder):
        return vae.decode(latents, num_frames=num_frames or len(latents)).sample
    return vae.decode(latents).sample


def tiny_svd_pipeline(**unet_config: Any) -> StableVideoDiffusionPipeline:
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 32), layers_per_block=1, sample_size=16
    )
    image_encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=224,
            patch_size=56,
            projection_dim=16,
        )
    )
    return StableVideoDiffusionPipeline(
        vae=randomise(vae, 1).eval(),
        image_encoder=randomise(image_encoder, 2).eval(),
        unet=randomise(tiny_teacher_unet(**unet_config)).eval(),
        scheduler=build_i2v_scheduler(),
        feature_extractor=CLIPImageProcessor(),
    )


def tiny_image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


class IdentityMidBlock(nn.Module):
    """What a hand puts in the place of a removed mid block."""

    def forward(self, hidden_states: torch.Tensor, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        return hidden_states


def cut_by_hand(teacher: Any, plan: UNetPruningPlan) -> Any:
    """The teacher with module list entries deleted, in place: knows no student config and no weight map."""
    num_stages = len(teacher.down_blocks)
    for name, kept in (("down_blocks", plan.down), ("up_blocks", plan.up)):
        stages = getattr(teacher, name)
        for stage, layers in kept.items():
            for lists in ("resnets", "temp_convs", "attentions", "temp_attentions"):
                if hasattr(stages[stage], lists):
                    entries = getattr(stages[stage], lists)
                    setattr(stages[stage], lists, nn.ModuleList(entries[layer] for layer in layers))
        setattr(teacher, name, nn.ModuleList(stages[stage] for stage in kept))
    if len(teacher.down_blocks) < num_stages:
        teacher.down_blocks[-1].downsamplers = None
        if isinstance(teacher, UNet3DConditionModel):
            teacher.num_upsamplers = len(teacher.down_blocks) - 1
    if not plan.keep_mid:
        teacher.mid_block = IdentityMidBlock()
    return teacher


def student_of(teacher: nn.Module, plan: UNetPruningPlan) -> Any:
    """The student that `plan` makes of `teacher`, with the teacher's tensors, in the teacher's dtype."""
    text_to_video = isinstance(teacher, UNet3DConditionModel)
    student_class = VDMiniUNet3DConditionModel if text_to_video else VDMiniUNetSpatioTemporalConditionModel
    student = student_class.from_config(plan.student_config(teacher.config))
    tensors = teacher.state_dict()
    keys = plan.weight_map(student.state_dict())
    student.load_state_dict({student_key: tensors[teacher_key] for student_key, teacher_key in keys.items()})
    return student.to(teacher.dtype).eval()


@torch.no_grad()
def output_of(model, **shape):
    return model(*tiny_unet_inputs(**{"tokens": 2, **shape})).sample


def assert_close(output, expected):
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
