"""Stable Video Diffusion, SF-V and VDMini-I2V: image to video."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from diffusers.utils.torch_utils import randn_tensor
from PIL import ImageOps
from torch import Tensor, nn

from vdmini_diffusers.data.images import read_image
from vdmini_diffusers.data.vae_clips import checked_videos, encode_modes, upcast
from vdmini_diffusers.families.base import ClipShape, Denoiser, UNetFamily
from vdmini_diffusers.models import VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.pipelines import VDMiniAnimateLCMSVDScheduler, VDMiniI2VPipeline
from vdmini_diffusers.serialization.pipeline_folder import Component, PipelineLayout


CLIP_SIZE = 224  # pixels, as StableVideoDiffusionPipeline


def example_inputs(config: Mapping[str, Any], num_frames: int, height: int, width: int) -> dict[str, Any]:
    """What the U-Net takes for one clip of that many pixels, without guidance."""
    widths = config["cross_attention_dim"]
    return {
        "sample": torch.zeros(1, num_frames, config["in_channels"], height // 8, width // 8),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, 1, widths if isinstance(widths, int) else widths[0]),
        "added_time_ids": torch.zeros(1, 3),
    }


@torch.no_grad()
def encode_image_to_video(
    batch: Mapping[str, Any],
    pipe: VDMiniI2VPipeline,
    generators: Sequence[torch.Generator] | None = None,
    encode_chunk_size: int = 14,
    noise_aug_strength: float = 0.02,
) -> dict[str, Any]:
    """The inputs that an image-to-video U-Net of SVD is trained on, as `StableVideoDiffusionPipeline` computes them.

    Args:
        batch: `pixel_values` `(batch, frames, 3, height, width)`, -1 to 1; `fps` and `motion_bucket_id`, `(batch,)`.
        pipe: pipeline whose VAE, image encoder and feature extractor are used.
        generators: generators of the noise on the first frame, one for each sample, so that a sample does not depend
            on its batch.
        encode_chunk_size: number of frames that the VAE encodes at once.
        noise_aug_strength: standard deviation of the noise on the first frame.

    Returns:
        `latents` `(batch, frames, channels, h, w)`: the posterior's mode, times the VAE's scaling factor.
        `image_latents` `(batch, channels, h, w)`: the mode of the first frame, to which noise was added before it was
        encoded; not scaled. `image_embeds` `(batch, 1, dim)`. `added_time_ids` `(batch, 3)`, float32: fps - 1, motion
        bucket, `noise_aug_strength`.

    Raises:
        ValueError: if the videos' shape does not fit the VAE, or the number of generators does not fit the batch.
    """
    vae = pipe.vae
    videos = checked_videos(batch, vae)
    if generators is not None and len(generators) != len(videos):
        raise ValueError(f"One generator for each of the {len(videos)} samples is needed; got {len(generators)}.")
    first = videos[:, 0]
    generator = None if generators is None else list(generators)
    noise = randn_tensor(first.shape, generator=generator, device=first.device, dtype=first.dtype)
    with upcast(vae):
        latents = encode_modes(vae, videos.flatten(0, 1), encode_chunk_size).unflatten(0, videos.shape[:2])
        image_latents = encode_modes(vae, first + noise_aug_strength * noise, encode_chunk_size)
    time_ids = [[int(fps) - 1, int(bucket), noise_aug_strength] for fps, bucket in _conditions(batch)]
    return {
        "latents": latents * vae.config.scaling_factor,
        "image_latents": image_latents,
        "image_embeds": _embed(first, pipe),
        "added_time_ids": torch.tensor(time_ids, dtype=torch.float32),
    }


def _conditions(batch: Mapping[str, Any]) -> Iterable[tuple[Any, Any]]:
    return zip(batch["fps"], batch["motion_bucket_id"], strict=True)


def _embed(images: Tensor, pipe: VDMiniI2VPipeline) -> Tensor:
    """(batch, 3, height, width) to (batch, 1, dim)"""
    image_encoder = pipe.image_encoder
    small = _resize_with_antialiasing(images.float().cpu(), (CLIP_SIZE, CLIP_SIZE))
    pixel_values = pipe.feature_extractor(
        images=(small + 1) / 2,
        do_normalize=True,
        do_center_crop=False,
        do_resize=False,
        do_rescale=False,
        return_tensors="pt",
    ).pixel_values
    return image_encoder(pixel_values.to(image_encoder.device, image_encoder.dtype)).image_embeds.unsqueeze(1)


def predict(model: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    """The U-Net's output. The clean image latents are appended to the channels of every frame.

    Args:
        timesteps: `(batch,)`, a quarter of ln sigma.
        conditioning: `image_latents` `(batch, channels, height, width)`, `image_embeds` `(batch, 1, width)` and
            `added_time_ids` `(batch, 3)`.
    """
    dtype = next(model.parameters()).dtype
    image_latents = conditioning["image_latents"].to(latents.dtype)
    model_input = torch.cat([latents, image_latents[:, None].expand(-1, latents.shape[1], -1, -1, -1)], dim=2)
    output = model(
        model_input.to(dtype),
        timesteps,
        conditioning["image_embeds"].to(dtype),
        conditioning["added_time_ids"].to(dtype),
        return_dict=False,
    )
    return output[0].float()


def clip_shape(sample: Mapping[str, Tensor], pipe: VDMiniI2VPipeline) -> ClipShape:
    """The clip of a precomputed sample. All clips of one data set differ in their motion bucket only."""
    num_frames, _, height, width = sample["latents"].shape
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    fps, motion_bucket_id, _ = (round(value) for value in sample["added_time_ids"].tolist())
    # The U-Net is conditioned on one frame a second less than there are, as in SVD's training.
    return ClipShape(num_frames, height * factor, width * factor, fps + 1, motion_bucket_id)


def sample_video(pipe: VDMiniI2VPipeline, image: str, shape: ClipShape, generator: torch.Generator) -> list[Any]:
    """The frames that `pipe` makes from an image file in one step, without guidance.

    Raises:
        ValueError: if the file cannot be read as a picture.
    """
    return pipe(
        ImageOps.fit(read_image(image), (shape.width, shape.height)),
        height=shape.height,
        width=shape.width,
        num_frames=shape.num_frames,
        fps=round(shape.fps),
        motion_bucket_id=shape.motion_bucket_id or 0,
        generator=generator,
    ).frames[0]


SVD = UNetFamily(
    name="Stable Video Diffusion",
    layout=PipelineLayout(
        class_names=("StableVideoDiffusionPipeline", "VDMiniI2VPipeline"),
        components={
            "feature_extractor": Component("transformers", has_weights=False),
            "image_encoder": Component("transformers"),
            "scheduler": Component("diffusers", has_weights=False, own=VDMiniAnimateLCMSVDScheduler),
            "unet": Component("diffusers"),
            "vae": Component("diffusers"),
        },
    ),
    denoisers={"unet": Denoiser("unet", (UNetSpatioTemporalConditionModel,), VDMiniUNetSpatioTemporalConditionModel)},
    pipeline=VDMiniI2VPipeline,
    default_plan="vdmini",
    card="vdmini_i2v.md",
    teacher_card="sf_v.md",
    pipeline_tag="image-to-video",
    tags=("vdmini", "video-diffusion", "pruning", "stable-video-diffusion", "image-to-video"),
    example_inputs=example_inputs,
    evaluated_clip=(14, 576, 1024),
    teacher_tags=("sf-v", "stable-video-diffusion", "video-diffusion", "image-to-video"),
    given="image",
    task="single_step",
    critic_taps={
        "blocks": ("down_blocks.0", "down_blocks.1", "down_blocks.2", "down_blocks.3"),
        "before_downsampling": (
            *("down_blocks.0.attentions.1", "down_blocks.1.attentions.1", "down_blocks.2.attentions.1"),
            "down_blocks.3.resnets.1",
        ),
    },
    critic_channels=lambda config: tuple(config["block_out_channels"]),
    recomputed_layers=(SpatioTemporalResBlock, TransformerSpatioTemporalModel),
    sample_tensors=("latents", "image_latents", "image_embeds", "added_time_ids"),
    exact_tensors=("added_time_ids",),
    encode=encode_image_to_video,
    predict=predict,
    critic_condition=lambda conditioning: conditioning["image_embeds"][:, 0],
    critic_condition_dim=lambda pipe: pipe.image_encoder.config.projection_dim,
    clip_shape=clip_shape,
    sample=sample_video,
)
FAMILY = SVD
