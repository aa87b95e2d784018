"""VAE encoders and decoders in channels-last memory, in which their convolutions are faster on a CPU."""

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import TemporalDecoder
from diffusers.models.autoencoders.vae import Decoder, Encoder

from vdmini_diffusers.inference.conditions import Rewrite, is_inference


# Where channels last was measured: in bfloat16 a decoder is 1.9 times faster (`benchmarks/opt_ins.py`).
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def channels_last_on_cpu(sample: torch.Tensor) -> torch.Tensor:
    is_faster = sample.device.type == "cpu" and sample.dtype in DTYPES and is_inference()
    return sample.contiguous(memory_format=torch.channels_last) if is_faster else sample


class ChannelsLastEncoder(Rewrite, Encoder):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return super().forward(channels_last_on_cpu(sample))


class ChannelsLastDecoder(Rewrite, Decoder):
    def forward(self, sample: torch.Tensor, latent_embeds: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(channels_last_on_cpu(sample), latent_embeds)


class ChannelsLastTemporalDecoder(Rewrite, TemporalDecoder):
    def forward(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().forward(channels_last_on_cpu(sample), *args, **kwargs)
