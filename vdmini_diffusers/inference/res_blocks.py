"""ResBlocks with fewer passes over their activations; their convolutions and norms are called as before."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.resnet import (
    AlphaBlender,
    ResnetBlock2D,
    SpatioTemporalResBlock,
    TemporalConvLayer,
    TemporalResnetBlock,
)
from torch import nn

from vdmini_diffusers.inference.conditions import Rewrite, is_inference
from vdmini_diffusers.models.unet_3d_vdmini import VDMiniResnetBlock2D, VDMiniTemporalConvLayer


class InPlaceResnetBlock2D(Rewrite, ResnetBlock2D):
    """SiLU and the sums with time embedding and input in place, and no division by an output scale of 1."""

    def forward(self, input_tensor: torch.Tensor, temb: Any, *args, **kwargs) -> torch.Tensor:
        if args or kwargs or not is_inference(self):
            return super().forward(input_tensor, temb, *args, **kwargs)
        return residual_branch(self, input_tensor, temb).add_(
            input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        )

    def replaces(self: ResnetBlock2D) -> bool:
        return (
            self.upsample is None
            and self.downsample is None
            and self.time_embedding_norm == "default"
            and self.output_scale_factor == 1
            and not self.skip_time_act
            and type(self.nonlinearity) is nn.SiLU
        )


class BlendedSpatioTemporalResBlock(Rewrite, SpatioTemporalResBlock):
    """The temporal ResBlock's sum and the blend in one pass: `a x + (1 - a) (x + h) = x + (1 - a) h`.

    `x` is the spatial ResBlock's output and `h` the temporal one's residual branch.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        temb: torch.Tensor | None = None,
        image_only_indicator: torch.Tensor | None = None,
    ) -> torch.Tensor:
        temporal = self.temporal_res_block
        if image_only_indicator is None or temporal.conv_shortcut is not None or not is_inference(self):
            return super().forward(hidden_states, temb, image_only_indicator)
        num_frames = image_only_indicator.shape[-1]
        hidden_states = self.spatial_res_block(hidden_states, temb)
        x = hidden_states.unflatten(0, (-1, num_frames)).transpose(1, 2)  # (batch, channels, frames, height, width)
        branch = residual_branch(temporal, x, None if temb is None else temb.unflatten(0, (-1, num_frames)))
        weight = 1 - self.time_mixer.get_alpha(image_only_indicator, x.ndim).to(x.dtype)
        if self.time_mixer.switch_spatial_to_temporal_mix:
            weight = 1 - weight
        return torch.addcmul(x, branch, weight).transpose(1, 2).flatten(0, 1)

    def replaces(self: SpatioTemporalResBlock) -> bool:
        temporal = self.temporal_res_block
        is_stock = type(temporal) is TemporalResnetBlock and type(self.time_mixer) is AlphaBlender
        return is_stock and type(temporal.nonlinearity) is nn.SiLU


class InPlaceTemporalConvLayer(Rewrite, TemporalConvLayer):
    """SiLU and the sum with the input in place."""

    def forward(self, hidden_states: torch.Tensor, num_frames: int = 1) -> torch.Tensor:
        if not is_inference(self):
            return super().forward(hidden_states, num_frames)
        x = hidden_states.unflatten(0, (-1, num_frames)).transpose(1, 2)
        h = x
        for norm, _, *rest in (self.conv1, self.conv2, self.conv3, self.conv4):
            h = silu_of(norm, h)
            for layer in rest:  # dropout, convolution
                h = layer(h)
        return h.add_(x).transpose(1, 2).flatten(0, 1)

    def replaces(self: TemporalConvLayer) -> bool:
        stages = [list(stage) for stage in (self.conv1, self.conv2, self.conv3, self.conv4)]
        return all(len(stage) > 1 and type(stage[1]) is nn.SiLU for stage in stages)


class InPlaceVDMiniResnetBlock2D(InPlaceResnetBlock2D, VDMiniResnetBlock2D):
    """The same of our text-to-video U-Nets' ResBlocks, which know gradient checkpointing."""


class InPlaceVDMiniTemporalConvLayer(InPlaceTemporalConvLayer, VDMiniTemporalConvLayer):
    """The same of their temporal ones."""


def residual_branch(
    block: ResnetBlock2D | TemporalResnetBlock, x: torch.Tensor, temb: torch.Tensor | None
) -> torch.Tensor:
    """What a ResBlock adds to its input. `temb` is `(batch, channels)`, or `(batch, frames, channels)` in time."""
    h = block.conv1(silu_of(block.norm1, x))
    if block.time_emb_proj is not None and temb is not None:
        shift = block.time_emb_proj(F.silu(temb))
        h = h.add_(shift.movedim(-1, 1)[..., None, None])
    return block.conv2(block.dropout(silu_of(block.norm2, h)))


def silu_of(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """In place, unless `norm` may give what it takes: a user may have put an identity there."""
    return F.silu(norm(x), inplace=isinstance(norm, nn.GroupNorm))
