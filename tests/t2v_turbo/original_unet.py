"""VideoCrafter2's U-Net with T2V-Turbo-v2's conditions, by its original names of weights."""

import math

import torch
import torch.nn.functional as F
from drawn_weights import DrawnWeights, attention
from torch import Tensor


GROUPS = 8
HEAD = 8
WIDTHS = (16, 32, 64, 64)


def sinusoid(numbers: Tensor, width: int) -> Tensor:
    """In single precision in any network, as in the original."""
    half = width // 2
    angles = numbers.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half).float() / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).double()


def unet(
    p: DrawnWeights,
    latents: Tensor,  # (batch, channels, frames, height, width)
    timesteps: Tensor,
    context: Tensor,  # (batch, tokens, channels)
    fps: Tensor,
    guidance: Tensor | None = None,
    motion: Tensor | None = None,
) -> Tensor:
    base, frames = WIDTHS[0], latents.shape[2]
    x = sinusoid(timesteps, base)
    if guidance is not None:
        condition = p.linear("time_cond_proj", guidance, base, bias=False)
        if motion is not None:
            both = torch.cat([condition, p.linear("motion_cond_proj", motion, base, bias=False)], dim=-1)
            condition = p.linear("combine_proj", both, base, bias=False)
        x = x + condition
    emb = p.linear("time_embed.2", F.silu(p.linear("time_embed.0", x, 4 * base)), 4 * base)
    rate = p.linear("fps_embedding.0", sinusoid(fps, base), 4 * base)
    emb = emb + p.linear("fps_embedding.2", F.silu(rate), 4 * base)
    emb, context = emb.repeat_interleave(frames, 0), context.repeat_interleave(frames, 0)

    def layer(name: str, h: Tensor, width: int, attends: bool) -> Tensor:
        h = res_block(p, f"{name}.0", h, emb, width, frames)
        if attends:
            h = spatial_transformer(p, f"{name}.1", h, context)
            h = temporal_transformer(p, f"{name}.2", h, frames, h.shape[1])
        return h

    h = latents.transpose(1, 2).flatten(0, 1)  # (batch * frames, channels, height, width)
    h = p.conv("input_blocks.0.0", h, base)
    h = temporal_transformer(p, "init_attn.0", h, frames, 8 * HEAD, convolution=True)
    skips, n = [h], 0
    for level, width in enumerate(WIDTHS):
        for _ in range(2):
            n += 1
            h = layer(f"input_blocks.{n}", h, width, attends=level < 3)
            skips.append(h)
        if level < 3:
            n += 1
            h = p.conv(f"input_blocks.{n}.0.op", h, width, stride=2)
            skips.append(h)
    h = layer("middle_block", h, WIDTHS[-1], attends=True)
    h = res_block(p, "middle_block.3", h, emb, WIDTHS[-1], frames)
    n = -1
    for level, width in enumerate(reversed(WIDTHS)):
        for i in range(3):
            n += 1
            h = layer(f"output_blocks.{n}", torch.cat([h, skips.pop()], dim=1), width, attends=level > 0)
            if i == 2 and level < 3:
                h = F.interpolate(h, scale_factor=2, mode="nearest")
                h = p.conv(f"output_blocks.{n}.{3 if level else 1}.conv", h, width)
    assert not skips
    h = p.conv("out.2", F.silu(p.group_norm("out.0", h, GROUPS, 1e-5)), latents.shape[1])
    return h.unflatten(0, (-1, frames)).transpose(1, 2)


def res_block(p: DrawnWeights, name: str, x: Tensor, emb: Tensor, width: int, frames: int) -> Tensor:
    h = p.conv(f"{name}.in_layers.2", F.silu(p.group_norm(f"{name}.in_layers.0", x, GROUPS, 1e-5)), width)
    h = h + p.linear(f"{name}.emb_layers.1", F.silu(emb), width)[:, :, None, None]
    h = p.conv(f"{name}.out_layers.3", F.silu(p.group_norm(f"{name}.out_layers.0", h, GROUPS, 1e-5)), width)
    if x.shape[1] != width:
        x = p.conv(f"{name}.skip_connection", x, width, kernel=1, padding=0)
    x = (x + h).unflatten(0, (-1, frames)).transpose(1, 2)  # (batch, channels, frames, height, width)
    h = x
    for part, index in (("conv1", 2), ("conv2", 3), ("conv3", 3), ("conv4", 3)):
        h = F.silu(p.group_norm(f"{name}.temopral_conv.{part}.0", h, GROUPS, 1e-5))
        h = p.temporal_conv(f"{name}.temopral_conv.{part}.{index}", h)
    return (x + h).transpose(1, 2).flatten(0, 1)


def spatial_transformer(p: DrawnWeights, name: str, x: Tensor, context: Tensor) -> Tensor:
    width = x.shape[1]
    h = p.group_norm(f"{name}.norm", x, GROUPS, 1e-6).flatten(2).transpose(1, 2)  # (batch * frames, pixels, channels)
    h = p.linear(f"{name}.proj_in", h, width)
    h = transformer_block(p, f"{name}.transformer_blocks.0", h, context)
    return x + p.linear(f"{name}.proj_out", h, width).transpose(1, 2).reshape(x.shape)


def temporal_transformer(
    p: DrawnWeights, name: str, x: Tensor, frames: int, inner: int, convolution: bool = False
) -> Tensor:
    def projection(part: str, h: Tensor, width: int) -> Tensor:
        if not convolution:
            return p.linear(f"{name}.{part}", h, width)
        weight = p.draw(f"{name}.{part}.weight", width, h.shape[-1], 1)  # over the frames, of kernel size 1
        return F.conv1d(h.transpose(1, 2), weight, p.draw(f"{name}.{part}.bias", width)).transpose(1, 2)

    video = x.unflatten(0, (-1, frames)).transpose(1, 2)  # (batch, channels, frames, height, width)
    batch, width, _, height, columns = video.shape
    h = p.group_norm(f"{name}.norm", video, GROUPS, 1e-6)
    h = h.permute(0, 3, 4, 2, 1).reshape(-1, frames, width)  # (batch * height * width, frames, channels)
    h = transformer_block(p, f"{name}.transformer_blocks.0", projection("proj_in", h, inner), None)
    h = projection("proj_out", h, width).view(batch, height, columns, frames, width)
    return x + h.permute(0, 3, 4, 1, 2).flatten(0, 1)


def transformer_block(p: DrawnWeights, name: str, x: Tensor, context: Tensor | None) -> Tensor:
    width = x.shape[-1]
    for number in (1, 2):
        h = p.layer_norm(f"{name}.norm{number}", x)
        source = context if number == 2 and context is not None else h
        query, key, value = (
            p.linear(f"{name}.attn{number}.{part}", y, width, bias=False)
            for part, y in (("to_q", h), ("to_k", source), ("to_v", source))
        )
        h = attention(query, key, value, heads=width // HEAD)
        x = x + p.linear(f"{name}.attn{number}.to_out.0", h, width)
    h, gate = p.linear(f"{name}.ff.net.0.proj", p.layer_norm(f"{name}.norm3", x), 8 * width).chunk(2, dim=-1)
    return x + p.linear(f"{name}.ff.net.2", h * F.gelu(gate), width)
