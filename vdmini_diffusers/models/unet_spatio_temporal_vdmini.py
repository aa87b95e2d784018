"""The image-to-video student of VDMini (Wu et al., ACM MM 2025, section 3.2 and Table A4).

This file is also published beside the weights, where it runs without the package: it imports third-party code only.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention

# Not used below: diffusers takes a pipeline's component for a model if the module of its class holds `ModelMixin`.
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401 - see above
from diffusers.models.resnet import Downsample2D, Upsample2D
from torch import nn


class VDMiniAttnProcessor:
    """Attention through diffusers' backend dispatcher, which the stock processors of this U-Net do not reach.

    With the default backend the output is bit-equal to `AttnProcessor2_0`. Also honours fused projections.
    """

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`hidden_states` of shape `(batch, sequence, channels)`; all tokens attend to all."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attn.fused_projections and not attn.is_cross_attention:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        elif attn.fused_projections:
            query, (key, value) = attn.to_q(hidden_states), attn.to_kv(context).chunk(2, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in (query, key, value))
        hidden_states = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        hidden_states = hidden_states.flatten(-2).to(query.dtype)
        for layer in attn.to_out:  # linear, dropout
            hidden_states = layer(hidden_states)
        return hidden_states


class PassThroughMidBlock(nn.Module):
    """Stands where the removed mid block was called; returns `hidden_states` as they came."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: torch.Tensor | None) -> torch.Tensor:
        return hidden_states


def set_layer_widths(unet: nn.Module, layer_widths: Mapping[str, Sequence[int]]) -> None:
    """Narrow the named layers of a U-Net in place, to their first channels and heads.

    Args:
        layer_widths: `[out, in]` channels of a linear or convolutional layer, `[channels]` of a norm, `[heads]` of an
            attention, by the module's name.

    Raises:
        ValueError: if a name is not that of such a module, or a width is not one that it can be narrowed to.
    """
    modules = dict(unet.named_modules())
    for name, widths in layer_widths.items():
        layer: Any = modules.get(name)
        if isinstance(layer, nn.Linear):
            fields, present = ("out_features", "in_features"), layer.weight.shape
        elif isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            fields, present = ("out_channels", "in_channels"), layer.weight.shape[:2]
        elif isinstance(layer, nn.GroupNorm):
            fields, present = ("num_channels",), layer.weight.shape
        elif isinstance(layer, nn.LayerNorm):
            fields, present = ("normalized_shape",), layer.weight.shape
        elif isinstance(layer, Attention):
            fields, present = ("heads",), (layer.heads,)
        else:
            raise ValueError(
                f"`layer_widths` names {str(name)[:200]!r}, which is no layer of this U-Net with a width."
            )
        _check_widths(name, widths, tuple(present), getattr(layer, "num_groups", 1))
        for field, width in zip(fields, widths, strict=True):
            setattr(layer, field, (width,) if field == "normalized_shape" else width)
        if not isinstance(layer, Attention):
            layer.weight = nn.Parameter(layer.weight.detach()[tuple(slice(width) for width in widths)].clone())
            if layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias.detach()[: widths[0]].clone())
    for name, module in modules.items():
        if isinstance(module, (Downsample2D, Upsample2D)):  # they assert what they were built with
            conv: Any = module.conv
            module.channels, module.out_channels = conv.in_channels, conv.out_channels
        if isinstance(module, Attention) and module.to_q.out_features % module.heads:
            raise ValueError(
                f"`layer_widths` gives {name} {module.to_q.out_features} channels for {module.heads} heads; heads are"
                " of equal width."
            )


def _check_widths(name: str, widths: Any, present: tuple[int, ...], num_groups: int) -> None:
    if (
        not isinstance(widths, (list, tuple))
        or len(widths) != len(present)
        or not all(type(width) is int and 1 <= width <= most for width, most in zip(widths, present, strict=True))
        or widths[0] % num_groups
    ):
        groups = f", a multiple of its {num_groups} groups" if num_groups > 1 else ""
        raise ValueError(
            f"`layer_widths[{name!r}]` must be {len(present)} whole numbers from 1 up to {list(present)}{groups}, not"
            f" {str(widths)[:200]}."
        )


