"""Critics' trainable parts (Fig. 2): spatial and temporal heads on features of a frozen backbone, or on latents.

Layer sizes are not printed in the paper nor in SF-V. These are LADD-like: a convolution, a residual one, logits, with
group norm, as video batches are small.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


NOISE_FREQUENCIES = 64
Layer = TypeVar("Layer", bound=nn.Module)


class Head(nn.Module):
    """Features to logits: `(n, channels, ...)` to `(n, 1, ...)`, by 1D or 2D convolutions of one kernel size.

    With a condition `(n, width)` the logit gets the projection term of cGANs: the inner product of the last features
    with the condition. The last layer starts at zero: a head is silent until it has learned something.
    """

    def __init__(self, dimensions: int, channels: int, width: int, kernel_size: int):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:  # an even one would put out another size than it takes
            raise ValueError(f"The kernel sizes of a discriminator's heads are odd, not {kernel_size}.")
        convolution = (nn.Conv1d, nn.Conv2d)[dimensions - 1]
        groups = math.gcd(32, max(1, width // 8))  # eight channels a group: fewer would erase the means of channels
        self.conv_in = convolution(channels, width, kernel_size, padding=kernel_size // 2)
        self.norm_in = nn.GroupNorm(groups, width)
        self.conv = convolution(width, width, kernel_size, padding=kernel_size // 2)
        self.norm = nn.GroupNorm(groups, width)
        self.conv_out = zeroed(convolution(width, 1, 1))
        self.act = nn.LeakyReLU(0.2)

    def forward(self, features: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        hidden = self.act(self.norm_in(self.conv_in(features)))
        hidden = hidden + self.act(self.norm(self.conv(hidden)))
        condition = condition.view(*condition.shape, *[1] * (hidden.ndim - 2))
        projection = (hidden * condition).sum(dim=1, keepdim=True) / hidden.shape[1] ** 0.5
        return self.conv_out(hidden) + projection


class DiscriminatorHeads(ModelMixin, ConfigMixin):
    """A spatial and a temporal head per feature (SF-V's 4 + 4 on a U-Net's four down blocks).

    Spatial heads see each frame, temporal heads each place over the frames. Both are conditioned by projection on the
    image (or text) embedding and the noise level, the spatial ones on the frame's index as well.

    Args:
        channels: number of channels of each feature, by its name.
        condition_dim: width of the condition, e.g. CLIP's image embedding.
        width: channels of the heads' hidden layers.
        spatial, temporal: which heads there are. With spatial ones alone, videos freeze (SF-V, ablation).
        spatial_kernel_size, temporal_kernel_size: kernel sizes of the heads. A temporal kernel of 1 makes the head
            the learnable MLP of section 3.3, which ignores the order of the frames.
        features: the features that they learned on, in words; None if unknown.
    """

    @register_to_config
    def __init__(
        self,
        channels: dict[str, int],
        condition_dim: int,
        width: int = 256,
        spatial: bool = True,
        temporal: bool = True,
        spatial_kernel_size: int = 3,
        temporal_kernel_size: int = 3,
        features: str | None = None,
    ):
        super().__init__()
        if not (spatial or temporal):
            raise ValueError("A discriminator needs spatial or temporal heads, or both.")
        self.embed_noise = _embedding(width)
        self.embed_condition = zeroed(nn.Linear(condition_dim, width))
        self.embed_frame = _embedding(width)
        # Module names hold no dots.
        self.spatial_heads = nn.ModuleDict(
            {_key(name): Head(2, size, width, spatial_kernel_size) for name, size in channels.items() if spatial}
        )
        self.temporal_heads = nn.ModuleDict(
            {_key(name): Head(1, size, width, temporal_kernel_size) for name, size in channels.items() if temporal}
        )

    def forward(
        self, features: Mapping[str, torch.Tensor], noise_levels: torch.Tensor, condition: torch.Tensor
    ) -> list[torch.Tensor]:
        """One `(batch, logits)` per head, spatial ones first.

        Args:
            features: `(batch * frames, channels, height, width)` each; or tokens in their grid, `(batch, frames,
                height, width, channels)`.
            noise_levels: `(batch,)`, as the backbone is conditioned on them: 0.25 ln sigma for EDM models.
            condition: `(batch, condition_dim)`.
        """
        batch = len(noise_levels)
        dtype = self.embed_condition.weight.dtype
        # 0.25 ln sigma lies within -2 and 2; sinusoids are made for hundreds.
        levels = get_timestep_embedding(100 * noise_levels, NOISE_FREQUENCIES).to(dtype)
        condition = self.embed_noise(levels) + self.embed_condition(condition.to(dtype))

        logits = []
        for name in self.config.channels:
            feature = _frames_of(features[name].to(dtype), batch)
            frames, _, height, width = feature.shape[1:]
            if self.config.spatial:
                index = torch.arange(frames, device=condition.device)
                frame = self.embed_frame(get_timestep_embedding(index, NOISE_FREQUENCIES).to(dtype))
                per_frame = (condition[:, None] + frame[None]).flatten(0, 1)
                logits.append(self.spatial_heads[_key(name)](feature.flatten(0, 1), per_frame))
            if self.config.temporal:
                places = feature.permute(0, 3, 4, 2, 1).flatten(0, 2)  # (batch * places, channels, frames)
                per_place = condition.repeat_interleave(height * width, dim=0)
                logits.append(self.temporal_heads[_key(name)](places, per_place))
        return [logit.reshape(batch, -1) for logit in logits]


class LatentDiscriminator(ModelMixin, ConfigMixin):
    """A critic without a backbone, for models too large to be one: a small pyramid on the latents, with heads.

    Takes the noisy latents, scaled to unit variance, as its only feature.

    Args:
        in_channels: number of channels of the latents.
        condition_dim: as for [`DiscriminatorHeads`].
        widths: channels of the pyramid's levels, each at half the size of the one before.
        temporal_kernel_size, features: as for [`DiscriminatorHeads`].
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int,
        condition_dim: int,
        widths: Sequence[int] = (64, 128, 256),
        temporal_kernel_size: int = 3,
        features: str | None = None,
    ):
        super().__init__()
        sizes = (in_channels, *widths)
        self.levels = nn.ModuleList(
            nn.Conv2d(narrow, wide, 4, stride=2, padding=1) for narrow, wide in itertools.pairwise(sizes)
        )
        self.act = nn.LeakyReLU(0.2)
        channels = {str(i): width for i, width in enumerate(widths)}
        self.heads = DiscriminatorHeads(channels, condition_dim, widths[-1], temporal_kernel_size=temporal_kernel_size)

    def forward(
        self, features: Mapping[str, torch.Tensor], noise_levels: torch.Tensor, condition: torch.Tensor
    ) -> list[torch.Tensor]:
        (hidden,) = features.values()
        pyramid = {}
        for i, level in enumerate(self.levels):
            hidden = self.act(level(hidden.to(self.heads.dtype)))
            pyramid[str(i)] = hidden
        return self.heads(pyramid, noise_levels, condition)


def _embedding(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(NOISE_FREQUENCIES, width), nn.SiLU(), zeroed(nn.Linear(width, width)))


def zeroed(layer: Layer) -> Layer:
    """The layer, with all its parameters zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _frames_of(feature: torch.Tensor, batch: int) -> torch.Tensor:
    """A feature of either layout as `(batch, frames, channels, height, width)`, without a copy."""
    return feature.movedim(-1, 2) if feature.ndim == 5 else feature.unflatten(0, (batch, -1))


def _key(name: str) -> str:
    return name.replace(".", "_")
