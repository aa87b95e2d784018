"""Shortcut convolutions that a narrower decoder has no place for, folded into the upsampler before them.

An upsampler ends in a convolution, and the shortcut of the ResBlock behind it is a 1x1 convolution: together they are
one. If the upsampler makes what the shortcut made of its output, the shortcut is the identity, and the sum that runs
through the decoder stays the same. The ResBlock's other path, norm - SiLU - convolution, then sees other channels than
before; for it, the first-order approximation below is a start for training, no more.
"""

import torch
from torch import Tensor


def fold_shortcut(tensors: dict[str, Tensor], upsampler: str, block: str, num_groups: int) -> None:
    """Replace, in place, tensors of the convolution `upsampler` and of the ResBlock `block`; drop the shortcut's.

    Exact for the shortcut's path, bias included. For the other, what the shortcut took is guessed from what it made
    (ridge regression, as the inverse of a trained shortcut would be all noise), the norm is taken for a division by
    the mean deviation of a group's channels, and SiLU for its tangent.

    Args:
        tensors: of a decoder, by name: convolutions `(out, in, 3, 3)`, the shortcut `(out, in, 1, 1)`.
        num_groups: of the block's norm.
    """
    shortcut = tensors.pop(f"{block}.conv_shortcut.weight")[:, :, 0, 0].double()  # (out, in)
    offset = tensors.pop(f"{block}.conv_shortcut.bias").double()
    gain, shift = (tensors[f"{block}.norm1.{name}"].double() for name in ("weight", "bias"))
    conv = tensors[f"{block}.conv1.weight"].double()
    conv_bias = tensors[f"{block}.conv1.bias"].double()

    # Channels of unit deviation, independent of each other, leave the shortcut with these deviations.
    deviation = shortcut.square().sum(1).unflatten(0, (num_groups, -1))
    deviation = deviation.mean(1, keepdim=True).sqrt().expand_as(deviation).flatten()  # (out,)
    sigmoid = shift.sigmoid()
    slope = sigmoid * (1 + shift * (1 - sigmoid))
    square = shortcut @ shortcut.T
    inverse = torch.linalg.solve(square + square.diagonal().mean() * torch.eye(len(square)).to(square), shortcut).T
    # The new norm has gain 1 and shift 0, where SiLU's slope is 1/2.
    mixing = 2 * (slope * gain)[:, None] * inverse * deviation  # (in, out)

    new = {
        f"{upsampler}.weight": torch.einsum("oi,ihkl->ohkl", shortcut, tensors[f"{upsampler}.weight"].double()),
        f"{upsampler}.bias": shortcut @ tensors[f"{upsampler}.bias"].double() + offset,
        f"{block}.norm1.weight": torch.ones_like(offset),
        f"{block}.norm1.bias": torch.zeros_like(offset),
        f"{block}.conv1.weight": torch.einsum("cikl,io->cokl", conv, mixing),
        f"{block}.conv1.bias": conv_bias + conv.sum((2, 3)) @ (shift * sigmoid),
    }
    for name, value in new.items():
        tensors[name] = value.to(tensors[name].dtype)
