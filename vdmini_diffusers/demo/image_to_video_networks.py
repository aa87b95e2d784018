"""The networks of the image-to-video demo teacher before training: SVD's classes, with few channels."""

from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, UNetSpatioTemporalConditionModel
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection


SIZE = 64  # pixels
NUM_FRAMES = 8


def build_vae(width: int = 96) -> AutoencoderKLTemporalDecoder:
    """Two downsamplers, 64 pixels to 16 latents. With 96 channels the 32 groups of a norm hold three each, and tell
    a colour from its absence; with one or two channels a group, the last norm takes every mean away.

    Raises:
        ValueError: if `width` is not a multiple of 32, of 96 at least.
    """
    if width < 96 or width % 32:
        raise ValueError(f"`width` must be a multiple of 32, of 96 at least, not {width}.")
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType] - annotated as a tuple of one
        block_out_channels=(width, width, width),  # pyright: ignore[reportArgumentType] - the same
        layers_per_block=1,
        latent_channels=4,
        sample_size=SIZE,
    )
    start_as_thumbnail(vae, width // 32)
    return vae


@torch.no_grad()
def start_as_thumbnail(
    vae: AutoencoderKLTemporalDecoder, per_group: int, reference: float = 3.0, offset: float = 4.0
) -> None:
    """Start the VAE at what a random start needs thousands of steps to find: three of the four latents are the mean
    colours of 4 x 4 pixels, and are decoded by smooth upsampling. The rest of the network starts at random.

    Each colour leads one of the norms' groups, of `per_group` channels, in which `reference` and its negative come
    next and nothing after them: from these the last convolution reads the mean back. `offset` keeps the SiLU behind
    the norm nearly linear.
    """
    smooth = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16
    centre, mean = torch.zeros(3, 3), torch.zeros(3, 3)
    centre[1, 1], mean[:2, :2] = 1, 0.25
    used = 3 * per_group

    def carry(conv: Any, taps: torch.Tensor, stride: int = per_group) -> None:
        conv.weight[:used] = 0
        conv.bias[:used] = 0
        conv.bias[1:used:per_group], conv.bias[2:used:per_group] = reference, -reference
        for colour in range(3):
            conv.weight[per_group * colour, stride * colour] = taps

    def read(norm: nn.GroupNorm, conv: Any) -> None:
        norm.weight[:used] = (2 / per_group) ** 0.5 * reference / 4  # about a quarter of the colour
        norm.bias[:used] = offset
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
        for colour in range(3):
            for channel, share in enumerate((1.0, -0.5, -0.5)):
                conv.weight[colour, per_group * colour + channel] = 4 * share * centre

    parts: dict[str, Any] = dict(vae.named_modules())
    for name, module in parts.items():
        if name.endswith((".conv2", ".to_out.0")):  # residual blocks and attention start as the identity
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    carry(vae.encoder.conv_in, centre, stride=1)
    for i in range(len(vae.encoder.down_blocks) - 1):
        carry(parts[f"encoder.down_blocks.{i}.downsamplers.0.conv"], mean)
    read(vae.encoder.conv_norm_out, vae.encoder.conv_out)
    vae.encoder.conv_out.weight[3].normal_(std=0.02)
    vae.quant_conv.weight.copy_(torch.eye(8).view(8, 8, 1, 1))
    parts["quant_conv"].bias.copy_(torch.tensor([0.0] * 4 + [-6.0] * 4))  # little noise at first
    carry(vae.decoder.conv_in, centre, stride=1)
    for i in range(len(vae.decoder.up_blocks) - 1):
        carry(parts[f"decoder.up_blocks.{i}.upsamplers.0.conv"], smooth)
    read(vae.decoder.conv_norm_out, vae.decoder.conv_out)
    vae.decoder.time_conv_out.weight.copy_(torch.eye(3).view(3, 3, 1, 1, 1) * torch.tensor([0.0, 1, 0]).view(3, 1, 1))
    parts["decoder.time_conv_out"].bias.zero_()


def build_i2v_unet() -> UNetSpatioTemporalConditionModel:
    """SVD's four stages, narrow. The last two widths agree, as in SVD, so that the paper's plan applies."""
    return UNetSpatioTemporalConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(64, 64, 64, 64),
        num_attention_heads=(2, 2, 2, 2),
        cross_attention_dim=64,
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        num_frames=NUM_FRAMES,
    )


def build_image_encoder() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=224,  # what the SVD pipeline resizes to
            patch_size=32,
            projection_dim=64,
        )
    )


def build_i2v_scheduler() -> EulerDiscreteScheduler:
    """With SVD's settings."""
    return EulerDiscreteScheduler(
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
    )
