"""The text-to-video U-Net of VDMini, and its teachers (Wu et al., ACM MM 2025, section 3.2, Tables A3 and A4).

This file is also published beside the weights, where it runs without the package: it imports third-party code only,
and repeats what it shares with the image-to-video U-Net.
"""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers import UNet3DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding

# Not used below: diffusers takes a pipeline's component for a model if the module of its class holds `ModelMixin`.
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401 - see above
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput
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


class Checkpointed:
    """Gradient checkpointing for a layer that has none in diffusers: activations are computed again, not stored."""

    gradient_checkpointing = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = super().forward
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(partial(forward, **kwargs), *args)
        return forward(*args, **kwargs)


class VDMiniResnetBlock2D(Checkpointed, ResnetBlock2D):
    pass


class VDMiniTemporalConvLayer(Checkpointed, TemporalConvLayer):
    pass


class VDMiniTransformerTemporalModel(Checkpointed, TransformerTemporalModel):
    pass


# What stock layers become. `Transformer2DModel` is not among them: it has gradient checkpointing.
CHECKPOINTED = {
    ResnetBlock2D: VDMiniResnetBlock2D,
    TemporalConvLayer: VDMiniTemporalConvLayer,
    TransformerTemporalModel: VDMiniTransformerTemporalModel,
}


class VDMiniTimestepEmbedding(TimestepEmbedding):
    """The embedding of the timestep, with those of guidance, motion guidance and frame rate that come to it.

    The guidances, combined if there are two, are added to the sinusoid of the timestep, before the two layers. The
    frame rate has two layers of its own, whose output is added after them.
    """

    def __init__(
        self,
        in_channels: int,
        time_embed_dim: int,
        act_fn: str,
        cond_proj_dim: int | None,
        motion_cond_proj_dim: int | None,
        fps_cond: bool,
    ):
        super().__init__(in_channels, time_embed_dim, act_fn=act_fn, cond_proj_dim=cond_proj_dim)
        self.motion_cond_proj = self.combine_proj = self.fps_embedding = None
        if motion_cond_proj_dim is not None:
            self.motion_cond_proj = nn.Linear(motion_cond_proj_dim, in_channels, bias=False)
            self.combine_proj = nn.Linear(2 * in_channels, in_channels, bias=False)
        if fps_cond:
            self.fps_embedding = TimestepEmbedding(in_channels, time_embed_dim, act_fn=act_fn)

    def forward(self, sample: torch.Tensor, condition: tuple[torch.Tensor | None, ...]) -> torch.Tensor:
        """All `(batch, channels)`, in the weights' dtype: the timestep's sinusoid; embeddings of guidance and motion
        guidance, and the frame rate's sinusoid, each of them or `None`."""
        timestep_cond, motion_cond, fps = condition
        if timestep_cond is not None:
            guidance = self.cond_proj(timestep_cond)
            if motion_cond is not None:
                guidance = self.combine_proj(torch.cat([guidance, self.motion_cond_proj(motion_cond)], dim=-1))
            sample = sample + guidance
        embedding = super().forward(sample)
        return embedding if fps is None else embedding + self.fps_embedding(fps)


