"""VideoCrafter2, T2V-Turbo, ModelScope's model and VDMini-T2V: text to video."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from diffusers import Transformer2DModel, UNet3DConditionModel
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from vdmini_diffusers.data.vae_clips import checked_videos, upcast
from vdmini_diffusers.families.base import ClipShape, Denoiser, UNetFamily
from vdmini_diffusers.models import VDMiniUNet3DConditionModel
from vdmini_diffusers.pipelines import VDMiniT2VPipeline, VDMiniVideoCrafterDDIMScheduler
from vdmini_diffusers.pipelines.pipeline_vdmini_t2v import guidance_embedding
from vdmini_diffusers.serialization.pipeline_folder import Component, PipelineLayout


def example_inputs(config: Mapping[str, Any], num_frames: int, height: int, width: int) -> dict[str, Any]:
    """What the U-Net takes for one clip of that many pixels and a prompt of 77 tokens."""
    inputs = {
        "sample": torch.zeros(1, config["in_channels"], num_frames, height // 8, width // 8),
        "timestep": torch.zeros(1, dtype=torch.long),
        "encoder_hidden_states": torch.zeros(1, 77, config["cross_attention_dim"]),
    }
    for argument, field in (("timestep_cond", "time_cond_proj_dim"), ("motion_cond", "motion_cond_proj_dim")):
        if config.get(field) is not None:
            inputs[argument] = torch.zeros(1, config[field])
    if config.get("fps_cond"):
        inputs["fps"] = torch.zeros(1)
    return inputs


@torch.no_grad()
def encode_text_to_video(
    batch: Mapping[str, Any],
    pipe: VDMiniT2VPipeline,
    generators: Sequence[torch.Generator] | None = None,
    encode_chunk_size: int = 16,
) -> dict[str, Any]:
    """Latents of the videos and embeddings of their captions, by the pipeline's VAE and text encoder.

    Args:
        batch: `pixel_values` `(batch, frames, 3, height, width)`, -1 to 1; `caption`, texts; `fps`, `(batch,)`.
        generators: generators that draw the latents, one for each sample, so that a sample does not depend on its
            batch.
        encode_chunk_size: number of frames that the VAE encodes at once.

    Returns:
        `latents` `(batch, frames, channels, h, w)`, float32: drawn from the VAE's posterior, as in T2V-Turbo's
        training, times its scaling factor. `prompt_embeds` `(batch, tokens, width)` and `pooled_prompt_embeds`
        `(batch, width)`, of the text encoder's dtype. `fps` `(batch,)`, float32, and `caption`.

    Raises:
        ValueError: if the videos' shape does not fit the VAE, or the number of captions or generators does not fit
            the batch.
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
    """Hidden states of all tokens, `(batch, tokens, width)`, and of the end token alone, `(batch, width)`."""
    ids = pipe.tokenize(captions).to(pipe.text_encoder.device)
    prompt_embeds = pipe.text_encoder(ids)[0]
    ends = (ids == pipe.tokenizer.eos_token_id).int().argmax(dim=1)
    return prompt_embeds, prompt_embeds[torch.arange(len(ends), device=ids.device), ends]


