"""HunyuanVideo and VDMini-T2V-HY: text to video."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from torch import Tensor, nn

from vdmini_diffusers.data.vae_clips import encode_whole_clips
from vdmini_diffusers.families.base import Denoiser, TransformerFamily
from vdmini_diffusers.families.stock import pipeline_layout
from vdmini_diffusers.families.whole_clips import clip_shape, sample_video
from vdmini_diffusers.pipelines import VDMiniHunyuanVideoPipeline
from vdmini_diffusers.pipelines.pipeline_vdmini_hunyuan_video import tokens_before_padding


NUM_TOKENS = 256  # of a prompt, with padding
GUIDANCE_UNIT = 1000.0  # the transformer embeds a thousand times the guidance scale


def example_inputs(config: Mapping[str, Any], num_frames: int, height: int, width: int) -> dict[str, Any]:
    """What the transformer takes for one clip of that many pixels, and a prompt of 256 tokens without padding."""
    latent_frames = (num_frames - 1) // 4 + 1
    inputs = {
        "hidden_states": torch.zeros(1, config["in_channels"], latent_frames, height // 8, width // 8),
        "timestep": torch.zeros(1, dtype=torch.long),
        "encoder_hidden_states": torch.zeros(1, 256, config["text_embed_dim"]),
        "encoder_attention_mask": torch.ones(1, 256, dtype=torch.bool),
        "pooled_projections": torch.zeros(1, config["pooled_projection_dim"]),
    }
    return inputs | ({"guidance": torch.zeros(1)} if config["guidance_embeds"] else {})


@torch.no_grad()
def encode_text_to_video(
    batch: Mapping[str, Any],
    pipe: HunyuanVideoPipeline,
    generators: Sequence[torch.Generator] | None = None,
    encode_chunk_size: int | None = None,
) -> dict[str, Any]:
    """Latents of the videos and embeddings of their captions, by the pipeline's VAE and text encoders.

    Args:
        batch: `pixel_values` `(batch, frames, 3, height, width)`, -1 to 1; `caption`, texts; `fps`, `(batch,)`.
        generators: generators that draw the latents, one for each sample.
        encode_chunk_size: not used: this VAE encodes a clip as a whole, in tiles if they are enabled.

    Returns:
        `latents` `(batch, frames, channels, h, w)`, float32: drawn from the VAE's posterior, times its scaling factor.
        `prompt_embeds` `(batch, 256, width)`, padded, with `prompt_attention_mask` `(batch, 256)`, and
        `pooled_prompt_embeds` `(batch, width)`, of the second encoder. `fps` `(batch,)`, float32.

    Raises:
        ValueError: if the videos' shape does not fit the VAE, or the number of captions or generators does not fit
            the batch.
    """
    latents = encode_whole_clips(batch, pipe, generators)
    # The stock pipeline's, which keeps the padding: all samples are of one shape.
    prompt_embeds, pooled_prompt_embeds, mask = HunyuanVideoPipeline.encode_prompt(
        pipe, list(batch["caption"]), max_sequence_length=NUM_TOKENS
    )
    return {
        "latents": latents * pipe.vae.config.scaling_factor,
        "prompt_embeds": prompt_embeds,
        "prompt_attention_mask": mask,
        "pooled_prompt_embeds": pooled_prompt_embeds,
        "fps": torch.as_tensor(batch["fps"], dtype=torch.float32),
    }


def predict(model: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    """The transformer's velocity. Padding that all prompts of the batch have in common is cut off: it has no effect.

    Args:
        timesteps: `(batch,)`, a thousand times the share of noise.
        conditioning: `prompt_embeds` `(batch, tokens, width)`, `prompt_attention_mask` `(batch, tokens)`,
            `pooled_prompt_embeds` `(batch, width)`, and `guidance` `(batch,)`, the guidance scale.
    """
    dtype = next(model.parameters()).dtype
    mask = conditioning["prompt_attention_mask"].bool()
    num_tokens = tokens_before_padding(mask)
    output = model(
        hidden_states=latents.movedim(1, 2).to(dtype),  # (batch, channels, frames, height, width)
        timestep=timesteps,
        encoder_hidden_states=conditioning["prompt_embeds"][:, :num_tokens].to(dtype),
        encoder_attention_mask=mask[:, :num_tokens],
        pooled_projections=conditioning["pooled_prompt_embeds"].to(dtype),
        guidance=GUIDANCE_UNIT * conditioning["guidance"],
        return_dict=False,
    )
    return output[0].movedim(2, 1).float()


def token_grid(config: Mapping[str, Any], shape: Sequence[int]) -> tuple[int, int, int]:
    patch, (frames, _, height, width) = config["patch_size"], shape[1:]
    return frames // config["patch_size_t"], height // patch, width // patch


def from_fastvideo(
    latents: Tensor, text_embedding: Tensor, config: Any, vae_config: Mapping[str, Any]
) -> dict[str, Any]:
    """The first row of the text embedding is that of the second encoder, with zeros at its end.

    Raises:
        ValueError: if it is not, as in files for Wan, or there is no other row.
    """
    pooled, tokens = text_embedding[0, : config.pooled_projection_dim], text_embedding[1 : NUM_TOKENS + 1]
    if not len(tokens) or text_embedding[0, config.pooled_projection_dim :].any():
        raise ValueError(
            "A text embedding for HunyuanVideo has the second encoder's in its first row, with zeros after the"
            f" {config.pooled_projection_dim}th value, and tokens in the others: these files are for another model."
        )
    padding = NUM_TOKENS - len(tokens)
    return {
        "latents": (latents * vae_config["scaling_factor"]).transpose(0, 1),
        "prompt_embeds": nn.functional.pad(tokens, (0, 0, 0, padding)),
        "prompt_attention_mask": nn.functional.pad(torch.ones(len(tokens)), (0, padding)),
        "pooled_prompt_embeds": pooled,
    }


HUNYUAN_VIDEO = TransformerFamily(
    name="HunyuanVideo",
    layout=pipeline_layout(HunyuanVideoPipeline),
    denoisers={
        "transformer": Denoiser("transformer", (HunyuanVideoTransformer3DModel,), HunyuanVideoTransformer3DModel)
    },
    pipeline=VDMiniHunyuanVideoPipeline,
    default_plan="vdmini_hy",
    card="vdmini_t2v_hy.md",
    pipeline_tag="text-to-video",
    tags=("vdmini", "video-diffusion", "pruning", "hunyuan-video", "text-to-video"),
    example_inputs=example_inputs,
    given="text",
    task="flow_matching",
    sample_tensors=("latents", "prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds", "fps"),
    exact_tensors=("fps",),
    encode=encode_text_to_video,
    predict=predict,
    critic_condition=lambda conditioning: conditioning["pooled_prompt_embeds"],
    critic_condition_dim=lambda pipe: pipe.transformer.config.pooled_projection_dim,
    clip_shape=clip_shape,
    sample=sample_video,
    token_grid=token_grid,
    from_fastvideo=from_fastvideo,
    # Queries, keys and values of both kinds of blocks and of both streams, and what attention puts out.
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
)
FAMILY = HUNYUAN_VIDEO
