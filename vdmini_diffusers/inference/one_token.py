"""SVD's transformer blocks over space and time where their context is one token."""

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import AlphaBlender
from diffusers.models.transformers.transformer_temporal import (
    TransformerSpatioTemporalModel,
    TransformerTemporalModelOutput,
)
from torch import nn

from vdmini_diffusers.inference.conditions import Rewrite, is_inference, is_watched
from vdmini_diffusers.models.unet_spatio_temporal_vdmini import VDMiniAttnProcessor


STOCK_PROCESSORS = (AttnProcessor2_0, VDMiniAttnProcessor)  # which scale by the width of a head


class OneTokenTransformerSpatioTemporalModel(Rewrite, TransformerSpatioTemporalModel):
    """SVD's transformer, where the context is one token: the embedding of the image.

    Softmax over one key is 1, so cross-attention is `to_out(to_v(c))` whatever attends: its query and key projections,
    the norm before it and the context repeated for every position go away. Frames stay where they are around the
    temporal attention, the frames' embedding is made once for all videos, and the blend with its sum is one pass.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        image_only_indicator: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> TransformerTemporalModelOutput | tuple[torch.Tensor]:
        context = encoder_hidden_states
        if (
            context is None
            or context.ndim != 3
            or context.shape[1] != 1
            or image_only_indicator is None
            or not is_inference(self)
            or not all(
                has_stock_parts(block) for block in (*self.transformer_blocks, *self.temporal_transformer_blocks)
            )
        ):
            return super().forward(hidden_states, encoder_hidden_states, image_only_indicator, return_dict)
        height, width = hidden_states.shape[-2:]
        num_frames = image_only_indicator.shape[-1]
        frames = self.time_proj(torch.arange(num_frames, device=hidden_states.device)).to(hidden_states.dtype)
        frames = self.time_pos_embed(frames)[:, None]  # (frames, 1, channels)
        temporal_weight = 1 - self.time_mixer.get_alpha(image_only_indicator, 3).to(hidden_states.dtype)

        # (batch * frames, positions, channels) from here on
        x = self.proj_in(self.norm(hidden_states).permute(0, 2, 3, 1).flatten(1, 2))
        for block, temporal_block in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            x = spatial_block(block, x, context)
            mixed = (x.unflatten(0, (-1, num_frames)) + frames).flatten(0, 1)
            mixed = temporal_block_of_one_token(temporal_block, mixed, num_frames, context[::num_frames])
            x = x.lerp_(mixed, temporal_weight)
        x = self.proj_out(x).unflatten(1, (height, width)).permute(0, 3, 1, 2)
        # In the memory format of the input: convolutions and concatenations that follow are slower in a mixture.
        output = (x.contiguous() if hidden_states.is_contiguous() else x).add_(hidden_states)
        return TransformerTemporalModelOutput(sample=output) if return_dict else (output,)

    def replaces(self: TransformerSpatioTemporalModel) -> bool:
        return type(self.time_mixer) is AlphaBlender and not self.time_mixer.switch_spatial_to_temporal_mix


def spatial_block(block: Any, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """`x` of shape `(batch * frames, positions, channels)`, `context` `(batch * frames, 1, channels)`."""
    x = block.attn1(block.norm1(x)).add_(x)
    x = x.add_(attend_to_one_token(block.attn2, context))
    return block.ff(block.norm3(x)).add_(x)


def temporal_block_of_one_token(block: Any, x: torch.Tensor, num_frames: int, context: torch.Tensor) -> torch.Tensor:
    """`x` of shape `(batch * frames, positions, channels)`, `context` `(batch, 1, channels)`."""
    x = block.ff_in(block.norm_in(x)).add_(x)
    x = attend_over_frames(block.attn1, block.norm1(x), num_frames).add_(x)
    x = x.add_(attend_to_one_token(block.attn2, context).repeat_interleave(num_frames, 0))
    return block.ff(block.norm3(x)).add_(x)


def attend_to_one_token(attention: Attention, context: torch.Tensor) -> torch.Tensor:
    output = attention.to_v(context)
    for layer in attention.to_out:
        output = layer(output)
    return output


def attend_over_frames(attention: Attention, x: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Self-attention of each position over the frames; `x` and result `(batch * frames, positions, channels)`."""
    # Each (batch, positions, frames, heads, channels of a head), in the memory of x.
    query, key, value = (
        projection(x).unflatten(0, (-1, num_frames)).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for projection in (attention.to_q, attention.to_k, attention.to_v)
    )
    backend = getattr(attention.processor, "_attention_backend", None)
    videos = [dispatch_attention_fn(*video, backend=backend) for video in zip(query, key, value, strict=True)]
    output = torch.cat([video.flatten(2).transpose(0, 1) for video in videos])
    for layer in attention.to_out:
        output = layer(output)
    return output


def has_stock_parts(block: Any) -> bool:
    """A block of SVD's kind, with nothing changed but the weights, whose children may be passed by."""
    if is_watched(block) or block._chunk_size is not None:
        return False
    if type(block) is BasicTransformerBlock:
        stock = block.norm_type == "layer_norm" and block.pos_embed is None and not block.only_cross_attention
        stock = stock and not hasattr(block, "fuser")
    else:
        stock = type(block) is TemporalBasicTransformerBlock and block.is_res
    return stock and all(attention is not None and is_stock(attention) for attention in (block.attn1, block.attn2))


def is_stock(attention: Attention) -> bool:
    """Plain attention in one process; `attend_over_frames` knows the processor's backend."""
    return (
        type(attention) is Attention
        and type(attention.processor) in STOCK_PROCESSORS
        and getattr(attention.processor, "_parallel_config", None) is None
        and not attention.fused_projections
        and not attention.residual_connection
        and attention.rescale_output_factor == 1
        and attention.group_norm is None
        and attention.spatial_norm is None
        and attention.norm_q is None
        and attention.norm_k is None
        and attention.norm_cross is None
        # One token's dropout would be that of all positions.
        and not any(isinstance(layer, nn.Dropout) and layer.training and layer.p for layer in attention.to_out)
    )