def predict(model: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    """The U-Net's output. The U-Net receives the parts of the conditioning that its config has embeddings for.

    Args:
        timesteps: `(batch,)` integers.
        conditioning: `prompt_embeds` `(batch, tokens, width)`; `guidance`, `motion_guidance` and `fps`, `(batch,)`.
    """
    config = extract_model_from_parallel(model).config
    dtype = next(model.parameters()).dtype
    condition_kwargs = {}
    for name, argument, field in (
        ("guidance", "timestep_cond", "time_cond_proj_dim"),
        ("motion_guidance", "motion_cond", "motion_cond_proj_dim"),
    ):
        if config.get(field) is not None:
            # Computed in float32 and then cast, as they are sinusoids of numbers in the thousands.
            embedded = guidance_embedding(conditioning[name].float(), config[field], torch.float32)
            condition_kwargs[argument] = embedded.to(dtype)
    if config.get("fps_cond"):
        condition_kwargs["fps"] = conditioning["fps"]
    output = model(
        latents.movedim(1, 2).to(dtype),  # (batch, channels, frames, height, width)
        timesteps,
        conditioning["prompt_embeds"].to(dtype),
        return_dict=False,
        **condition_kwargs,
    )
    return output[0].movedim(2, 1).float()


def clip_shape(sample: Mapping[str, Tensor], pipe: VDMiniT2VPipeline) -> ClipShape:
    num_frames, _, height, width = sample["latents"].shape
    factor = pipe.vae_scale_factor
    return ClipShape(num_frames, height * factor, width * factor, float(sample["fps"]))


def sample_video(pipe: VDMiniT2VPipeline, prompt: str, shape: ClipShape, generator: torch.Generator) -> list[Any]:
    """The frames that `pipe` makes from a prompt with its default settings."""
    return pipe(
        prompt,
        height=shape.height,
        width=shape.width,
        num_frames=shape.num_frames,
        fps=shape.fps,
        generator=generator,
    ).frames[0]


def with_guidance(
    base: UNet3DConditionModel, time_cond_proj_dim: int = 256, motion_cond_proj_dim: int | None = 256
) -> VDMiniUNet3DConditionModel:
    """A U-Net with the weights of `base` and embeddings of guidance, which at first have no effect.

    The last of the new layers is zero: that of guidance, or the one that combines it with motion guidance.
    """
    stock = {"mid_block_type": "UNetMidBlock3DCrossAttn", "fps_cond": False}  # not in a stock class's config
    embeddings = {"time_cond_proj_dim": time_cond_proj_dim, "motion_cond_proj_dim": motion_cond_proj_dim}
    config = {name: value for name, value in base.config.items() if not name.startswith("_")}
    unet = VDMiniUNet3DConditionModel(**{**stock, **config, **embeddings})
    missing, unexpected = unet.load_state_dict(base.state_dict(), strict=False)
    new = ("cond_proj", "motion_cond_proj", "combine_proj")
    assert not unexpected and {name.split(".")[-2] for name in missing} <= set(new), (missing, unexpected)
    embedding: Any = unet.time_embedding
    nn.init.zeros_((embedding.cond_proj if motion_cond_proj_dim is None else embedding.combine_proj).weight)
    return unet


VIDEOCRAFTER = UNetFamily(
    name="VideoCrafter",
    layout=PipelineLayout(
        class_names=("VDMiniT2VPipeline", "TextToVideoSDPipeline"),
        components={
            "scheduler": Component("diffusers", has_weights=False, own=VDMiniVideoCrafterDDIMScheduler),
            "text_encoder": Component("transformers"),
            "tokenizer": Component("transformers", has_weights=False),
            "unet": Component("diffusers", own=VDMiniUNet3DConditionModel),
            "vae": Component("diffusers"),
        },
    ),
    denoisers={
        "unet": Denoiser("unet", (VDMiniUNet3DConditionModel, UNet3DConditionModel), VDMiniUNet3DConditionModel)
    },
    pipeline=VDMiniT2VPipeline,
    default_plan="vdmini",
    card="vdmini_t2v.md",
    teacher_card="t2v_turbo.md",
    pipeline_tag="text-to-video",
    tags=("vdmini", "video-diffusion", "pruning", "text-to-video"),
    example_inputs=example_inputs,
    evaluated_clip=(16, 320, 512),
    teacher_tags=("t2v-turbo", "consistency-distillation", "video-diffusion", "text-to-video"),
    given="text",
    task="consistency",
    critic_taps={
        "blocks": ("down_blocks.0", "down_blocks.1", "down_blocks.2", "down_blocks.3"),
        "before_downsampling": (
            *("down_blocks.0.temp_attentions.1", "down_blocks.1.temp_attentions.1", "down_blocks.2.temp_attentions.1"),
            "down_blocks.3.temp_convs.1",
        ),
    },
    critic_channels=lambda config: tuple(config["block_out_channels"]),
    recomputed_layers=(ResnetBlock2D, TemporalConvLayer, Transformer2DModel, TransformerTemporalModel),
    sample_tensors=("latents", "prompt_embeds", "pooled_prompt_embeds", "fps"),
    exact_tensors=("fps",),
    encode=encode_text_to_video,
    predict=predict,
    critic_condition=lambda conditioning: conditioning["pooled_prompt_embeds"],
    critic_condition_dim=lambda pipe: pipe.text_encoder.config.hidden_size,
    clip_shape=clip_shape,
    sample=sample_video,
    encode_prompts=encode_captions,
    add_guidance=with_guidance,
)
FAMILY = VIDEOCRAFTER
