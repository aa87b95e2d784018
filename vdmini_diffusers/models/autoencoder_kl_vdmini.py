"""VAEs with the compressed decoder of VDMini (Wu et al., ACM MM 2025, appendix A and Table A1).

This file is also published beside the weights, where it runs without the package: it imports third-party code only.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from diffusers.configuration_utils import register_to_config

# Not used below: diffusers takes a pipeline's component for a model if the module of its class holds `ModelMixin`.
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401 - see above
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, UpDecoderBlock2D
from diffusers.models.unets.unet_3d_blocks import MidBlockTemporalDecoder, UpBlockTemporalDecoder
from diffusers.models.upsampling import Upsample2D
from torch import nn


class PassThroughMidBlock(nn.Module):
    """Stands where a removed mid block was called; returns `hidden_states` as they came."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


class CompressedDecoderMixin:
    """What the two classes below share: how a decoder is rebuilt from its config fields, and strict loading."""

    config: Any
    decoder: Any
    _mid_block: Callable[[int], nn.Module]  # of its width
    _up_block: Callable[..., Any]

    def _rebuild_decoder(self, norm_num_groups: int) -> None:
        """Put narrower and fewer blocks into the stock decoder, whose `forward` runs whatever blocks it holds."""
        config = self.config
        widths = tuple(config.decoder_block_out_channels)[::-1]  # from here on in the order of the up blocks
        depths = tuple(config.decoder_layers_per_block)[::-1]
        upsampled = tuple(config.decoder_upsample_out_channels)[::-1]
        _check_decoder(config, norm_num_groups)
        self.decoder.conv_in = nn.Conv2d(config.latent_channels, widths[0], kernel_size=3, padding=1)
        self.decoder.mid_block = self._mid_block(widths[0]) if config.decoder_mid_layers else PassThroughMidBlock()
        self.decoder.up_blocks = nn.ModuleList()
        for entering, width, depth, leaving in zip(
            (widths[0], *upsampled), widths, depths, (*upsampled, None), strict=True
        ):
            block = self._up_block(entering, width, depth, add_upsample=leaving is not None)
            if leaving is not None:
                block.upsamplers = nn.ModuleList([Upsample2D(width, use_conv=True, out_channels=leaving)])
            self.decoder.up_blocks.append(block)
        self.decoder.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[-1], eps=1e-6)
        self.decoder.conv_out = nn.Conv2d(widths[-1], config.out_channels, kernel_size=3, padding=1)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        r"""
        As [`~ModelMixin.from_pretrained`], but strict: diffusers fills missing tensors at random and drops unknown
        ones, with a warning; both mean that the weights belong to another network.

        Raises:
            ValueError: if the checkpoint misses tensors of this model or holds others.
        """
        output_loading_info = kwargs.pop("output_loading_info", False)
        load: Any = super()
        model, info = load.from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        problems = [
            f"{len(info[kind])} {kind.replace('_keys', '')} tensors ({', '.join(sorted(info[kind])[:3])}, ...)"
            for kind in ("missing_keys", "unexpected_keys")
            if info[kind]
        ]
        if problems:
            raise ValueError(
                f"The checkpoint at {pretrained_model_name_or_path} does not fit {cls.__name__} as its config"
                f" describes it: {' and '.join(problems)}. A teacher's VAE opens with the class that its config names,"
                " and becomes a student with `conversion/prune_vae_decoder.py`; a student opens with this class."
            )
        return (model, info) if output_loading_info else model


def _check_decoder(config: Any, norm_num_groups: int) -> None:
    """Raises `ValueError` for decoder fields that do not describe a decoder."""
    num_stages = len(config.block_out_channels)
    for field, length, multiple in (
        ("decoder_block_out_channels", num_stages, norm_num_groups),
        ("decoder_layers_per_block", num_stages, 1),
        ("decoder_upsample_out_channels", num_stages - 1, norm_num_groups),
    ):
        values = getattr(config, field)
        # Pipelines work out their scale factor from the number of the encoder's stages.
        if len(values) != length:
            raise ValueError(
                f"`{field}` has {length} entries with the {num_stages} stages of `block_out_channels`, not {values!r}."
            )
        if not all(type(value) is int and value > 0 and value % multiple == 0 for value in values):
            what = f"multiples of {multiple}, the groups of each norm" if multiple > 1 else "at least 1"
            raise ValueError(f"`{field}` must be {what}; got {values!r}.")
    if config.decoder_mid_layers not in (0, 1, 2):
        raise ValueError(f"`decoder_mid_layers` must be 0, 1 or 2, not {config.decoder_mid_layers!r}.")
    if config.decoder_mid_attention and config.decoder_mid_layers != 2:
        raise ValueError(
            "`decoder_mid_attention` needs `decoder_mid_layers=2`: it runs between the two, and would have parameters"
            " that nothing uses."
        )


