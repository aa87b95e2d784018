"""Group norms of channels-last input with the accuracy that torch's have of contiguous input."""

import torch
from torch import nn

from vdmini_diffusers.inference.conditions import Rewrite, is_full_precision_on_cpu, is_inference
from vdmini_diffusers.models.autoencoder_kl_vdmini import ClipGroupNorm


CHUNK = 2**15  # elements that fit into a core's cache


class ChannelsLastGroupNorm(Rewrite, nn.GroupNorm):
    """Moments about a mean of few positions from sums over chunks, which are added in float64.

    On a CPU torch adds all positions of a channels-last frame one after the other, and their squares: at 256 x 384
    positions the result is 50 dB further from the exact one than that of contiguous input, and more where the mean is
    larger than the deviations from it.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(input.ndim)
        if not (
            is_inference()
            and layout is not None
            and is_full_precision_on_cpu(input)
            and input.is_contiguous(memory_format=layout)
            and not input.is_contiguous()
            and self.affine
            and not torch.compiler.is_compiling()  # which would unroll the chunks of one size
        ):
            return super().forward(input)
        rows = input.movedim(1, -1)
        scale, shift = self._scale_and_shift(rows.flatten(1, -2))
        ones = (1,) * (input.ndim - 2)
        return torch.addcmul(
            shift.view(-1, *ones, shift.shape[-1]), rows, scale.view(-1, *ones, scale.shape[-1])
        ).movedim(-1, 1)

    def _scale_and_shift(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each channel's factor and shift, `(batch, channels)`; `rows`: `(batch, positions, channels)`."""
        batch, positions, channels = rows.shape
        size = max(CHUNK // channels, 1)
        near = rows[:, :size].mean(1)  # (batch, channels): squares of all values would round off their deviations
        sums = []
        for one, center in zip(rows, near, strict=True):
            for chunk in one.split(size):
                deviation = chunk - center
                sums += [deviation.sum(0), deviation.square_().sum(0)]
        shape = (batch, -1, 2, self.num_groups, channels // self.num_groups)
        offset, square = (torch.stack(sums).view(shape).sum(1, dtype=torch.float64) / positions).unbind(1)
        means = near.view(offset.shape) + offset  # of channels, (batch, groups, channels of a group)
        mean = means.mean(2, keepdim=True)
        var = (square - offset**2 + (means - mean) ** 2).mean(2, keepdim=True)
        scale = self.weight.view(offset.shape[1:]) * (var + self.eps).rsqrt()
        shift = self.bias.view(offset.shape[1:]) - mean * scale
        return scale.flatten(1).to(rows.dtype), shift.flatten(1).to(rows.dtype)


class ChannelsLastClipGroupNorm(ChannelsLastGroupNorm, ClipGroupNorm):
    """The same of the norms in our decoders, which while tiling go by what they measured of the whole clip."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) if self.frames is None else ClipGroupNorm.forward(self, input)
