"""Tiny real components: SVD's own classes and four stages, narrow. Nothing is mocked."""

import numpy as np
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection


TINY_UNET_CONFIG = {
    "sample_size": 8,
    "block_out_channels": (32, 32, 64, 64),
    "num_attention_heads": (1, 1, 2, 2),
    "cross_attention_dim": 16,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
    "num_frames": 2,
}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter, as layers that start at zero or one hide errors. In place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            # Scaled so that activations keep their size through the depth of the network.
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 16
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return model


def tiny_teacher_unet() -> UNetSpatioTemporalConditionModel:
    return UNetSpatioTemporalConditionModel(**TINY_UNET_CONFIG)


def tiny_unet_inputs(batch: int = 1, frames: int = 2, height: int = 8, width: int = 8) -> tuple[torch.Tensor, ...]:
    """Positional arguments of the U-Net: sample, timestep, encoder_hidden_states, added_time_ids."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, frames, 8, height, width, generator=generator),
        torch.linspace(-1.0, 1.5, batch),
        torch.randn(batch, 1, 16, generator=generator),
        torch.rand(batch, 3, generator=generator),
    )


def tiny_svd_pipeline() -> StableVideoDiffusionPipeline:
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
        unet=randomise(tiny_teacher_unet()).eval(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            use_karras_sigmas=True,
            sigma_min=0.002,
            sigma_max=700.0,
            timestep_spacing="leading",
            timestep_type="continuous",
            steps_offset=1,
        ),
        feature_extractor=CLIPImageProcessor(),
    )


def tiny_image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
