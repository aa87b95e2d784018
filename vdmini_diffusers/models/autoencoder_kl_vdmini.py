"""VAEs with the compressed decoder of VDMini (Wu et al., ACM MM 2025, appendix A and Table A1).

This file is also published beside the weights, where it runs without the package: it imports third-party code only.
"""

import os
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput

# Not used below: diffusers takes a pipeline's component for a model if the module of its class holds `ModelMixin`.
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401 - see above
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, UpDecoderBlock2D
from diffusers.models.unets.unet_3d_blocks import MidBlockTemporalDecoder, UpBlockTemporalDecoder
from diffusers.models.upsampling import Upsample2D
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn


class Span(NamedTuple):
    """A tile along one axis."""

    latents: slice
    pixels: slice
    weights: torch.Tensor  # of its pixels; those of all tiles sum to one


def tile_spans(size: int, tile: int, stride: int, scale: int = 1) -> list[Span]:
    """Tiles of one length, evenly spread and at most `stride` apart, over `size` latents of `scale` pixels each."""
    tile = min(tile, size)
    last = -(-(size - tile) // stride)
    starts = [round(i * (size - tile) / max(last, 1)) for i in range(last + 1)]
    # Convolutions see zeros beyond a tile: the outer quarter of an overlap has no weight, its middle half blends.
    overlap = min((start + tile - following for start, following in pairwise(starts)), default=0)
    places = (torch.arange(size * scale) + 0.5) / scale
    inward = [
        torch.minimum(places - (start or -size), (start + tile if start + tile < size else 2 * size) - places)
        for start in starts
    ]
    weights = (torch.stack(inward) - overlap / 4).clamp(0, max(overlap, 1 / scale) / 2)
    pixels = [slice(start * scale, (start + tile) * scale) for start in starts]
    return [
        Span(slice(start, start + tile), there, of_tile[there])
        for start, there, of_tile in zip(starts, pixels, weights / weights.sum(dim=0), strict=True)
    ]


class ClipGroupNorm(nn.GroupNorm):
    """A group norm that goes by the mean and variance of a whole clip while it sees a tile of it.

    Stock while `frames` is `None`; otherwise `frames` are those of the clip that its input holds. While `measuring`,
    it goes by its input and takes mean and variance of it for the clip. As in the stock norm, they are over all frames
    of 5-dimensional input, and of each frame in any other.
    """

    frames: slice | None = None
    measuring = False

    def start_clip(self, num_frames: int, device: torch.device) -> None:
        self.count, self.mean, self.var = torch.zeros(3, num_frames, self.num_groups, device=device)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.frames is None:
            return super().forward(input)
        of_clip: Any = self._of_clip
        return of_clip(input, self.frames)

    @torch.compiler.disable  # would be compiled anew for the frames of each tile
    def _of_clip(self, input: torch.Tensor, frames: slice) -> torch.Tensor:
        of_clip = input.ndim == 5
        if self.measuring:
            # Frame by frame, as float32 copies of all of them would be the peak of memory.
            for offset, frame in enumerate(input.detach().unbind(2 if of_clip else 0)):
                self._count_in(frame.float(), 0 if of_clip else frames.start + offset)
            return super().forward(input)
        # A batch norm in evaluation, whose channels are those of all frames: float32 within, whatever the dtype.
        rows, per_group = slice(1) if of_clip else frames, self.num_channels // self.num_groups
        mean, var = (values[rows].repeat_interleave(per_group, dim=1).flatten() for values in (self.mean, self.var))
        weight, bias = (values.float().repeat(len(input)) for values in (self.weight, self.bias))
        one = input.reshape(1, -1, *input.shape[2:])
        return nn.functional.batch_norm(one, mean, var, weight, bias, eps=self.eps).view(input.shape)

    def _count_in(self, frame: torch.Tensor, row: int) -> None:
        values = frame.reshape(self.num_groups, -1)
        var, mean = torch.var_mean(values, dim=1, correction=0)
        share = values.shape[1] / (self.count[row] + values.shape[1])
        change = mean - self.mean[row]
        self.var[row] += share * (var - self.var[row] + (1 - share) * change**2)
        self.mean[row] += share * change
        self.count[row] += values.shape[1]


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
    def _dict_from_json_file(cls, json_file: str | os.PathLike, **kwargs: Any) -> dict[str, Any]:
        parent: Any = super()
        try:
            config = parent._dict_from_json_file(json_file, **kwargs)
        except (ValueError, RecursionError) as error:
            raise OSError(f"{json_file} is not valid JSON ({type(error).__name__}: {error}).") from error
        if not isinstance(config, dict):
            raise OSError(f"{json_file} must hold a JSON object, not {type(config).__name__}.")
        return config

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        r"""
        As [`~ModelMixin.from_pretrained`], but strict: diffusers fills missing tensors at random and drops unknown
        ones, with a warning; both mean that the weights belong to another network.

        Raises:
            OSError: if a file is missing, or `config.json` is not JSON.
            ValueError: if the config does not describe this model, or the checkpoint misses tensors of it or holds
                others.
        """
        output_loading_info = kwargs.pop("output_loading_info", False)
        load: Any = super()
        try:
            model, info = load.from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        except (ImportError, OSError):
            raise
        except Exception as error:  # whatever a config or a weight file that is not this class's leads to
            if isinstance(error, ValueError) and str(pretrained_model_name_or_path) in str(error):
                raise
            raise ValueError(
                f"{pretrained_model_name_or_path} does not open as a {cls.__name__}: its `config.json` and weights do"
                f" not describe one ({type(error).__name__}: {' '.join(str(error).split())[:1000]})."
            ) from error
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
            down_block_types=down_block_types,  # pyright: ignore[reportArgumentType] - annotated as a tuple of one
            block_out_channels=block_out_channels,  # pyright: ignore[reportArgumentType] - the same
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            force_upcast=force_upcast,
        )
        self._rebuild_decoder(norm_num_groups=32)  # the number is the parent's, not in its config
        for module in list(self.decoder.modules()):
            for name, norm in module.named_children():
                if isinstance(norm, nn.GroupNorm):
                    setattr(module, name, ClipGroupNorm(norm.num_groups, norm.num_channels, norm.eps))
        self.use_slicing = False
        self.use_tiling = False
        self.tile_sample_min_height = self.tile_sample_min_width = 384
        self.tile_sample_min_num_frames = 14
        self.tile_sample_stride_height = self.tile_sample_stride_width = 320
        self.tile_sample_stride_num_frames = 11

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_sample_min_num_frames: int | None = None,
        tile_sample_stride_height: int | None = None,
        tile_sample_stride_width: int | None = None,
        tile_sample_stride_num_frames: int | None = None,
    ) -> None:
        r"""
        Decode clips larger than a tile in overlapping tiles of space and time; arguments in pixels and frames, `None`
        leaves one as it is. Memory is then that of a tile and the video (`pipelines/README.md` has figures):

            itemsize * k * tile_frames * tile_height * tile_width + 4 * out_channels * num_frames * height * width

        bytes, with `k = 384` for `P1`, 448 for `Q2` and 1024 for SVD's decoder; `tiled_decode` says what it gives.

        Raises:
            ValueError: if a number is no positive integer, a stride is larger than its tile, or pixels are no
                multiple of what the VAE downsamples by. All settings are then as they were.
        """
        asked = {name: value for name, value in locals().items() if name.startswith("tile_") and value is not None}
        for name, value in asked.items():
            multiple = 1 if name.endswith("num_frames") else self._scale
            if type(value) is not int or value < 1 or value % multiple:
                raise ValueError(f"`{name}` must be a positive multiple of {multiple}, not {value!r}.")
        settings = {name: value for name, value in vars(self).items() if name.startswith("tile_sample_")} | asked
        for axis in ("height", "width", "num_frames"):
            tile, stride = settings[f"tile_sample_min_{axis}"], settings[f"tile_sample_stride_{axis}"]
            if stride > tile:
                raise ValueError(
                    f"`tile_sample_stride_{axis}` ({stride}) must not exceed `tile_sample_min_{axis}` ({tile}): tiles"
                    " would leave gaps."
                )
        vars(self).update(asked)
        self.use_tiling = True

    def _spans(self, num_frames: int, height: int, width: int) -> list[list[Span]]:
        """The tiles of a clip of latents along its three axes."""
        scale = self._scale
        return [
            tile_spans(num_frames, self.tile_sample_min_num_frames, self.tile_sample_stride_num_frames),
            tile_spans(height, self.tile_sample_min_height // scale, self.tile_sample_stride_height // scale, scale),
            tile_spans(width, self.tile_sample_min_width // scale, self.tile_sample_stride_width // scale, scale),
        ]

    @property
    def _scale(self) -> int:
        return 2 ** (len(self.config.block_out_channels) - 1)

    @apply_forward_hook
    def decode(self, z: torch.Tensor, num_frames: int, return_dict: bool = True) -> DecoderOutput | tuple:
        """As the parent's; one clip at a time with `enable_slicing()`, in tiles with `enable_tiling()`."""
        if self.use_slicing and len(z) > num_frames:
            sample = torch.cat([self.decode(clip, num_frames).sample for clip in z.split(num_frames)])
            return DecoderOutput(sample=sample) if return_dict else (sample,)
        if self.use_tiling and any(len(tiles) > 1 for tiles in self._spans(num_frames, *z.shape[2:])):
            return self.tiled_decode(z, num_frames, return_dict)
        whole: Any = super().decode(z, num_frames, return_dict)
        return whole

    def tiled_decode(self, z: torch.Tensor, num_frames: int, return_dict: bool = True) -> DecoderOutput | tuple:
        r"""
        Decode each clip in tiles. Norms that went by each tile alone would give it a contrast of its own, hence seams:
        they go by what they see in a version of the clip that was made as small as a tile, which costs one tile more
        for each chunk of frames. Two differences to decoding the whole remain. These statistics are an estimate, whose
        error is common to all tiles; and a place sees no further than its tile, also where there is attention.

        Args:
            z (`torch.Tensor`): Latents `(batch * num_frames, latent_channels, height, width)`.
            num_frames (`int`): Of each clip.
            return_dict (`bool`, defaults to `True`): A [`~models.vae.DecoderOutput`], or a tuple.

        Raises:
            ValueError: if `z` does not hold whole clips, or with gradient checkpointing, which would run tiles again
                without their places.
        """
        if len(z) % num_frames:
            raise ValueError(f"`z` holds {len(z)} frames, which are no clips of {num_frames}.")
        if torch.is_grad_enabled() and self.decoder.gradient_checkpointing:
            raise ValueError("Tiles cannot be checkpointed: use `torch.no_grad()`, or `disable_tiling()`.")
        spans = self._spans(num_frames, *z.shape[2:])
        shape = len(z), self.config.out_channels, *(tiles[-1].pixels.stop for tiles in spans[1:])
        video = z.new_zeros(shape, dtype=torch.float32)
        try:
            for start in range(0, len(z), num_frames):
                latents, clip = z[start : start + num_frames], video[start : start + num_frames]
                self._measure(latents, *spans)
                for frames, rows, columns in product(*spans):
                    tile = self._decode_part(latents[frames.latents, :, rows.latents, columns.latents], frames)
                    weights = frames.weights[:, None, None, None] * rows.weights[:, None] * columns.weights
                    clip[frames.pixels, :, rows.pixels, columns.pixels] += tile * weights.to(tile.device)
        finally:
            for norm in self._norms:
                norm.frames = None
        sample = video.to(z.dtype)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @torch.no_grad()
    def _measure(self, latents: torch.Tensor, frames: list[Span], rows: list[Span], columns: list[Span]) -> None:
        """Gives the norms the statistics of a clip, from its nearest version of the size of a tile."""
        for norm in self._norms:
            norm.start_clip(len(latents), latents.device)
        size = rows[0].latents.stop, columns[0].latents.stop
        small = nn.functional.interpolate(latents, size, mode="nearest")
        for span in frames:
            self._decode_part(small[span.latents], span, measuring=True)

    def _decode_part(self, latents: torch.Tensor, frames: Span, measuring: bool = False) -> torch.Tensor:
        for norm in self._norms:
            norm.frames, norm.measuring = frames.latents, measuring
        return super().decode(latents, num_frames=len(latents)).sample

    @property
    def _norms(self) -> list[ClipGroupNorm]:
        return [module for module in self.decoder.modules() if isinstance(module, ClipGroupNorm)]

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
            down_block_types=down_block_types,  # pyright: ignore[reportArgumentType] - annotated as a tuple of one
            up_block_types=up_block_types,  # pyright: ignore[reportArgumentType] - the same
            block_out_channels=block_out_channels,  # pyright: ignore[reportArgumentType] - the same
            layers_per_block=layers_per_block,
            act_fn=act_fn,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
            latents_mean=latents_mean,  # pyright: ignore[reportArgumentType] - the same
            latents_std=latents_std,  # pyright: ignore[reportArgumentType] - the same
            force_upcast=force_upcast,
            use_quant_conv=use_quant_conv,
            use_post_quant_conv=use_post_quant_conv,
            mid_block_add_attention=mid_block_add_attention,
        )
        self._rebuild_decoder(norm_num_groups)

    def _mid_block(self, width: int) -> nn.Module:
        return UNetMidBlock2D(
            in_channels=width,
            temb_channels=None,  # pyright: ignore[reportArgumentType] - as diffusers itself does
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
