"""Put rewritten modules into the place of stock ones, and back."""

from typing import Any, TypeVar

from diffusers import DiffusionPipeline
from diffusers.models.activations import GEGLU
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import TemporalDecoder
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D, SpatioTemporalResBlock, TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from vdmini_diffusers.inference.conditions import Rewrite
from vdmini_diffusers.inference.convolutions import FewPositionsConv2d, SubPixelUpsample2D, TemporalConv3d
from vdmini_diffusers.inference.feed_forward import SplitGEGLU
from vdmini_diffusers.inference.group_norm import ChannelsLastClipGroupNorm, ChannelsLastGroupNorm
from vdmini_diffusers.inference.one_token import OneTokenTransformerSpatioTemporalModel
from vdmini_diffusers.inference.res_blocks import (
    BlendedSpatioTemporalResBlock,
    InPlaceResnetBlock2D,
    InPlaceTemporalConvLayer,
    InPlaceVDMiniResnetBlock2D,
    InPlaceVDMiniTemporalConvLayer,
)
from vdmini_diffusers.inference.vae import ChannelsLastDecoder, ChannelsLastEncoder, ChannelsLastTemporalDecoder
from vdmini_diffusers.models.autoencoder_kl_vdmini import ClipGroupNorm
from vdmini_diffusers.models.unet_3d_vdmini import VDMiniResnetBlock2D, VDMiniTemporalConvLayer


REWRITE_OF: dict[type[nn.Module], Any] = {
    ClipGroupNorm: ChannelsLastClipGroupNorm,
    Decoder: ChannelsLastDecoder,
    Encoder: ChannelsLastEncoder,
    GEGLU: SplitGEGLU,
    ResnetBlock2D: InPlaceResnetBlock2D,
    SpatioTemporalResBlock: BlendedSpatioTemporalResBlock,
    TemporalConvLayer: InPlaceTemporalConvLayer,
    TemporalDecoder: ChannelsLastTemporalDecoder,
    TransformerSpatioTemporalModel: OneTokenTransformerSpatioTemporalModel,
    Upsample2D: SubPixelUpsample2D,
    VDMiniResnetBlock2D: InPlaceVDMiniResnetBlock2D,
    VDMiniTemporalConvLayer: InPlaceVDMiniTemporalConvLayer,
    nn.Conv2d: FewPositionsConv2d,
    nn.Conv3d: TemporalConv3d,
    nn.GroupNorm: ChannelsLastGroupNorm,
}
STOCK_OF = {rewrite: stock for stock, rewrite in REWRITE_OF.items()}

Target = TypeVar("Target", bound=DiffusionPipeline | nn.Module)


def optimize(target: Target) -> Target:
    """Exchange the forward passes of stock modules for faster ones that compute the same up to rounding. In place.

    Only the classes of modules change: parameters, state dict, config, hooks, adapters and what `save_pretrained`
    writes stay as they are. Modules of any other class, a user's own among them, are not touched. With gradients,
    under autocast, where hooks sit inside a block, and in dtypes or on devices where a rewrite is not as exact or did
    not win, a module computes by its stock forward pass.

    Args:
        target: a pipeline, whose networks are all gone through, or a network; from this package or stock.

    Returns:
        `target`.

    Raises:
        TypeError: if `target` is neither.
    """
    for module in modules_of(target):
        rewrite = REWRITE_OF.get(type(module))
        if rewrite is not None and rewrite.replaces(module):
            module.__class__ = rewrite
    return target


def restore(target: Target) -> Target:
    """Undo `optimize`. In place; returns `target`."""
    for module in modules_of(target):
        module.__class__ = stock_class(type(module))
    return target


def stock_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The class without rewrites, also of one that torch has derived since, for a parametrised or sharded weight."""
    if cls in STOCK_OF or not issubclass(cls, Rewrite):
        return STOCK_OF.get(cls, cls)
    attributes = {name: each for name, each in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    metaclass: Any = type(cls)
    return metaclass(cls.__name__, tuple(map(stock_class, cls.__bases__)), attributes)


def modules_of(target: DiffusionPipeline | nn.Module) -> list[nn.Module]:
    if not isinstance(target, DiffusionPipeline | nn.Module):
        raise TypeError(f"Pass a pipeline of diffusers, or a network, but not {type(target).__name__}.")
    parts = target.components.values() if isinstance(target, DiffusionPipeline) else [target]
    return [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]
