"""A VAE small enough to be decoded in tiles thousands of times, and clips for it."""

import torch
from tiny import randomise, tiny_latents

from vdmini_diffusers import VDMiniAutoencoderKLTemporalDecoder


# What makes the default student the VAE of Stable Video Diffusion again
FULL_STOCK = {
    "decoder_block_out_channels": (128, 256, 512, 512),
    "decoder_layers_per_block": (3, 3, 3, 3),
    "decoder_upsample_out_channels": (256, 512, 512),
    "decoder_mid_layers": 2,
    "decoder_mid_attention": True,
}


def tiny_tiled_vae(mid_layers: int = 0, attention: bool = False) -> VDMiniAutoencoderKLTemporalDecoder:
    vae = VDMiniAutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2,
        block_out_channels=(32, 32),
        layers_per_block=1,
        decoder_block_out_channels=(32, 64),
        decoder_layers_per_block=(1, 1),
        decoder_upsample_out_channels=(32,),
        decoder_mid_layers=mid_layers,
        decoder_mid_attention=attention,
    )
    return randomise(vae).eval()


def moving_latents(frames: int, height: int, width: int) -> torch.Tensor:
    """With structure of all sizes: parts of the clip differ in brightness and contrast."""
    noise = tiny_latents(frames, height, width)
    slope = torch.linspace(0.2, 2, width) * torch.linspace(1, 0.5, height)[:, None]
    return slope * noise + 2 * slope + 0.1 * torch.arange(frames)[:, None, None, None]
