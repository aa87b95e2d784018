"""Latents to frames, by the decoder of either kind of VAE."""

from accelerate.utils import extract_model_from_parallel
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import TemporalDecoder
from torch import Tensor, nn


def decode_clips(decoder: nn.Module, latents: Tensor) -> Tensor:
    """`(batch, frames, channels, h, w)` to `(batch, frames, 3, height, width)`, all frames at once.

    Args:
        decoder: perhaps wrapped for training.
        latents: not scaled. For an `AutoencoderKL`, what its `post_quant_conv` made of them.
    """
    shape = latents.shape[:2]
    if isinstance(extract_model_from_parallel(decoder), TemporalDecoder):
        indicator = latents.new_zeros(shape)
        frames = decoder(latents.flatten(0, 1), num_frames=shape[1], image_only_indicator=indicator)
    else:
        frames = decoder(latents.flatten(0, 1))
    return frames.unflatten(0, shape)
