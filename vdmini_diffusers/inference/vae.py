"""VAE encoders and decoders in channels-last memory, in which their convolutions are faster on a CPU."""

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import TemporalDecoder
from diffusers.models.autoencoders.vae import Decoder, Encoder

from vdmini_diffusers.inference.conditions import is_full_precision_on_cpu


def channels_last_on_cpu(sample: torch.Tensor) -> torch.Tensor:
    return sample.contiguous(memory_format=torch.channels_last) if is_full_precision_on_cpu(sample) else sample


class ChannelsLastEncoder(Encoder):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return super().forward(channels_last_on_cpu(sample))


class ChannelsLastDecoder(Decoder):
    def forward(self, sample: torch.Tensor, latent_embeds: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(channels_last_on_cpu(sample), latent_embeds)


class ChannelsLastTemporalDecoder(TemporalDecoder):
    def forward(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().forward(channels_last_on_cpu(sample), *args, **kwargs)
