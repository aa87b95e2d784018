"""Compilation of the blocks that a network repeats, for clips of all sizes at once."""

import inspect
from typing import Any

import torch
from diffusers import UNet3DConditionModel, UNetSpatioTemporalConditionModel
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import TemporalDecoder
from diffusers.models.autoencoders.vae import Decoder
from torch import nn

from vdmini_diffusers.inference.rewriting import Target, modules_of
from vdmini_diffusers.models.unet_spatio_temporal_vdmini import VDMiniUNetSpatioTemporalConditionModel


# What networks of diffusers repeat that name no blocks themselves. A decoder has one graph for each width.
REPEATED_BLOCKS: dict[type[nn.Module], list[str]] = {
    UNetSpatioTemporalConditionModel: VDMiniUNetSpatioTemporalConditionModel._repeated_blocks,
    UNet3DConditionModel: ["Transformer2DModel", "TransformerTemporalModel", "TemporalConvLayer"],
    Decoder: ["ResnetBlock2D", "Upsample2D"],
    TemporalDecoder: ["SpatioTemporalResBlock", "Upsample2D"],
}


def compile_blocks(target: Target, **options: Any) -> Target:
    """Compile the repeated blocks of denoisers and of VAE decoders. In place.

    As `compile_repeated_blocks` of diffusers, also for its own U-Nets and decoders, which name no blocks, and for
    networks after `optimize`, whose blocks have other names. A graph takes any number of frames and any size, so that
    a clip of another size compiles nothing. Parameters keep their names; encoders are left as they are.

    Args:
        target: a pipeline, or a network.
        options: of `torch.compile`.

    Returns:
        `target`.

    Raises:
        TypeError: if `target` is neither.
        ValueError: if no block is known to repeat.
    """
    blocks = [block for network in modules_of(target) for block in repeated_blocks(network)]
    if not blocks:
        raise ValueError(
            f"{type(target).__name__} has no blocks that are known to repeat: pass a pipeline, denoiser or VAE of this"
            " package or of diffusers, or call `torch.compile` yourself."
        )
    defaults: dict[str, Any] = {"dynamic": True}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        defaults["recompile_limit"] = 32  # of graphs, one for each width; with torch's 8 the others would run eagerly
    for block in blocks:
        block.compile(**defaults | options)
    return target


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """Those that the class of `network` names, or that are known of it; subclasses of them count."""
    named = getattr(network, "_repeated_blocks", None) or []
    names = {*named, *(name for kind, each in REPEATED_BLOCKS.items() if isinstance(network, kind) for name in each)}
    if not names:
        return []
    return [block for block in network.modules() if names & {cls.__name__ for cls in type(block).__mro__}]
