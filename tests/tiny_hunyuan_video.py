"""A tiny HunyuanVideo pipeline with every tensor random, and what its transformer's forward pass takes."""

from pathlib import Path
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

from vdmini_diffusers.data.latents import LatentShards
from vdmini_diffusers.pruning import TransformerPruningPlan


# Of the transformer below: a run is removed after the first dual-stream block, one reaches from the dual-stream blocks
# into the single-stream ones, and one lies among these.
TINY_PLAN = TransformerPruningPlan(
    "tiny",
    "HunyuanVideoTransformer3DModel",
    {"transformer_blocks": (0, 2), "single_transformer_blocks": (1, 3, 4)},
)


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


def tiny_hunyuan_batch() -> dict[str, torch.Tensor]:
    """Two clips of two latent frames with their prompts, of which one is padded, as `data.latents` gives them."""
    inputs = tiny_hunyuan_inputs()
    return {
        "latents": inputs["hidden_states"].movedim(1, 2).contiguous(),
        "prompt_embeds": inputs["encoder_hidden_states"],
        "prompt_attention_mask": inputs["encoder_attention_mask"],
        "pooled_prompt_embeds": inputs["pooled_projections"],
        "fps": torch.tensor([24.0, 24.0]),
    }


SHORT_PROMPTS = {"prompt_template": {"template": "{}", "crop_start": 0}, "max_sequence_length": 8}  # a token a letter
TINY_CLIP = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2}


def write_hunyuan_latents(folder: Path, num_samples: int = 8, size: int = 8) -> Path:
    """Precomputed clips of two latent frames, with prompts of 3 to 8 tokens."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    samples = [
        {
            "latents": draw(2, 4, size, size),
            "prompt_embeds": draw(8, 16),
            "prompt_attention_mask": (torch.arange(8) < 3 + i % 6).long(),
            "pooled_prompt_embeds": draw(8),
            "fps": torch.tensor(24.0),
        }
        for i in range(num_samples)
    ]
    shards = LatentShards(folder, {"made_by": "tests"})
    shards.write(0, samples, [{"name": str(i), "caption": f"a photo of {i} cats"} for i in range(num_samples)])
    shards.finish([])
    return folder


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
        tokenizer=LlamaTokenizer(vocab=characters, merges=[], pad_token="<unk>", padding_side="right"),
        text_encoder_2=randomise(CLIPTextModel(clip), 2).eval(),
        tokenizer_2=CLIPTokenizer.from_pretrained(CLIP_EXCERPT),
        transformer=tiny_hunyuan_transformer(),
        vae=randomise(vae, 3).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
