"""PatchGAN (Isola et al., 2017; VQGAN): a discriminator of patches, of single frames or of clips."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn


SMALLEST = 24  # pixels: below this the last layer has no output


class PatchDiscriminator(nn.Module):
    """Strided convolutions, whose outputs each see a patch of 70 x 70 pixels.

    It has group norm instead of batch norm, as a batch is a few clips, whose frames are alike.

    Args:
        kind: `"per_frame"`, or `"3d"`, whose every layer also sees the frames before and after.
        width: channels of the first layer, which are doubled up to three times.
    """

    def __init__(self, kind: Literal["per_frame", "3d"] = "per_frame", width: int = 64):
        super().__init__()
        self.kind = kind
        layers: list[nn.Module] = [self._convolution(3, width, stride=2), nn.LeakyReLU(0.2)]
        for narrow, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
            wide = min(2 * narrow, 8 * width)
            groups = math.gcd(32, max(1, wide // 8))
            layers += [self._convolution(narrow, wide, stride), nn.GroupNorm(groups, wide), nn.LeakyReLU(0.2)]
        layers.append(self._convolution(8 * width, 1, stride=1))
        self.layers = nn.Sequential(*layers)

    def _convolution(self, in_channels: int, out_channels: int, stride: int) -> nn.Module:
        if self.kind == "per_frame":
            return nn.Conv2d(in_channels, out_channels, 4, stride, padding=1)
        return nn.Conv3d(in_channels, out_channels, (3, 4, 4), (1, stride, stride), padding=1)

    @staticmethod
    def check_size(size: tuple[int, int]) -> None:
        """Raises `ValueError` for a height and width below the size of one patch."""
        if min(size) < SMALLEST:
            raise ValueError(f"A discriminator of patches needs {SMALLEST} pixels or more; the clips have {size}.")

    def forward(self, features: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Logits `(batch, patches)` for `{"clips": (batch, frames, 3, h, w)}`, in a list with one element."""
        (clips,) = features.values()
        clips = clips.to(next(self.parameters()).dtype)
        logits = self.layers(clips.flatten(0, 1) if self.kind == "per_frame" else clips.transpose(1, 2))
        return [logits.reshape(len(clips), -1)]
