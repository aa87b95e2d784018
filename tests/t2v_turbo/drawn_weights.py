"""Weights under the original names, drawn when a forward pass first asks for them.

The forward passes in `original_*.py` are written from a description of the networks, with torch's functions alone:
they know nothing of diffusers, and hold no line of the original code.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class DrawnWeights(dict[str, Tensor]):
    """`{original name: tensor}`. A second forward pass finds what the first has drawn."""

    def __init__(self, dtype: torch.dtype = torch.float64, seed: int = 0):
        super().__init__()
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(seed)

    def draw(self, name: str, *shape: int) -> Tensor:
        if name not in self:
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 16
            self[name] = (torch.randn(*shape, generator=self.generator) / fan_in**0.5).to(self.dtype)
        assert self[name].shape == shape, name
        return self[name]

    def linear(self, name: str, x: Tensor, width: int, bias: bool = True) -> Tensor:
        weight = self.draw(f"{name}.weight", width, x.shape[-1])
        return F.linear(x, weight, self.draw(f"{name}.bias", width) if bias else None)

    def conv(self, name: str, x: Tensor, width: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> Tensor:
        weight = self.draw(f"{name}.weight", width, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, self.draw(f"{name}.bias", width), stride=stride, padding=padding)

    def temporal_conv(self, name: str, x: Tensor) -> Tensor:
        """Over three frames, of (batch, channels, frames, height, width)."""
        width = x.shape[1]
        weight = self.draw(f"{name}.weight", width, width, 3, 1, 1)
        return F.conv3d(x, weight, self.draw(f"{name}.bias", width), padding=(1, 0, 0))

    def group_norm(self, name: str, x: Tensor, groups: int, eps: float) -> Tensor:
        width = x.shape[1]
        return F.group_norm(x, groups, self.draw(f"{name}.weight", width), self.draw(f"{name}.bias", width), eps)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        width = x.shape[-1]
        return F.layer_norm(x, (width,), self.draw(f"{name}.weight", width), self.draw(f"{name}.bias", width), 1e-5)


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention on (batch, tokens, width), written out; `mask` is added to the scores."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    scores = scores if mask is None else scores + mask
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(-2)
