"""Clips to latents and back, by the VAE of a video diffusion pipeline, of either class."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import TemporalDecoder
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn


@torch.no_grad()
def encode_for_decoder(
    batch: Mapping[str, Any], vae: AutoencoderKL | AutoencoderKLTemporalDecoder, encode_chunk_size: int = 14
) -> dict[str, Tensor]:
    """The target frames and input latents that a VAE's decoder is trained on.

    Args:
        batch: `pixel_values` `(batch, frames, 3, height, width)`, -1 to 1.
        encode_chunk_size: number of frames that the VAE encodes at once.

    Returns:
        `pixel_values`: the target frames, uint8, 0 to 255. `latents` `(batch, frames, channels, h, w)`: the mode of
        the VAE's posterior, as for U-Nets, but not scaled.

    Raises:
        ValueError: if the shape of `pixel_values` does not fit the VAE.
    """
    videos = checked_videos(batch, vae)
    with upcast(vae):
        latents = encode_modes(vae, videos.flatten(0, 1), encode_chunk_size).unflatten(0, videos.shape[:2])
    return {"pixel_values": ((videos + 1) * 127.5).round().to(torch.uint8), "latents": latents}


def checked_videos(batch: Mapping[str, Any], vae: AutoencoderKL | AutoencoderKLTemporalDecoder) -> Tensor:
    """The batch's `pixel_values`. Raises `ValueError` if their shape does not fit."""
    videos = batch["pixel_values"]
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if videos.ndim != 5 or videos.shape[3] % factor or videos.shape[4] % factor:
        raise ValueError(
            f"pixel_values should be (batch, frames, 3, height, width), height and width multiples of {factor}; got "
            f"{tuple(videos.shape)}."
        )
    return videos


def encode_whole_clips(batch: Mapping[str, Any], pipe: Any, generators: Sequence[torch.Generator] | None) -> Tensor:
    """Latents `(batch, frames, channels, h, w)` by a VAE that compresses time as well, one clip at a time; float32.

    They are drawn from the VAE's posterior, and not scaled.

    Args:
        pipe: pipeline whose VAE is used.
        generators: one for each sample, so that a sample does not depend on its batch.

    Raises:
        ValueError: if the videos' shape does not fit the VAE, or the number of captions or generators does not fit
            the batch.
    """
    videos, vae = batch["pixel_values"], pipe.vae
    space, time = 2 * pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal  # a token is 2 x 2 latents
    if videos.ndim != 5 or (videos.shape[1] - 1) % time or videos.shape[3] % space or videos.shape[4] % space:
        raise ValueError(
            f"pixel_values should be (batch, frames, 3, height, width), with one frame more than a multiple of {time},"
            f" and height and width multiples of {space}; got {tuple(videos.shape)}."
        )
    if len(batch["caption"]) != len(videos) or (generators is not None and len(generators) != len(videos)):
        raise ValueError(f"One caption and one generator for each of the {len(videos)} samples is needed.")
    latents = []
    for i, clip in enumerate(videos.transpose(1, 2)):  # (3, frames, height, width)
        posterior = vae.encode(clip[None].to(vae.device, vae.dtype)).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        noise = randn_tensor(mean.shape, None if generators is None else generators[i], mean.device, mean.dtype)
        latents.append((mean + std * noise).transpose(1, 2))
    return torch.cat(latents)


def encode_modes(vae: AutoencoderKL | AutoencoderKLTemporalDecoder, images: Tensor, chunk_size: int) -> Tensor:
    """(n, 3, height, width) to (n, channels, h, w)"""
    chunks = images.to(vae.device, vae.dtype).split(chunk_size)
    return torch.cat([vae.encode(chunk).latent_dist.mode() for chunk in chunks])


@contextmanager
def upcast(vae: AutoencoderKL | AutoencoderKLTemporalDecoder) -> Iterator[None]:
    """Run the VAE in float32 inside the block, if it is in float16 and would overflow."""
    needed = vae.dtype == torch.float16 and vae.config.force_upcast
    if needed:
        vae.float()
    try:
        yield
    finally:
        if needed:
            vae.half()


def decode_clips(decoder: nn.Module, latents: Tensor) -> Tensor:
    """Decode `(batch, frames, channels, h, w)` to `(batch, frames, 3, height, width)`, all frames at once.

    Args:
        decoder: a VAE's decoder, which may be wrapped for training.
        latents: latents that are not scaled; those of an `AutoencoderKL` went through its `post_quant_conv`.
    """
    shape = latents.shape[:2]
    if isinstance(extract_model_from_parallel(decoder, keep_torch_compile=False), TemporalDecoder):
        indicator = latents.new_zeros(shape)
        frames = decoder(latents.flatten(0, 1), num_frames=shape[1], image_only_indicator=indicator)
    else:
        frames = decoder(latents.flatten(0, 1))
    return frames.unflatten(0, shape)