class VDMiniUNetSpatioTemporalConditionModel(UNetSpatioTemporalConditionModel, PeftAdapterMixin):
    r"""
    A [`UNetSpatioTemporalConditionModel`] whose stages, layers, mid block and channels may have been pruned. Built
    without arguments it is the paper's VDMini-I2V U-Net (Table A4): 939,884,186 parameters.

    The forward pass is the parent's. Beyond the parent it takes LoRA adapters, attention backends, regional
    compilation and device maps, and it refuses a checkpoint that does not fill it exactly.

    Parameters:
        sample_size, in_channels, out_channels, down_block_types, up_block_types, block_out_channels,
        addition_time_embed_dim, projection_class_embeddings_input_dim, cross_attention_dim,
        transformer_layers_per_block, num_attention_heads, num_frames:
            As in [`UNetSpatioTemporalConditionModel`]; the defaults describe three stages instead of four, and the
            14 frames of the paper instead of 25.
        layers_per_block (`int` or `tuple[int]`, *optional*, defaults to `(1, 1, 2)`):
            Layers of each down block; the up block that mirrors it has one more.
        mid_block_type (`str`, *optional*, defaults to `None`):
            `None` for no mid block, or `"UNetMidBlockSpatioTemporal"`.
        layer_widths (`dict[str, list[int]]`, *optional*, defaults to `None`):
            Where channels were pruned: the widths of layers that are narrower than the other fields say, by the names
            of modules. `[out, in]` of a linear or convolutional layer, `[channels]` of a norm, `[heads]` of an
            attention.

    Raises:
        ValueError: if `mid_block_type` is neither of the two, or `layer_widths` does not fit.
    """

    # A device map may cut between these blocks, not inside: inside, skip connections meet the hidden states.
    _no_split_modules = [
        "CrossAttnDownBlockSpatioTemporal",
        "DownBlockSpatioTemporal",
        "UNetMidBlockSpatioTemporal",
        "UpBlockSpatioTemporal",
        "CrossAttnUpBlockSpatioTemporal",
    ]
    # One graph per width. The spatial ResBlocks are left out: the skip connections give nearly each its own shapes, so
    # they pass torch's limit of 8 graphs, at which compilation fails (`fullgraph=True`) or silently ends.
    _repeated_blocks = ["TransformerSpatioTemporalModel", "TemporalResnetBlock"]
    _skip_layerwise_casting_patterns = ["norm", "conv_in", "conv_out", "time_embedding", "add_embedding"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 8,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = ("CrossAttnDownBlockSpatioTemporal",) * 3,
        up_block_types: tuple[str, ...] = ("CrossAttnUpBlockSpatioTemporal",) * 3,
        block_out_channels: tuple[int, ...] = (320, 640, 1280),
        addition_time_embed_dim: int = 256,
        projection_class_embeddings_input_dim: int = 768,
        layers_per_block: int | tuple[int, ...] = (1, 1, 2),
        cross_attention_dim: int | tuple[int, ...] = 1024,
        transformer_layers_per_block: int | tuple[int, ...] = 1,
        num_attention_heads: int | tuple[int, ...] = (5, 10, 20),
        num_frames: int = 14,
        mid_block_type: str | None = None,
        layer_widths: dict[str, list[int]] | None = None,
    ):
        if mid_block_type not in (None, "UNetMidBlockSpatioTemporal"):
            raise ValueError(f"`mid_block_type` must be None or 'UNetMidBlockSpatioTemporal', not {mid_block_type!r}.")
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            addition_time_embed_dim=addition_time_embed_dim,
            projection_class_embeddings_input_dim=projection_class_embeddings_input_dim,
            layers_per_block=layers_per_block,  # pyright: ignore[reportArgumentType] - annotated as a tuple of one
            cross_attention_dim=cross_attention_dim,  # pyright: ignore[reportArgumentType] - the same
            transformer_layers_per_block=transformer_layers_per_block,  # pyright: ignore[reportArgumentType] - the same
            num_attention_heads=num_attention_heads,
            num_frames=num_frames,
        )
        if mid_block_type is None:
            self.mid_block = PassThroughMidBlock()
        if layer_widths is not None:
            if not isinstance(layer_widths, dict):
                raise ValueError(f"`layer_widths` maps modules to widths, and is no {type(layer_widths).__name__}.")
            set_layer_widths(self, layer_widths)
        self.set_default_attn_processor()

    def set_default_attn_processor(self) -> None:
        """Back to the processors this model is built with, which know attention backends and fused projections."""
        for module in self._attention_modules():
            module.set_processor(VDMiniAttnProcessor())  # pyright: ignore[reportArgumentType] - it takes any processor; one each: a backend is a processor's own state

    def fuse_qkv_projections(self) -> None:
        """One matrix multiplication for query, key and value (key and value, in cross-attention) instead of three.

        The weights are copied: unfuse before saving or training. The parent's method does nothing here, as it looks
        for another class of attention modules than this U-Net has.
        """
        for module in self._attention_modules():
            module.fuse_projections()

    def unfuse_qkv_projections(self) -> None:
        """Drop the fused copies of the weights."""
        for module in self._attention_modules():
            if module.fused_projections:
                delattr(module, "to_kv" if module.is_cross_attention else "to_qkv")
                module.fused_projections = False

    def _attention_modules(self) -> list[Attention]:
        return [module for module in self.modules() if isinstance(module, Attention)]

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike, **kwargs: Any) -> dict[str, Any]:
        try:
            config = super()._dict_from_json_file(json_file, **kwargs)
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
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
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
                f" describes it: {' and '.join(problems)}. A teacher's U-Net opens with"
                " `UNetSpatioTemporalConditionModel`, and becomes a student with"
                " `conversion/convert_svd_to_vdmini.py`; a student opens with this class."
            )
        return (model, info) if output_loading_info else model
