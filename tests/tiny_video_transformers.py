"""A tiny transformer of every class in `BLOCK_LISTS`, what its forward pass takes, and a plan for it.

`TRANSFORMERS` is data: the walk over all classes of diffusers and the table in the documents are made from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from tiny import randomise
from torch import Tensor, nn


@dataclass(frozen=True)
class TinyTransformer:
    """How one class is tried.

    Args:
        config: of the teacher. Blocks must be few and narrow.
        inputs: makes what the forward pass takes, in a new object each time, as caches are filled.
        kept: what the plan keeps of each list, and a hand that deletes blocks.
        fields: the config fields that a hand has to set besides, as the forward pass reads them.
        attributes: the attributes, likewise.
        refused: plans that do not fit, and why not.
    """

    config: Mapping[str, Any]
    inputs: Callable[[], dict[str, Any]]
    kept: Mapping[str, tuple[int, ...]]
    fields: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    refused: tuple[tuple[Mapping[str, tuple[int, ...]], str], ...] = ()


def tiny_transformer(class_name: str) -> Any:
    """With every tensor random."""
    transformer = getattr(diffusers, class_name)(**TRANSFORMERS[class_name].config)
    return randomise(transformer).eval()


def cut_by_hand(transformer: Any, tiny: TinyTransformer) -> Any:
    """Blocks deleted in place: knows neither a student's config nor a map of weights."""
    for name, kept in tiny.kept.items():
        blocks = getattr(transformer, name)
        setattr(transformer, name, nn.ModuleList(blocks[i] for i in kept))
    transformer.register_to_config(**tiny.fields)
    for name, value in tiny.attributes.items():
        setattr(transformer, name, value)
    return transformer


def outputs(transformer: Any, tiny: TinyTransformer) -> list[Tensor]:
    """All tensors that a forward pass returns."""
    with torch.no_grad():
        return _tensors(transformer(**tiny.inputs(), return_dict=False))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in _tensors(part)]
    return []


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def video_and_text(channels: int = 4, text: int = 16, frames: int = 2, size: int = 4, **more: Any) -> dict[str, Any]:
    """What most take: a clip, a prompt of 5 tokens, and a timestep for each of two samples."""
    inputs = {
        "hidden_states": normal(2, channels, frames, size, size),
        "timestep": torch.tensor([10, 500]),
        "encoder_hidden_states": normal(2, 5, text, seed=2),
    }
    return inputs | more


def mask() -> Tensor:
    return torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


def frames_first(**more: Any) -> dict[str, Any]:
    inputs = video_and_text(**more)
    return inputs | {"hidden_states": inputs["hidden_states"].transpose(1, 2)}


def framepack_inputs() -> dict[str, Any]:
    return video_and_text(
        frames=3,
        encoder_attention_mask=mask(),
        pooled_projections=normal(2, 8),
        guidance=torch.tensor([1000.0, 6000.0]),
        image_embeds=normal(2, 3, 16),
        indices_latents=torch.arange(3.0),
        latents_clean=normal(2, 4, 2, 4, 4),
        indices_latents_clean=torch.arange(2.0),
        latents_history_2x=normal(2, 4, 2, 4, 4, seed=3),
        indices_latents_history_2x=torch.arange(2.0),
        latents_history_4x=normal(2, 4, 8, 4, 4, seed=4),
        indices_latents_history_4x=torch.arange(8.0),
    )


def cosmos_3_inputs() -> dict[str, Any]:
    vision = torch.arange(2, 6)
    return {
        "input_ids": torch.tensor([1, 2]),
        "text_indexes": torch.tensor([0, 1]),
        "position_ids": torch.arange(6).expand(3, 6),
        "und_len": 2,
        "sequence_length": 6,
        "vision_tokens": [normal(1, 2, 1, 2, 2)],
        "vision_token_shapes": [(1, 2, 2)],
        "vision_sequence_indexes": vision,
        "vision_mse_loss_indexes": vision,
        "vision_timesteps": torch.ones(4),
        "vision_noisy_frame_indexes": [torch.tensor([0])],
    }


