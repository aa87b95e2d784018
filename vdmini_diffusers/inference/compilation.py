"""Compilation of networks in parts that repeat, for clips of all sizes at once."""

from typing import Any, TypeVar

from diffusers import DiffusionPipeline, UNet3DConditionModel, UNetSpatioTemporalConditionModel
from diffusers.models.autoencoders.vae import AutoencoderMixin
from torch import nn

from vdmini_diffusers.models.unet_3d_vdmini import VDMiniUNet3DConditionModel
from vdmini_diffusers.models.unet_spatio_temporal_vdmini import VDMiniUNetSpatioTemporalConditionModel


Target = TypeVar("Target", bound=DiffusionPipeline | nn.Module)


def compile_blocks(target: Target, **options: Any) -> Target:
    """Compile the blocks of denoisers that repeat, and the decoders of VAEs whole. In place; returns `target`.

    As `compile_repeated_blocks` of diffusers, also for its own U-Nets, which name no blocks, and for networks that
    `optimize` has rewritten, whose blocks have other names. The graphs take any number of frames and any size, so a
    second clip compiles nothing. Parameters keep their names. Text and image encoders are left as they are.

    Args:
        target: a pipeline, whose denoiser and VAE are compiled, or a network.
        options: of `torch.compile`.

    Raises:
        ValueError: if there is nothing to compile.
    """
    parts = target.components.values() if isinstance(target, DiffusionPipeline) else [target]
    blocks = [block for part in parts if isinstance(part, nn.Module) for block in repeated_blocks(part)]
    if not blocks:
        raise ValueError(
            f"{type(target).__name__} has no blocks that are known to repeat: pass a denoiser or VAE of diffusers or of"
            " this package, or use `torch.compile`."
        )
    for block in blocks:
        block.compile(**{"dynamic": True, **options})
    return target


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    names = set(getattr(network, "_repeated_blocks", None) or ())
    for stock, ours in STOCK_U_NETS.items():
        if isinstance(network, stock):
            names |= set(ours._repeated_blocks)
    if isinstance(network, AutoencoderMixin):
        return [network.decoder]
    return [module for module in network.modules() if names & {cls.__name__ for cls in type(module).__mro__}]
