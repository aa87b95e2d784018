"""VideoCrafter2's VAE, by its original names of weights."""

import torch.nn.functional as F
from drawn_weights import DrawnWeights, attention
from torch import Tensor


GROUPS = 4
WIDTHS = (8, 16, 24, 24)
EPS = 1e-6


def encode(p: DrawnWeights, pixels: Tensor) -> Tensor:
    """Mean and logarithm of the variance, one after the other on the axis of channels."""
    h = p.conv("encoder.conv_in", pixels, WIDTHS[0])
    for level, width in enumerate(WIDTHS):
        for i in range(2):
            h = block(p, f"encoder.down.{level}.block.{i}", h, width)
        if level < 3:
            h = p.conv(f"encoder.down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), width, stride=2, padding=0)
    h = middle(p, "encoder.mid", h)
    h = p.conv("encoder.conv_out", F.silu(p.group_norm("encoder.norm_out", h, GROUPS, EPS)), 8)
    return p.conv("quant_conv", h, 8, kernel=1, padding=0)


def decode(p: DrawnWeights, latents: Tensor) -> Tensor:
    h = p.conv("post_quant_conv", latents, 4, kernel=1, padding=0)
    h = middle(p, "decoder.mid", p.conv("decoder.conv_in", h, WIDTHS[-1]))
    for level in (3, 2, 1, 0):
        for i in range(3):
            h = block(p, f"decoder.up.{level}.block.{i}", h, WIDTHS[level])
        if level > 0:
            h = p.conv(f"decoder.up.{level}.upsample.conv", F.interpolate(h, scale_factor=2.0), WIDTHS[level])
    return p.conv("decoder.conv_out", F.silu(p.group_norm("decoder.norm_out", h, GROUPS, EPS)), 3)


def block(p: DrawnWeights, name: str, x: Tensor, width: int) -> Tensor:
    h = p.conv(f"{name}.conv1", F.silu(p.group_norm(f"{name}.norm1", x, GROUPS, EPS)), width)
    h = p.conv(f"{name}.conv2", F.silu(p.group_norm(f"{name}.norm2", h, GROUPS, EPS)), width)
    return h + (x if x.shape[1] == width else p.conv(f"{name}.nin_shortcut", x, width, kernel=1, padding=0))


def middle(p: DrawnWeights, name: str, x: Tensor) -> Tensor:
    width = x.shape[1]
    x = block(p, f"{name}.block_1", x, width)
    h = p.group_norm(f"{name}.attn_1.norm", x, GROUPS, EPS)
    query, key, value = (
        p.conv(f"{name}.attn_1.{part}", h, width, kernel=1, padding=0).flatten(2).transpose(1, 2) for part in "qkv"
    )
    h = attention(query, key, value, heads=1).transpose(1, 2).reshape(x.shape)
    x = x + p.conv(f"{name}.attn_1.proj_out", h, width, kernel=1, padding=0)
    return block(p, f"{name}.block_2", x, width)
