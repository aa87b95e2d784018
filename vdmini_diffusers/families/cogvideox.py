"""CogVideoX, which predicts v at DDPM's timesteps: text to video."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from diffusers import CogVideoXPipeline
from torch import Tensor, nn

from vdmini_diffusers.data.vae_clips import encode_whole_clips
from vdmini_diffusers.families.base import TransformerFamily
from vdmini_diffusers.families.stock import stock_family
from vdmini_diffusers.families.whole_clips import clip_shape, sample_video


@torch.no_grad()
def encode_text_to_video(
    batch: Mapping[str, Any],
    pipe: CogVideoXPipeline,
    generators: Sequence[torch.Generator] | None = None,
    encode_chunk_size: int | None = None,
) -> dict[str, Any]:
    """Latents of the videos and embeddings of their captions, by the pipeline's VAE and text encoder.

    Args:
        batch: `pixel_values` `(batch, frames, 3, height, width)`, -1 to 1; `caption`, texts; `fps`, `(batch,)`.
        generators: generators that draw the latents, one for each sample.
        encode_chunk_size: not used: this VAE encodes a clip as a whole.

    Returns:
        `latents` `(batch, frames, channels, h, w)`, float32: drawn from the VAE's posterior, times its scaling factor.
        `prompt_embeds` `(batch, 226, width)`, padded, to which CogVideoX attends. `fps` `(batch,)`, float32.

    Raises:
        ValueError: if the videos' shape does not fit the VAE, or the number of captions or generators does not fit
            the batch.
    """
    latents = encode_whole_clips(batch, pipe, generators)
    prompt_embeds, _ = pipe.encode_prompt(list(batch["caption"]), do_classifier_free_guidance=False)
    return {
        "latents": latents * pipe.vae.config.scaling_factor,
        "prompt_embeds": prompt_embeds,
        "fps": torch.as_tensor(batch["fps"], dtype=torch.float32),
    }


def predict(model: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    """The transformer's v.

    Args:
        timesteps: `(batch,)` integers.
        conditioning: `prompt_embeds` `(batch, tokens, width)`.
    """
    config = extract_model_from_parallel(model).config
    dtype = next(model.parameters()).dtype
    output = model(
        hidden_states=latents.to(dtype),
        encoder_hidden_states=conditioning["prompt_embeds"].to(dtype),
        timestep=timesteps,
        image_rotary_emb=rotary_embedding(config, latents) if config.use_rotary_positional_embeddings else None,
        return_dict=False,
    )
    return output[0].float()


def rotary_embedding(config: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines for the places of the latents, as the pipeline makes them."""
    frames, height, width = latents.shape[1], *latents.shape[-2:]
    # The pipeline's own function, with latents in the place of pixels.
    pipe: Any = SimpleNamespace(vae_scale_factor_spatial=1, transformer=SimpleNamespace(config=config))
    return CogVideoXPipeline._prepare_rotary_positional_embeddings(pipe, height, width, frames, latents.device)


def token_grid(config: Mapping[str, Any], shape: Sequence[int]) -> tuple[int, int, int]:
    patch, (frames, _, height, width) = config["patch_size"], shape[1:]
    return frames // (config["patch_size_t"] or 1), height // patch, width // patch


stock = stock_family("CogVideoXPipeline")
assert stock is not None
FAMILY = TransformerFamily(
    **vars(stock),
    given="text",
    task="flow_matching",
    sample_tensors=("latents", "prompt_embeds", "fps"),
    exact_tensors=("fps",),
    encode=encode_text_to_video,
    predict=predict,
    critic_condition=lambda conditioning: conditioning["prompt_embeds"].mean(dim=1),
    critic_condition_dim=lambda pipe: pipe.transformer.config.text_embed_dim,
    clip_shape=clip_shape,
    sample=sample_video,
    token_grid=token_grid,
    lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
)
