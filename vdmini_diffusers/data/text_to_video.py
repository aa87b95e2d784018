"""What text-to-video U-Nets are trained on, encoded as T2V-Turbo does."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from vdmini_diffusers.data.latents import checked_videos, upcast
from vdmini_diffusers.pipelines import VDMiniT2VPipeline


@torch.no_grad()
def encode_text_to_video(
    batch: dict[str, Any],
    pipe: VDMiniT2VPipeline,
    generators: Sequence[torch.Generator] | None = None,
    encode_chunk_size: int = 16,
) -> dict[str, Any]:
    """Latents of the videos and embeddings of their captions, by the pipeline's VAE and text encoder.

    Args:
        batch: `pixel_values` `(batch, frames, 3, height, width)`, -1 to 1; `caption`, texts; `fps`, `(batch,)`.
        generators: of the latents, one for each sample: then they do not depend on the batch.
        encode_chunk_size: frames that the VAE encodes at once.

    Returns:
        `latents` `(batch, frames, channels, h, w)`, float32: drawn from the VAE's posterior, as in T2V-Turbo's
        training, times its scaling factor. `prompt_embeds` `(batch, tokens, width)` and `pooled_prompt_embeds`
        `(batch, width)`, of the text encoder's dtype. `fps` `(batch,)`, float32, and `caption`.

    Raises:
        ValueError: if the shape or number of something does not fit.
    """
    videos, vae = checked_videos(batch, pipe.vae), pipe.vae
    captions = list(batch["caption"])
    if len(captions) != len(videos) or (generators is not None and len(generators) != len(videos)):
        raise ValueError(f"One caption and one generator for each of the {len(videos)} samples is needed.")
    with upcast(vae):
        chunks = videos.flatten(0, 1).to(vae.device, vae.dtype).split(encode_chunk_size)
        posteriors = [vae.encode(chunk).latent_dist for chunk in chunks]
    mean, std = (
        torch.cat([getattr(posterior, name).float() for posterior in posteriors]).unflatten(0, videos.shape[:2])
        for name in ("mean", "std")
    )
    generator = None if generators is None else list(generators)
    noise = randn_tensor(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    prompt_embeds, pooled_prompt_embeds = encode_captions(captions, pipe)
    return {
        "latents": (mean + std * noise) * vae.config.scaling_factor,
        "prompt_embeds": prompt_embeds,
        "pooled_prompt_embeds": pooled_prompt_embeds,
        "fps": torch.as_tensor(batch["fps"], dtype=torch.float32),
        "caption": captions,
    }


@torch.no_grad()
def encode_captions(captions: list[str], pipe: VDMiniT2VPipeline) -> tuple[Tensor, Tensor]:
    """Hidden states `(batch, tokens, width)`, and among them those at the end token, `(batch, width)`."""
    ids = pipe.tokenize(captions).to(pipe.text_encoder.device)
    prompt_embeds = pipe.text_encoder(ids)[0]
    ends = (ids == pipe.tokenizer.eos_token_id).int().argmax(dim=1)
    return prompt_embeds, prompt_embeds[torch.arange(len(ends), device=ids.device), ends]