class VDMiniUNet3DConditionModel(UNet3DConditionModel, PeftAdapterMixin):
    r"""
    A [`UNet3DConditionModel`] whose stages, layers and mid block may have been pruned, and which may be conditioned on
    guidance, motion guidance and frame rate, as T2V-Turbo-v2 is. Built without arguments it is the paper's VDMini-T2V
    U-Net (Tables A3 and A4): 817,019,780 parameters.

    With four stages of two layers and a mid block it is a teacher: T2V-Turbo-v2 (1,413,653,060 parameters); without
    motion guidance T2V-Turbo, without guidance VideoCrafter2, without frame rate ModelScope's.

    The forward pass is the parent's. Beyond the parent it takes gradient checkpointing, LoRA adapters, attention
    backends, regional compilation and device maps, and it refuses a checkpoint that does not fill it exactly.

    Parameters:
        sample_size, ..., num_attention_heads:
            As in [`UNet3DConditionModel`]; the defaults describe three stages instead of four.
        layers_per_block (`int` or `tuple[int]`, *optional*, defaults to `(1, 1, 2)`):
            Layers of each down block; the up block that mirrors it has one more.
        time_cond_proj_dim (`int`, *optional*, defaults to 256):
            Channels of the embedding of the guidance weight; `None` without this condition.
        mid_block_type (`str`, *optional*, defaults to `None`):
            `None` for no mid block, or `"UNetMidBlock3DCrossAttn"`.
        fps_cond (`bool`, *optional*, defaults to `True`):
            Whether the model is conditioned on the frame rate.
        motion_cond_proj_dim (`int`, *optional*, defaults to 256):
            Channels of the embedding of the strength of motion guidance; `None` without this condition.

    Raises:
        ValueError: if the arguments contradict each other.
    """

    _supports_gradient_checkpointing = True
    # A device map may cut between these blocks, not inside: inside, skip connections meet the hidden states.
    _no_split_modules = [
        "CrossAttnDownBlock3D",
        "DownBlock3D",
        "UNetMidBlock3DCrossAttn",
        "UpBlock3D",
        "CrossAttnUpBlock3D",
        "VDMiniTransformerTemporalModel",
    ]
    # One graph per width. The ResBlocks are left out: the skip connections give nearly each its own shapes, so they
    # pass torch's limit of 8 graphs, at which compilation fails (`fullgraph=True`) or silently ends.
    _repeated_blocks = ["Transformer2DModel", "VDMiniTransformerTemporalModel", "VDMiniTemporalConvLayer"]
    _skip_layerwise_casting_patterns = ["norm", "conv_in", "conv_out", "time_embedding"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = ("CrossAttnDownBlock3D",) * 3,
        up_block_types: tuple[str, ...] = ("CrossAttnUpBlock3D",) * 3,
        block_out_channels: tuple[int, ...] = (320, 640, 1280),
        layers_per_block: int | tuple[int, ...] = (1, 1, 2),
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1024,
        attention_head_dim: int = 64,
        num_attention_heads: int | None = None,
        time_cond_proj_dim: int | None = 256,
        mid_block_type: str | None = None,
        fps_cond: bool = True,
        motion_cond_proj_dim: int | None = 256,
    ):
        if mid_block_type not in (None, "UNetMidBlock3DCrossAttn"):
            raise ValueError(f"`mid_block_type` must be None or 'UNetMidBlock3DCrossAttn', not {mid_block_type!r}.")
        if motion_cond_proj_dim is not None and time_cond_proj_dim is None:
            raise ValueError(
                "`motion_cond_proj_dim` needs `time_cond_proj_dim`: the two are combined. The U-Net of VideoCrafter2"
                " has neither; that of ModelScope has no `fps_cond` either."
            )
        num_stages = len(block_out_channels)
        depths = (layers_per_block,) * num_stages if isinstance(layers_per_block, int) else tuple(layers_per_block)
        if len(depths) != num_stages or min(depths) < 1:
            raise ValueError(f"`layers_per_block` is one or {num_stages} counts from 1, not {depths}.")
        super().__init__(
            sample_size=sample_size,  # pyright: ignore[reportArgumentType] - it takes both
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=max(depths),
            downsample_padding=downsample_padding,
            mid_block_scale_factor=mid_block_scale_factor,
            act_fn=act_fn,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            time_cond_proj_dim=time_cond_proj_dim,
        )
        self.register_to_config(layers_per_block=layers_per_block)  # the parent has registered the greatest of them
        for stage, depth in enumerate(depths):
            _keep_layers(self.down_blocks[stage], range(depth))
            # The last layer of an up block is the one that meets the narrower skip connection.
            _keep_layers(self.up_blocks[num_stages - 1 - stage], (*range(depth), -1))
        if mid_block_type is None:
            self.mid_block = None
        width = block_out_channels[0]
        self.time_embedding = VDMiniTimestepEmbedding(
            width, 4 * width, act_fn, time_cond_proj_dim, motion_cond_proj_dim, fps_cond
        )
        for module in self.modules():
            module.__class__ = CHECKPOINTED.get(type(module), type(module))
        self.set_default_attn_processor()

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        down_block_additional_residuals: tuple[torch.Tensor] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        return_dict: bool = True,
        fps: torch.Tensor | float | int | None = None,
        motion_cond: torch.Tensor | None = None,
    ) -> UNet3DConditionOutput | tuple[torch.Tensor]:
        r"""
        As [`UNet3DConditionModel.forward`], and:

        Args:
            timestep_cond (`torch.Tensor` of shape `(batch, time_cond_proj_dim)`, *optional*):
                Embedding of the guidance weight.
            fps (`torch.Tensor`, `float` or `int`):
                Frames per second: one number, or one for each sample. Required if the config has `fps_cond`.
            motion_cond (`torch.Tensor` of shape `(batch, motion_cond_proj_dim)`, *optional*):
                Embedding of the strength of motion guidance. Its absence is another input than a strength of 0.

        Raises:
            ValueError: for a condition that the model does not take, and for one that it needs and does not get.
        """
        embedding = self.time_embedding
        for name, value, layer in (
            ("timestep_cond", timestep_cond, embedding.cond_proj),
            ("motion_cond", motion_cond, embedding.motion_cond_proj),
            ("fps", fps, embedding.fps_embedding),
        ):
            if value is not None and layer is None:
                raise ValueError(f"`{name}` is given, and this model, by its config, has no embedding of it.")
        if motion_cond is not None and timestep_cond is None:
            raise ValueError("`motion_cond` needs `timestep_cond`: the two are combined.")
        if fps is None and embedding.fps_embedding is not None:
            raise ValueError("`fps` is required: this model is conditioned on it (`fps_cond` in its config).")
        if fps is not None:
            fps = self.time_proj(torch.as_tensor(fps, device=sample.device).expand(sample.shape[0]))
        dtype = self.dtype  # read once, as it is looked for in every module
        condition: Any = tuple(x if x is None else x.to(dtype) for x in (timestep_cond, motion_cond, fps))
        return super().forward(
            sample,
            timestep,
            encoder_hidden_states,
            class_labels=class_labels,
            timestep_cond=condition,  # which the parent only hands to `time_embedding`
            attention_mask=attention_mask,
            cross_attention_kwargs=cross_attention_kwargs,
            down_block_additional_residuals=down_block_additional_residuals,
            mid_block_additional_residual=mid_block_additional_residual,
            return_dict=return_dict,
        )

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
                f" describes it: {' and '.join(problems)}. The config of a `UNet3DConditionModel` does not say"
                " `fps_cond`, `motion_cond_proj_dim` and `mid_block_type`: pass them. T2V-Turbo's and VideoCrafter2's"
                " own files are converted by `conversion/convert_t2v_turbo_to_diffusers.py`."
            )
        return (model, info) if output_loading_info else model


def _keep_layers(block: nn.Module, kept: Sequence[int]) -> None:
    for name, layers in list(block.named_children()):
        if isinstance(layers, nn.ModuleList) and name in ("resnets", "temp_convs", "attentions", "temp_attentions"):
            setattr(block, name, nn.ModuleList(layers[i] for i in kept))
