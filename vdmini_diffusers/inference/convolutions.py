"""Convolutions with fewer products or less copying than the stock ones, in channels-last memory."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from torch import nn

from vdmini_diffusers.inference.conditions import Rewrite, is_full_precision_on_cpu, is_inference, is_plain


# Where the rewrites won on a CPU.
MIN_POSITIONS = 256  # of a frame
MAX_POSITIONS_OF_UNFOLDED = 400  # of all frames


class TemporalConv3d(Rewrite, nn.Conv3d):
    """A convolution over three frames as matrix products: `y_f = W_0 x_(f-1) + W_1 x_f + W_2 x_(f+1) + b`.

    The stock kernel takes such a convolution for a general one. Here each product runs over all positions of all
    frames at once, shifted by a frame and accumulated in place. The result has the memory format of the input.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        positions = input.shape[-2] * input.shape[-1]
        if not (
            is_inference()
            and positions >= MIN_POSITIONS
            and input.ndim == 5
            and is_full_precision_on_cpu(input)
            and type(self.weight) is nn.Parameter
        ):
            return super().forward(input)
        channels_last = input.is_contiguous(memory_format=torch.channels_last_3d)
        if not (channels_last or input.is_contiguous()):
            return super().forward(input)
        batch, channels, frames, height, width = input.shape
        weights = self.weight.flatten(2).permute(2, 0, 1).contiguous()  # (3, out_channels, channels)
        if channels_last:
            rows = input.permute(0, 2, 3, 4, 1).reshape(batch, frames * positions, channels).transpose(1, 2)
            output = rows.new_empty(batch, frames * positions, self.out_channels).transpose(1, 2)
        else:
            rows = input.reshape(batch, channels, frames * positions)
            output = rows.new_empty(batch, self.out_channels, frames * positions)
        for x, y in zip(rows, output, strict=True):
            add_temporal_products(y, x, weights, self.bias, positions)
        if channels_last:
            return output.transpose(1, 2).unflatten(1, (frames, height, width)).permute(0, 4, 1, 2, 3)
        return output.unflatten(2, (frames, height, width))

    def replaces(self: nn.Conv3d) -> bool:
        geometry = (self.kernel_size, self.padding, self.stride, self.dilation, self.groups, self.padding_mode)
        return geometry == ((3, 1, 1), (1, 0, 0), (1, 1, 1), (1, 1, 1), 1, "zeros")


def add_temporal_products(
    y: torch.Tensor, x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None, positions: int
) -> None:
    """Write the convolution of `x`, `(channels, frames * positions)`, into `y`, which has the output's channels."""
    before, same, after = weights
    if bias is None:
        y.addmm_(same, x, beta=0)
    else:  # what `torch.addmm(..., out=y)` does, which does not compile for channels-last memory
        y.copy_(bias[:, None]).addmm_(same, x)
    if x.shape[1] > positions:
        y[:, positions:].addmm_(before, x[:, :-positions])
        y[:, :-positions].addmm_(after, x[:, positions:])


class FewPositionsConv2d(Rewrite, nn.Conv2d):
    """A 3 x 3 convolution of small maps, the deepest of a U-Net, as one matrix product of its unfolded input.

    The stock kernel brings the weights into an order of its own in each call, which takes longer than the products
    where there are few positions to multiply them by.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not (
            is_inference()
            and input.ndim == 4
            and input.shape[0] * input.shape[2] * input.shape[3] <= MAX_POSITIONS_OF_UNFOLDED
            and is_full_precision_on_cpu(input)
            and input.is_contiguous()
            and type(self.weight) is nn.Parameter
        ):
            return super().forward(input)
        batch, _, height, width = input.shape
        height, width = ((size - 1) // stride + 1 for size, stride in zip((height, width), self.stride, strict=True))
        columns = F.unfold(input, 3, padding=1, stride=self.stride).transpose(0, 1).flatten(1)
        weight = self.weight.flatten(1)
        output = weight @ columns if self.bias is None else torch.addmm(self.bias[:, None], weight, columns)
        return output.unflatten(1, (batch, height, width)).transpose(0, 1).contiguous()

    def replaces(self: nn.Conv2d) -> bool:
        geometry = (self.kernel_size, self.padding, self.dilation, self.groups, self.padding_mode)
        return geometry == ((3, 3), (1, 1), (1, 1), 1, "zeros")


class SubPixelUpsample2D(Rewrite, Upsample2D):
    """Nearest upsampling and a 3 x 3 convolution as one 2 x 2 convolution at the lower resolution.

    Of the three rows that a kernel covers after upsampling, two are copies of one row: row `2i` sees rows `i - 1`,
    `i`, `i`, and row `2i + 1` sees `i`, `i`, `i + 1`, and columns alike. So each of the four sub-pixels is a 2 x 2
    convolution with sums of the kernel's weights: 4 / 9 of the products, and no upsampled copy.
    """

    def forward(self, hidden_states: torch.Tensor, output_size: int | None = None, *args, **kwargs) -> torch.Tensor:
        x = hidden_states
        conv: Any = self.conv
        if not (
            output_size is None
            and is_inference(self)
            and x.shape[-2] * x.shape[-1] >= MIN_POSITIONS
            and is_full_precision_on_cpu(x)
            and x.is_contiguous(memory_format=torch.channels_last)
            and is_plain(conv, nn.Conv2d, FewPositionsConv2d)
            and FewPositionsConv2d.replaces(conv)
            and conv.stride == (1, 1)
        ):
            return super().forward(hidden_states, output_size, *args, **kwargs)
        batch, _, height, width = x.shape
        out_channels = conv.out_channels
        weight = sub_pixel_weights(conv.weight).contiguous(memory_format=torch.channels_last)
        bias = None if conv.bias is None else conv.bias.repeat(4)
        # (batch, 4 * out_channels, height + 1, width + 1): sub-pixel (p, q) of a position looks p down and q right.
        corners = F.conv2d(x, weight, bias, padding=1)
        output = x.new_empty(batch, 2 * height, 2 * width, out_channels).permute(0, 3, 1, 2)
        for k, corner in enumerate(corners.split(out_channels, dim=1)):
            p, q = divmod(k, 2)
            output[:, :, p::2, q::2] = corner[:, :, p : p + height, q : q + width]
        return output

    def replaces(self: Upsample2D) -> bool:
        convolves = self.use_conv and not self.use_conv_transpose and self.name == "conv"
        return convolves and self.interpolate and self.norm is None


def sub_pixel_weights(weight: torch.Tensor) -> torch.Tensor:
    """A 3 x 3 kernel as four of 2 x 2, `(4 * out, in, 2, 2)`.

    Their sub-pixels are upper left, upper right, lower left and lower right.
    """

    def halves(kernel: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        first, middle, last = kernel.unbind(dim)
        return torch.stack((first, middle + last), dim), torch.stack((first + middle, last), dim)

    return torch.cat([corner for rows in halves(weight, 2) for corner in halves(rows, 3)])
