"""Wan 2.1, and Wan 2.2's models with one transformer: text to video."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from diffusers import WanPipeline
from torch import Tensor, nn

from vdmini_diffusers.data.vae_clips import encode_whole_clips
from vdmini_diffusers.families.base import TransformerFamily
from vdmini_diffusers.families.stock import stock_family
from vdmini_diffusers.families.whole_clips import clip_shape, sample_video


NUM_TOKENS = 512  # of a prompt, with padding


def example_inputs(config: Mapping[str, Any], num_frames: int, height: int, width: int) -> dict[str, Any]:
    """What the transformer takes for one clip of that many pixels, and a prompt. VAEs of 16 channels pack 8 x 8 pixels
    into one, those of 48 channels, Wan 2.2's, 16 x 16."""
    latent_frames, scale = (num_frames - 1) // 4 + 1, 16 if config["in_channels"] == 48 else 8
    return {
        "hidden_states": torch.zeros(1, config["in_channels"], latent_frames, height // scale, width // scale),
        "timestep": torch.zeros(1, dtype=torch.long),
        "encoder_hidden_states": torch.zeros(1, NUM_TOKENS, config["text_dim"]),
    }


@torch.no_grad()
def encode_text_to_video(
    batch: Mapping[str, Any],
    pipe: WanPipeline,
    generators: Sequence[torch.Generator] | None = None,
    encode_chunk_size: int | None = None,
) -> dict[str, Any]:
    """Latents of the videos and embeddings of their captions, by the pipeline's VAE and text encoder.

    Args:
        batch: `pixel_values` `(batch, frames, 3, height, width)`, -1 to 1; `caption`, texts; `fps`, `(batch,)`.
        generators: generators that draw the latents, one for each sample.
        encode_chunk_size: not used: this VAE encodes a clip as a whole.

    Returns:
        `latents` `(batch, frames, channels, h, w)`, float32: drawn from the posterior, and normalised by channel.
        `prompt_embeds` `(batch, 512, width)`, with zeros in the place of padding, to which Wan attends. `fps`
        `(batch,)`, float32.

    Raises:
        ValueError: if the videos' shape does not fit the VAE, or the number of captions or generators does not fit
            the batch.
    """
    latents, config = encode_whole_clips(batch, pipe, generators), pipe.vae.config
    mean, std = (
        torch.tensor(values, device=latents.device).view(-1, 1, 1)
        for values in (config.latents_mean, config.latents_std)
    )
    captions = list(batch["caption"])
    prompt_embeds, _ = pipe.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=NUM_TOKENS)
    return {
        "latents": (latents - mean) / std,
        "prompt_embeds": prompt_embeds,
        "fps": torch.as_tensor(batch["fps"], dtype=torch.float32),
    }


def predict(model: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    """The transformer's velocity.

    Args:
        timesteps: `(batch,)`, a thousand times the share of noise.
        conditioning: `prompt_embeds` `(batch, tokens, width)`.
    """
    bare: Any = extract_model_from_parallel(model)
    dtype = bare.patch_embedding.weight.dtype  # other parameters stay in float32
    output = model(
        hidden_states=latents.movedim(1, 2).to(dtype),  # (batch, channels, frames, height, width)
        timestep=timesteps,
        encoder_hidden_states=conditioning["prompt_embeds"].to(dtype),
        return_dict=False,
    )
    return output[0].movedim(2, 1).float()


def token_grid(config: Mapping[str, Any], shape: Sequence[int]) -> tuple[int, int, int]:
    (time, high, wide), (frames, _, height, width) = config["patch_size"], shape[1:]
    return frames // time, height // high, width // wide


def from_fastvideo(
    latents: Tensor, text_embedding: Tensor, config: Any, vae_config: Mapping[str, Any]
) -> dict[str, Any]:
    mean, std = (torch.tensor(vae_config[f"latents_{name}"]).view(-1, 1, 1) for name in ("mean", "std"))
    tokens = text_embedding[:NUM_TOKENS]
    return {
        "latents": (latents.transpose(0, 1) - mean) / std,
        "prompt_embeds": nn.functional.pad(tokens, (0, 0, 0, NUM_TOKENS - len(tokens))),
    }


stock = stock_family("WanPipeline")
assert stock is not None
FAMILY = TransformerFamily(
    **vars(replace(stock, example_inputs=example_inputs)),
    given="text",
    task="flow_matching",
    sample_tensors=("latents", "prompt_embeds", "fps"),
    exact_tensors=("fps",),
    encode=encode_text_to_video,
    predict=predict,
    critic_condition=lambda conditioning: conditioning["prompt_embeds"].mean(dim=1),
    critic_condition_dim=lambda pipe: pipe.transformer.config.text_dim,
    clip_shape=clip_shape,
    sample=sample_video,
    token_grid=token_grid,
    from_fastvideo=from_fastvideo,
    lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
)