class VDMiniAutoencoderKLTemporalDecoder(CompressedDecoderMixin, AutoencoderKLTemporalDecoder):
    r"""
    An [`AutoencoderKLTemporalDecoder`] with a narrower and shallower decoder. Built without arguments it is Stable
    Video Diffusion's VAE with the decoder of the plan `P1`, our reading of the paper's compressed decoder (appendix A,
    Table A1): 39,411,372 decoder parameters instead of 63,579,183, and 3.37 times fewer multiplications. The paper's
    own widths are not published.

    Encoder, latent space and forward passes are the parent's, so it serves wherever the parent does.

    The decoder's fields are in the order of `block_out_channels`: from the highest resolution to the lowest.

    Parameters:
        in_channels, out_channels, down_block_types, block_out_channels, layers_per_block, latent_channels,
        sample_size, scaling_factor, force_upcast:
            As in [`AutoencoderKLTemporalDecoder`]; `block_out_channels` and `layers_per_block` describe the encoder.
            The defaults are those of Stable Video Diffusion.
        decoder_block_out_channels (`tuple[int]`, *optional*, defaults to `(64, 128, 384, 512)`):
            Width of each up block; multiples of the 32 groups of each norm. The last one is the mid block's as well.
        decoder_layers_per_block (`tuple[int]`, *optional*, defaults to `(1, 3, 3, 3)`):
            ResBlocks of each up block. (The parent has `layers_per_block + 1` in each.)
        decoder_upsample_out_channels (`tuple[int]`, *optional*, defaults to `(64, 128, 384)`):
            What each upsampler hands to the next up block; one entry less, as the last up block has no upsampler.
            Where it is the width of the next block, that block needs no shortcut convolution.
        decoder_mid_layers (`int`, *optional*, defaults to 1): ResBlocks of the mid block: 0, 1 or 2.
        decoder_mid_attention (`bool`, *optional*, defaults to `False`):
            Attention between two ResBlocks of the mid block.

    Raises:
        ValueError: if the decoder's fields do not describe a decoder.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        latent_channels: int = 4,
        sample_size: int = 768,
        scaling_factor: float = 0.18215,
        force_upcast: bool = True,
        decoder_block_out_channels: tuple[int, ...] = (64, 128, 384, 512),
        decoder_layers_per_block: tuple[int, ...] = (1, 3, 3, 3),
        decoder_upsample_out_channels: tuple[int, ...] = (64, 128, 384),
        decoder_mid_layers: int = 1,
        decoder_mid_attention: bool = False,
    ):
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            force_upcast=force_upcast,
        )
        self._rebuild_decoder(norm_num_groups=32)  # the number is the parent's, not in its config

    def _mid_block(self, width: int) -> nn.Module:
        block = MidBlockTemporalDecoder(
            num_layers=self.config.decoder_mid_layers,
            in_channels=width,
            out_channels=width,
            attention_head_dim=width,
        )
        if not self.config.decoder_mid_attention:
            # The stock block always makes an attention; with one ResBlock it would never run.
            block.attentions = nn.ModuleList(nn.Identity() for _ in range(self.config.decoder_mid_layers - 1))
        return block

    def _up_block(self, in_channels: int, out_channels: int, num_layers: int, add_upsample: bool) -> Any:
        return UpBlockTemporalDecoder(in_channels, out_channels, num_layers, add_upsample)


class VDMiniAutoencoderKL(CompressedDecoderMixin, AutoencoderKL):
    r"""
    An [`AutoencoderKL`] with a narrower and shallower decoder, for text-to-video pipelines on Stable Diffusion's
    latents. Built without arguments it is Stable Diffusion's VAE with the decoder of the plan `P1`. The paper leaves
    this decoder as it is (Table A3); the class applies appendix A's compression to it.

    Encoder, latent space, forward passes, slicing and tiling are the parent's, so it serves wherever the parent does.

    Parameters:
        in_channels, out_channels, down_block_types, up_block_types, block_out_channels, layers_per_block, act_fn,
        latent_channels, norm_num_groups, sample_size, scaling_factor, shift_factor, latents_mean, latents_std,
        force_upcast, use_quant_conv, use_post_quant_conv, mid_block_add_attention:
            As in [`AutoencoderKL`]; `block_out_channels`, `layers_per_block` and `mid_block_add_attention` describe
            the encoder. The defaults are those of Stable Diffusion 1.
        decoder_block_out_channels, decoder_layers_per_block, decoder_upsample_out_channels, decoder_mid_layers,
        decoder_mid_attention:
            As in [`VDMiniAutoencoderKLTemporalDecoder`]; widths are multiples of `norm_num_groups`.

    Raises:
        ValueError: if the decoder's fields do not describe a decoder, or its blocks are not `"UpDecoderBlock2D"`.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4,
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 4,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int = 512,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
        decoder_block_out_channels: tuple[int, ...] = (64, 128, 384, 512),
        decoder_layers_per_block: tuple[int, ...] = (1, 3, 3, 3),
        decoder_upsample_out_channels: tuple[int, ...] = (64, 128, 384),
        decoder_mid_layers: int = 1,
        decoder_mid_attention: bool = False,
    ):
        if set(up_block_types) != {"UpDecoderBlock2D"}:
            raise ValueError(f"`up_block_types` must be 'UpDecoderBlock2D' throughout, not {up_block_types!r}.")
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            act_fn=act_fn,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
            latents_mean=latents_mean,
            latents_std=latents_std,
            force_upcast=force_upcast,
            use_quant_conv=use_quant_conv,
            use_post_quant_conv=use_post_quant_conv,
            mid_block_add_attention=mid_block_add_attention,
        )
        self._rebuild_decoder(norm_num_groups)

    def _mid_block(self, width: int) -> nn.Module:
        return UNetMidBlock2D(
            in_channels=width,
            temb_channels=None,
            num_layers=self.config.decoder_mid_layers - 1,  # there is always one more
            resnet_eps=1e-6,
            resnet_act_fn=self.config.act_fn,
            resnet_groups=self.config.norm_num_groups,
            add_attention=self.config.decoder_mid_attention,
            attention_head_dim=width,
        )

    def _up_block(self, in_channels: int, out_channels: int, num_layers: int, add_upsample: bool) -> Any:
        return UpDecoderBlock2D(
            in_channels,
            out_channels,
            num_layers=num_layers,
            resnet_eps=1e-6,
            resnet_act_fn=self.config.act_fn,
            resnet_groups=self.config.norm_num_groups,
            resnet_time_scale_shift="group",
            add_upsample=add_upsample,
        )