def ltx_2_inputs() -> dict[str, Any]:
    return {
        "hidden_states": normal(2, 8, 4),
        "audio_hidden_states": normal(2, 3, 4),
        "encoder_hidden_states": normal(2, 5, 16),
        "audio_encoder_hidden_states": normal(2, 5, 16, seed=2),
        "timestep": torch.tensor([10.0, 500.0]),
        "encoder_attention_mask": mask(),
        "audio_encoder_attention_mask": mask(),
        **{"num_frames": 2, "height": 2, "width": 2, "audio_num_frames": 3, "fps": 25.0},
    }


def minimax_h3_inputs() -> dict[str, Any]:
    tags = torch.tensor([1] * 3 + [2] * 3 + [0] * 4)
    return {
        "hidden_states": normal(2, 4, 16),
        "audio_hidden_states": normal(2, 3, 6),
        "encoder_hidden_states": normal(2, 3, 8),
        "timestep": torch.tensor([0.7, 0.3]),
        "timestep_indices": (tags == 2).long(),
        "token_tags": tags,
        "position_ids": normal(10, 3).abs(),
        "text_indices": torch.arange(3),
        "audio_indices": torch.arange(3, 6),
        "video_indices": torch.arange(6, 10),
    }


def wan_animate_2_inputs() -> dict[str, Any]:
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return {
        "hidden_states": [normal(4, 1, 4, 4)],
        "timestep": torch.tensor([1.0]),
        "encoder_hidden_states": [normal(3, 8)],
        "condition_latents": [normal(4, 1, 4, 4, seed=2)],
        "kv_cache": WanAnimate2KVCache(12),
        "kv_cache_mode": "extract",
        "seq_len": 4,
        "offset_grid_sizes": torch.tensor([[1, 2, 2]]),
    }


WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 6,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": 4,
    "rope_max_seq_len": 128,
}
ANY_FLOW = WAN | {"attention_head_dim": 12}
COGVIDEO = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 4,
    "text_embed_dim": 16,
    "num_layers": 4,
    "sample_width": 4,
    "sample_height": 4,
    "sample_frames": 5,
    "max_text_seq_length": 5,
}
HUNYUAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_layers": 3,
    "num_single_layers": 4,
    "num_refiner_layers": 1,
    "text_embed_dim": 16,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (2, 4, 4),
}
DUAL_AND_SINGLE = {"transformer_blocks": (0, 2), "single_transformer_blocks": (1, 3)}
JOY = {
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 16,
    "num_layers": 4,
    "rope_dim_list": [4, 6, 6],
}
LTX = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
    "num_layers": 4,
    "caption_channels": 16,
}
LTX_2 = LTX | {
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 8,
    "rope_double_precision": False,
}
THREE_OF_FOUR = {"blocks": (0, 1, 3)}
THREE_TRANSFORMER_BLOCKS = {"transformer_blocks": (0, 1, 3)}


