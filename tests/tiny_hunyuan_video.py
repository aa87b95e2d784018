"""A tiny HunyuanVideo pipeline with every tensor random, and what its transformer's forward pass takes."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from tiny import randomise
from tiny_text_to_video import CLIP_EXCERPT
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, LlamaConfig, LlamaModel, LlamaTokenizer


def tiny_hunyuan_transformer(num_layers: int = 4, num_single_layers: int = 5) -> HunyuanVideoTransformer3DModel:
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=num_layers,
        num_single_layers=num_single_layers,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    return randomise(transformer).eval()


def tiny_hunyuan_inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 4, 2, 4, 6, generator=generator),
        "timestep": torch.tensor([10, 500]),
        "encoder_hidden_states": torch.randn(2, 5, 16, generator=generator),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
        "pooled_projections": torch.randn(2, 8, generator=generator),
        "guidance": torch.tensor([1000.0, 6000.0]),
    }


def tiny_hunyuan_pipeline() -> HunyuanVideoPipeline:
    llama = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    clip = CLIPTextConfig(
        vocab_size=49408, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    characters = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *(chr(i) for i in range(33, 127))])}
    return HunyuanVideoPipeline(
        text_encoder=randomise(LlamaModel(llama), 1).eval(),
        tokenizer=LlamaTokenizer(vocab=characters, merges=[], pad_token="<unk>"),
        text_encoder_2=randomise(CLIPTextModel(clip), 2).eval(),
        tokenizer_2=CLIPTokenizer.from_pretrained(CLIP_EXCERPT),
        transformer=tiny_hunyuan_transformer(),
        vae=randomise(vae, 3).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