TRANSFORMERS = {
    "AllegroTransformer3DModel": TinyTransformer(
        config={
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 4,
            "cross_attention_dim": 24,
            "caption_channels": 16,
        },
        inputs=lambda: video_and_text(encoder_attention_mask=mask()),
        kept=THREE_TRANSFORMER_BLOCKS,
    ),
    "AnyFlowFARTransformer3DModel": TinyTransformer(
        config=ANY_FLOW | {"compressed_patch_size": (1, 4, 4), "full_chunk_limit": 3},
        inputs=lambda: frames_first(
            timestep=torch.full((2, 2), 500.0), r_timestep=torch.full((2, 2), 250.0), chunk_partition=[1, 1]
        ),
        kept=THREE_OF_FOUR,
    ),
    "AnyFlowTransformer3DModel": TinyTransformer(
        config=ANY_FLOW,
        inputs=lambda: frames_first(timestep=torch.full((2, 2), 500.0), r_timestep=torch.full((2, 2), 250.0)),
        kept=THREE_OF_FOUR,
    ),
    "ChronoEditTransformer3DModel": TinyTransformer(config=WAN, inputs=video_and_text, kept=THREE_OF_FOUR),
    "CogVideoXTransformer3DModel": TinyTransformer(
        config=COGVIDEO, inputs=frames_first, kept=THREE_TRANSFORMER_BLOCKS
    ),
    "ConsisIDTransformer3DModel": TinyTransformer(
        config=COGVIDEO
        | {
            "num_layers": 6,
            "is_train_face": True,
            "cross_attn_interval": 2,
            "cross_attn_dim_head": 1,
            "cross_attn_num_heads": 1,
            "LFE_id_dim": 2,
            "LFE_vit_dim": 2,
            "LFE_depth": 5,
            "LFE_dim_head": 8,
            "LFE_num_heads": 2,
            "LFE_num_id_token": 1,
            "LFE_num_querie": 1,
            "LFE_output_dim": 10,
            "LFE_ff_mult": 1,
            "LFE_num_scale": 1,
        },
        inputs=lambda: frames_first(id_vit_hidden=[normal(2, 2, 2)], id_cond=normal(2, 2)),
        kept={"transformer_blocks": (0, 3, 4, 5), "perceiver_cross_attention": (0, 2)},
        refused=(
            (
                {"transformer_blocks": (0, 1, 3, 4), "perceiver_cross_attention": (0, 2)},
                r"would after \[0, 3\] of 4, which are not every n-th",
            ),
            (
                {"transformer_blocks": (0, 1, 2, 3), "perceiver_cross_attention": (0,)},
                r"transformer_blocks\.2 needs perceiver_cross_attention\.1",
            ),
            ({"transformer_blocks": (0, 1)}, "'perceiver_cross_attention' the teacher has, and the plan keeps none"),
        ),
    ),
    "Cosmos3OmniTransformer": TinyTransformer(
        config={
            "head_dim": 6,
            "hidden_size": 12,
            "intermediate_size": 24,
            "latent_channel": 2,
            "latent_patch_size": 1,
            "num_attention_heads": 2,
            "num_hidden_layers": 4,
            "num_key_value_heads": 1,
            "patch_latent_dim": 2,
            "rope_axes_dim": [1, 1, 1],
            "vocab_size": 32,
        },
        inputs=cosmos_3_inputs,
        kept={"layers": (0, 1, 3)},
    ),
    "CosmosTransformer3DModel": TinyTransformer(
        config={
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 6,
            "mlp_ratio": 2,
            "text_embed_dim": 16,
            "adaln_lora_dim": 4,
            "max_size": (4, 32, 32),
            "controlnet_block_every_n": 3,
            "concat_padding_mask": False,  # it would need torchvision
        },
        inputs=lambda: video_and_text(
            block_controlnet_hidden_states=[normal(2, 8, 24, seed=seed) for seed in (3, 4)],
            fps=30,
        ),
        kept={"transformer_blocks": (0, 2, 3, 4)},
        fields={"controlnet_block_every_n": 2},
        refused=(
            (
                {"transformer_blocks": (0, 1, 2, 4, 5)},
                r"takes the output of a block of the ControlNet: transformer_blocks\.3 cannot be",
            ),
            ({"transformer_blocks": (0, 3, 4)}, r"the blocks \[0, 1\] would, which are not every n-th"),
        ),
    ),
    "EasyAnimateTransformer3DModel": TinyTransformer(
        config={
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 2,
            "num_layers": 5,
            "mmdit_layers": 3,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
        },
        inputs=video_and_text,
        kept={"transformer_blocks": (0, 2, 4)},
    ),
    "HeliosTransformer3DModel": TinyTransformer(
        config={name: value for name, value in WAN.items() if name != "rope_max_seq_len"}
        | {"attention_head_dim": 12, "rope_dim": (4, 4, 4), "has_multi_term_memory_patch": True},
        inputs=lambda: video_and_text(
            size=8,
            indices_hidden_states=torch.ones(2, 2),
            indices_latents_history_short=torch.ones(2, 1),
            latents_history_short=normal(2, 4, 1, 8, 8, seed=3),
        ),
        kept=THREE_OF_FOUR,
    ),
    "HunyuanVideo15Transformer3DModel": TinyTransformer(
        config={
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 4,
            "num_refiner_layers": 1,
            "text_embed_dim": 16,
            "text_embed_2_dim": 8,
            "image_embed_dim": 12,
            "rope_axes_dim": (2, 2, 4),
        },
        inputs=lambda: video_and_text(
            timestep=torch.tensor([10.0, 500.0]),
            encoder_attention_mask=mask(),
            encoder_hidden_states_2=normal(2, 5, 8),
            encoder_attention_mask_2=mask(),
            image_embeds=normal(2, 3, 12),
        ),
        kept=THREE_TRANSFORMER_BLOCKS,
    ),
    "HunyuanVideoFramepackTransformer3DModel": TinyTransformer(
        config=HUNYUAN | {"has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True},
        inputs=framepack_inputs,
        kept=DUAL_AND_SINGLE,
    ),
    "HunyuanVideoTransformer3DModel": TinyTransformer(
        config=HUNYUAN,
        inputs=lambda: video_and_text(
            encoder_attention_mask=mask(),
            pooled_projections=normal(2, 8),
            guidance=torch.tensor([1000.0, 6000.0]),
        ),
        kept=DUAL_AND_SINGLE,
        refused=(({"transformer_blocks": (0, 1)}, "'single_transformer_blocks' the teacher has, and the plan keeps"),),
    ),
    "JoyImageEditPlusTransformer3DModel": TinyTransformer(
        config=JOY,
        inputs=lambda: {
            "hidden_states": normal(1, 2, 4, 1, 2, 2),
            "encoder_hidden_states": normal(1, 5, 16),
            "timestep": torch.tensor([10.0]),
            "shape_list": [[(1, 1, 1), (1, 1, 1)]],
        },
        kept={"double_blocks": (0, 1, 3)},
    ),
    "JoyImageEditTransformer3DModel": TinyTransformer(
        config=JOY, inputs=video_and_text, kept={"double_blocks": (0, 1, 3)}
    ),
    "Kandinsky5Transformer3DModel": TinyTransformer(
        config={
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 16,
            "in_text_dim2": 8,
            "time_dim": 8,
            "model_dim": 24,
            "ff_dim": 24,
            "num_text_blocks": 2,
            "num_visual_blocks": 4,
            "axes_dims": (4, 4, 4),
        },
        inputs=lambda: {
            "hidden_states": normal(1, 2, 4, 4, 4),
            "encoder_hidden_states": normal(1, 5, 16),
            "timestep": torch.tensor([10.0]),
            "pooled_projections": normal(1, 8),
            "visual_rope_pos": [torch.arange(2), torch.arange(2), torch.arange(2)],
            "text_rope_pos": torch.arange(5),
        },
        kept={"text_transformer_blocks": (1,), "visual_transformer_blocks": (0, 1, 3)},
    ),
    "Kandinsky6SRTransformer3DModel": TinyTransformer(
        config={
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "time_dim": 8,
            "model_dim": 64,
            "ff_dim": 24,
            "num_visual_blocks": 4,
            "axes_dims": (16, 24, 24),
        },
        inputs=lambda: {"hidden_states": normal(1, 1, 8, 8, 9), "timestep": torch.tensor([10.0])},
        kept={"visual_transformer_blocks": (0, 1, 3)},
    ),
    "Kandinsky6Transformer3DModel": TinyTransformer(
        config={
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 16,
            "in_text_dim2": 8,
            "time_dim": 8,
            "model_dim": 24,
            "ff_dim": 24,
            "num_text_blocks": 2,
            "num_visual_blocks": 4,
            "axes_dims": (4, 4, 4),
            "in_audio_dim": 4,
            "out_audio_dim": 4,
            "visual_cond": False,
        },
        inputs=lambda: {
            "hidden_states": normal(1, 2, 4, 4, 4),
            "encoder_hidden_states": normal(1, 5, 16),
            "timestep": torch.tensor([10.0]),
            "pooled_projections": normal(1, 8),
            "audio_hidden_states": normal(1, 3, 4),
        },
        kept={
            "video_text_transformer_blocks": (1,),
            "audio_text_transformer_blocks": (0,),
            "visual_transformer_blocks": (0, 1, 3),
        },
        refused=(
            (
                {
                    "video_text_transformer_blocks": (1,),
                    "audio_text_transformer_blocks": (0, 1),
                    "visual_transformer_blocks": (0, 1, 3),
                },
                "`num_text_blocks` counts more than one list .* keep equally many",
            ),
        ),
    ),
    "LTX2VideoTransformer3DModel": TinyTransformer(config=LTX_2, inputs=ltx_2_inputs, kept=THREE_TRANSFORMER_BLOCKS),
    "LTXVideoTransformer3DModel": TinyTransformer(
        config=LTX,
        inputs=lambda: {
            "hidden_states": normal(2, 8, 4),
            "encoder_hidden_states": normal(2, 5, 16),
            "timestep": torch.tensor([10, 500]),
            "encoder_attention_mask": mask(),
            **{"num_frames": 2, "height": 2, "width": 2},
        },
        kept=THREE_TRANSFORMER_BLOCKS,
    ),
    "LatteTransformer3DModel": TinyTransformer(
        config={
            "sample_size": 4,
            "num_layers": 4,
            "patch_size": 2,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "caption_channels": 16,
            "in_channels": 4,
            "cross_attention_dim": 8,
            "out_channels": 4,
            "attention_bias": True,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "video_length": 2,
        },
        inputs=video_and_text,
        kept={"transformer_blocks": (1, 2), "temporal_transformer_blocks": (1, 2)},
        refused=(
            (
                {"transformer_blocks": (0, 2), "temporal_transformer_blocks": (0, 1)},
                r"temporal_transformer_blocks\.1 works after transformer_blocks\.1, which the plan removes",
            ),
        ),
    ),
    "MiniMaxH3Transformer3DModel": TinyTransformer(
        config={
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "hidden_size": 24,
            "num_layers": 4,
            "num_refiner_layers": 1,
            "ffn_dim": 32,
            "in_channels": 4,
            "audio_in_channels": 6,
            "text_dim": 8,
            "freq_dim": 8,
            "time_embed_hidden_dim": 24,
            "time_embed_dim": 16,
            "rope_freq_dim": 2,
        },
        inputs=minimax_h3_inputs,
        kept=THREE_TRANSFORMER_BLOCKS,
    ),
    "MochiTransformer3DModel": TinyTransformer(
        config={
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 4,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 4,
            "max_sequence_length": 5,
        },
        inputs=lambda: video_and_text(encoder_attention_mask=mask().bool()),
        kept={"transformer_blocks": (0, 3)},
        refused=(({"transformer_blocks": (0, 1, 2)}, r"transformer_blocks\.3 differs from all other blocks"),),
    ),
    "MotifVideoTransformer3DModel": TinyTransformer(
        config={
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 3,
            "num_single_layers": 5,
            "num_decoder_layers": 2,
            "text_embed_dim": 16,
            "rope_axes_dim": (4, 4, 4),
            "enable_text_cross_attention_single": True,
        },
        inputs=lambda: video_and_text(encoder_attention_mask=mask()),
        kept={"transformer_blocks": (0, 2), "single_transformer_blocks": (1, 2, 4)},
        attributes={"num_decoder_layers": 1},
        refused=(
            (
                {"transformer_blocks": (0, 2), "single_transformer_blocks": (0, 1, 2)},
                r"The last 2 of single_transformer_blocks \(`num_decoder_layers`\) .* at least one must stay",
            ),
        ),
    ),
    "SanaVideoTransformer3DModel": TinyTransformer(
        config={
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 4,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 12,
            "cross_attention_dim": 24,
            "caption_channels": 16,
            "sample_size": 4,
            "rope_max_seq_len": 16,
        },
        inputs=lambda: video_and_text(encoder_attention_mask=mask()),
        kept=THREE_TRANSFORMER_BLOCKS,
    ),
    "SanaWMLTX2RefinerTransformer3DModel": TinyTransformer(
        config=LTX_2,
        inputs=lambda: {
            "hidden_states": normal(2, 8, 4),
            "encoder_hidden_states": normal(2, 5, 16),
            "timestep": torch.tensor([10.0, 500.0]),
            "video_rotary_emb": (normal(2, 8, 16).cos(), normal(2, 8, 16).sin()),
            "encoder_attention_mask": mask(),
        },
        kept=THREE_TRANSFORMER_BLOCKS,
    ),
    "SanaWMTransformer3DModel": TinyTransformer(
        config={
            "in_channels": 4,
            "num_layers": 6,
            "hidden_size": 24,
            "num_attention_heads": 2,
            "softmax_every_n": 3,
            "linear_head_dim": 12,
            "caption_channels": 16,
            "chunk_plucker_channels": 4,
            "chunk_plucker_post_attn_blocks": 3,
        },
        inputs=lambda: video_and_text(
            timestep=torch.tensor([[[10, 10]], [[500, 500]]]),
            encoder_attention_mask=mask(),
            chunk_plucker=normal(2, 4, 2, 4, 4, seed=3),
        ),
        kept={"blocks": (0, 2, 4, 5)},
        refused=(({"blocks": (0, 1, 2, 3, 5)}, r"has softmax attention; in the student the blocks \[2, 4\] would"),),
    ),
    "SkyReelsV2Transformer3DModel": TinyTransformer(config=WAN, inputs=video_and_text, kept=THREE_OF_FOUR),
    "WanAnimate2Transformer3DModel": TinyTransformer(
        config={
            "text_len": 4,
            "in_dim": 8,
            "dim": 24,
            "ffn_dim": 16,
            "freq_dim": 16,
            "text_dim": 8,
            "out_dim": 4,
            "num_heads": 2,
            "num_layers": 12,
            "use_img_emb": False,
        },
        inputs=wan_animate_2_inputs,
        kept={"blocks": (*range(10), 11)},
        refused=(({"blocks": (*range(8), 9, 10, 11)}, "gives block 9 of blocks a part of its own by its index"),),
    ),
    "WanAnimateTransformer3DModel": TinyTransformer(
        config=WAN
        | {
            "attention_head_dim": 12,
            "in_channels": 12,
            "latent_channels": 4,
            "num_layers": 6,
            "image_dim": 16,
            "motion_encoder_channel_sizes": {"4": 8, "8": 8},
            "motion_encoder_size": 8,
            "motion_style_dim": 8,
            "motion_dim": 4,
            "motion_encoder_dim": 8,
            "face_encoder_hidden_dim": 8,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
        inputs=lambda: video_and_text(
            channels=12,
            frames=3,
            encoder_hidden_states_image=normal(2, 3, 16),
            pose_hidden_states=normal(2, 4, 2, 4, 4),
            face_pixel_values=normal(2, 3, 5, 8, 8),
        ),
        kept={"blocks": (0, 1, 4, 5), "face_adapter": (0, 2)},
        refused=(
            (
                {"blocks": (0, 1, 3, 4, 5), "face_adapter": (0, 2)},
                r"in the student it would after \[0, 3\] of 5",
            ),
            (
                {"blocks": (0, 1, 3, 5), "face_adapter": (0, 1)},
                r"face_adapter\.1 works after blocks\.2, which the plan removes",
            ),
        ),
    ),
    "WanTransformer3DModel": TinyTransformer(config=WAN, inputs=video_and_text, kept=THREE_OF_FOUR),
    "WanVACETransformer3DModel": TinyTransformer(
        config=WAN | {"num_layers": 6, "vace_layers": [0, 2, 4], "vace_in_channels": 4},
        inputs=lambda: video_and_text(control_hidden_states=normal(2, 4, 2, 4, 4, seed=3)),
        kept={"blocks": (0, 3, 4, 5), "vace_blocks": (0, 2)},
        fields={"vace_layers": [0, 2]},
        refused=(
            (
                {"blocks": (0, 1, 3, 5), "vace_blocks": (0, 1)},
                r"vace_blocks\.1 works after blocks\.2, which the plan removes",
            ),
            ({"blocks": (0, 2, 4), "vace_blocks": (1, 2)}, r"vace_blocks\.0 differs from all other blocks"),
        ),
    ),
}
