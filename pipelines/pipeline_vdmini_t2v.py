"""Text to video: T2V-Turbo's consistency sampling with embedded guidance, and DDIM with guidance at run time.

This file is also published beside the weights, where it runs without the package: it imports third-party code only,
and repeats what it shares with the image-to-video pipeline.
"""

import functools
import html
import inspect
import json
import os
import re
import sys
import threading
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    HunyuanVideoPipeline,
    LCMScheduler,
    ModelMixin,
    UNet3DConditionModel,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput, is_ftfy_available, logging
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import CLIPTextModel, CLIPTokenizer


if is_ftfy_available():
    import ftfy
else:
    ftfy = None

logger = logging.get_logger(__name__)

T2V_TURBO_SIZE = (320, 512)  # pixels
# Steps and guidance: T2V-Turbo-v2's demo, which agrees with its training; and the stock pipeline for ModelScope.
EMBEDDED_DEFAULTS = (16, 7.5)
RUN_TIME_DEFAULTS = (50, 9.0)
MOTION_GUIDANCE_SCALE = 0.05
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# Arguments of `from_pretrained` that say where a file comes from.
DOWNLOAD_ARGUMENTS = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision")
# Files beside the weights that describe them; diffusers neither reads nor saves these.
UNET_COMPANIONS = ("pruning_plan.json", "pruning_provenance.json")

# One lock for each component that a call changes: see `one_call_at_a_time`.
_LOCKS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def one_call_at_a_time(call: Callable[..., Any]) -> Callable[..., Any]:
    """A pipeline's `__call__` that waits while another thread runs one on the same U-Net, VAE or scheduler.

    The scheduler counts steps, a VAE in float16 is float32 while it encodes, and offloading moves the networks.
    The locks are not attributes, so pipelines and components can still be copied and pickled.
    """

    @functools.wraps(call)
    def locked(self: Any, *args: Any, **kwargs: Any) -> Any:
        shared = {id(part): part for part in (self.unet, self.vae, self.scheduler) if part is not None}
        with ExitStack() as locks:
            for _, part in sorted(shared.items()):  # in one order everywhere, or two threads wait for each other
                locks.enter_context(_LOCKS.setdefault(part, threading.RLock()))
            return call(self, *args, **kwargs)

    return locked


def guidance_embedding(w: torch.Tensor, embedding_dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The embedding of guidance weights `w`, or of strengths of motion guidance, of shape `(batch,)`.

    It is sine, then cosine, of `1000 w` at `embedding_dim / 2` frequencies. T2V-Turbo embeds the weight as it is;
    diffusers' latent consistency pipelines embed `w - 1`. Computed in float32: in bfloat16 the phases would be lost.

    Returns:
        `(batch, embedding_dim)`, of `dtype`.
    """
    embedding = get_timestep_embedding(1000 * w.float(), embedding_dim, flip_sin_to_cos=False, downscale_freq_shift=1)
    return embedding.to(dtype)


def consistency_timesteps(
    num_inference_steps: int, original_inference_steps: int = 200, num_train_timesteps: int = 1000
) -> list[int]:
    """T2V-Turbo's timesteps: 999, 939, ..., 99 for 16 steps, from the grid 4, 9, ..., 999 that it was trained on.

    [`LCMScheduler`] by itself rounds another way where the grid does not divide: 999, 939, 874, ..., 64 for 16 steps.

    Raises:
        ValueError: if the grid has fewer points than there are steps.
    """
    if not 1 <= num_inference_steps <= original_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"{num_inference_steps} steps cannot be taken from a grid of {original_inference_steps} points in"
            f" {num_train_timesteps} timesteps: `num_inference_steps` goes from 1 to the scheduler's"
            " `original_inference_steps`."
        )
    spacing = num_train_timesteps // original_inference_steps
    grid = [spacing * i - 1 for i in range(1, original_inference_steps + 1)]
    return grid[:: -(original_inference_steps // num_inference_steps)][:num_inference_steps]


def publish_class(cls: type, folder: str | os.PathLike) -> tuple[str, str]:
    """Copy the source file of `cls` into `folder`, made if need be, and return its entry for `model_index.json`.

    The entry is `(file stem, class name)`, such as `("unet_spatio_temporal_vdmini",
    "VDMiniUNetSpatioTemporalConditionModel")`: diffusers reads it as "that class, from that file beside the weights".

    Raises:
        OSError: if `folder` cannot be written, or the source file is not there.
        TypeError: if `cls` was not defined in a Python file.
    """
    source = Path(inspect.getsourcefile(cls))
    Path(folder).mkdir(parents=True, exist_ok=True)
    _replace_file(Path(folder) / source.name, source.read_bytes())
    return source.stem, cls.__name__


@dataclass
class VDMiniT2VPipelineOutput(BaseOutput):
    """`frames`: a list of PIL images per video, or an array or tensor with all videos. As other pipelines' outputs."""

    frames: torch.Tensor | np.ndarray | list[list[PIL.Image.Image]]


class UInt8VideoProcessor(VideoProcessor):
    """Rounds frames to bytes on their device, one by one: a quarter of the stock copy, and no passes over it in numpy.

    The images are equal to the stock processor's, bit by bit.
    """

    def postprocess(
        self, image: torch.Tensor, output_type: str = "pil", do_denormalize: list[bool] | None = None
    ) -> PIL.Image.Image | np.ndarray | torch.Tensor | list[PIL.Image.Image]:
        if output_type != "pil" or image.shape[1] != 3:
            return super().postprocess(image, output_type, do_denormalize)
        do_denormalize = [self.config.do_normalize] * len(image) if do_denormalize is None else do_denormalize
        frames = []
        for frame, denormalize in zip(image.split(1), do_denormalize, strict=True):
            pixels = (self._denormalize_conditionally(frame, [denormalize])[0].float() * 255).round_().byte()
            frames.append(PIL.Image.fromarray(pixels.movedim(0, -1).contiguous().cpu().numpy()))
        return frames


class VDMiniT2VPipeline(DiffusionPipeline, TextualInversionLoaderMixin, StableDiffusionLoraLoaderMixin):
    r"""
    Text to video with a VDMini student, T2V-Turbo, VideoCrafter2 or ModelScope's model. The components' configs decide
    how it samples:

    - A U-Net with `time_cond_proj_dim` (T2V-Turbo and its students) takes the guidance weight as an embedding and runs
      once a step. Others are guided at run time, on a doubled batch.
    - With [`LCMScheduler`], the timesteps are those that T2V-Turbo was trained on (`consistency_timesteps`), with the
      scheduler's own step. Other schedulers choose their timesteps themselves.
    - A U-Net with `fps_cond` takes the frame rate, one with `motion_cond_proj_dim` the strength of motion guidance.

    The scheduler computes in float32 whatever the weights' dtype: at timestep 999 it divides by 0.068. One pipeline
    may be called from several threads: the calls take turns.

    Folders are saved and opened as those of [`VDMiniI2VPipeline`] are: Python files lie beside the weights; with the
    package installed, `VDMiniT2VPipeline.from_pretrained` runs the installed code and needs no trust flag. It opens
    folders of the stock text-to-video pipeline, such as ModelScope's, as well.

    Args:
        vae ([`AutoencoderKL`]): Decodes the video frame by frame.
        text_encoder ([`~transformers.CLIPTextModel`]):
            OpenCLIP ViT-H/14 without its last layer (VideoCrafter2 and ModelScope use the one before it).
        tokenizer ([`~transformers.CLIPTokenizer`]): CLIP's vocabulary.
        unet ([`UNet3DConditionModel`]): A student (a subclass) or a teacher.
        scheduler ([`SchedulerMixin`]):
            [`LCMScheduler`] for T2V-Turbo, [`DDIMScheduler`] or another for the others. Its timesteps must be those of
            DDPM: schedulers of flow matching and EDM are refused.

    Example:

        >>> import torch
        >>> from diffusers.utils import export_to_gif
        >>> from vdmini_diffusers import VDMiniT2VPipeline

        >>> pipe = VDMiniT2VPipeline.from_pretrained("org/vdmini-t2v", dtype=torch.float16)
        >>> frames = pipe.to("cuda")("A corgi surfs a wave at sunset").frames[0]
        >>> export_to_gif(frames, "video.gif", fps=8)
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs = ["latents", "prompt_embeds"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet3DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
    ):
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1) if vae is not None else 8
        self.video_processor = UInt8VideoProcessor(do_resize=False, vae_scale_factor=self.vae_scale_factor)

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels that suit the loaded U-Net: its `sample_size` where it has one, or 320 x 512."""
        sample_size = self.unet.config.sample_size
        if sample_size is None:
            return T2V_TURBO_SIZE
        height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    @property
    def embeds_guidance(self) -> bool:
        """Whether the U-Net takes the guidance weight as an embedding."""
        return self.unet.config.time_cond_proj_dim is not None

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1 and not self.embeds_guidance

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def tokenize(self, prompts: list[str]) -> torch.Tensor:
        """Token ids as `open_clip.tokenize` makes them, with which these models were trained: `(len(prompts), 77)`.

        Broken text is repaired, HTML is unescaped, and what follows the end token is 0. No text is taken for a special
        token; Stable Diffusion 2's tokenizer, also ModelScope's, takes each "!" for padding otherwise.
        """
        length = self.text_encoder.config.max_position_embeddings
        ids = torch.zeros(len(prompts), length, dtype=torch.long)
        for row, prompt in zip(ids, self.maybe_convert_prompt(list(prompts), self.tokenizer), strict=True):
            tokens = self.tokenizer(_clean(prompt), split_special_tokens=True, verbose=False).input_ids
            if len(tokens) > length:
                logger.warning(
                    f"The end of a prompt is cut off, as the text encoder takes {length} tokens:"
                    f" {self.tokenizer.decode(tokens[length - 1 : -1])!r}"
                )
                tokens = [*tokens[: length - 1], tokens[-1]]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = False,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings of prompt and negative prompt, by default an empty text, for `num_images_per_prompt` videos each.

        Returns:
            Two tensors `(batch * num_images_per_prompt, 77, channels)`; `None` instead of the second without guidance
            at run time.
        """
        device = device or self._execution_device
        if prompt_embeds is None:
            prompts = [prompt] if isinstance(prompt, str) else prompt
            prompt_embeds = self.text_encoder(self.tokenize(prompts).to(device)).last_hidden_state
        if not do_classifier_free_guidance:
            negative_prompt_embeds = None
        elif negative_prompt_embeds is None:
            several = isinstance(negative_prompt, list)
            negative_prompts = negative_prompt if several else [negative_prompt or ""] * len(prompt_embeds)
            negative_prompt_embeds = self.text_encoder(self.tokenize(negative_prompts).to(device)).last_hidden_state

        def for_each_video(embeds: torch.Tensor) -> torch.Tensor:
            return embeds.to(device).repeat_interleave(num_images_per_prompt, dim=0)

        if negative_prompt_embeds is None:
            return for_each_video(prompt_embeds), None
        return for_each_video(prompt_embeds), for_each_video(negative_prompt_embeds)

    def decode_latents(self, latents: torch.Tensor, decode_chunk_size: int = 8) -> torch.Tensor:
        """Latents `(batch, channels, frames, h, w)` to pixels `(batch, 3, frames, height, width)` in [-1, 1]."""
        frames = 1 / self.vae.config.scaling_factor * latents.transpose(1, 2).flatten(0, 1)
        chunks = frames.to(self.vae.dtype).split(decode_chunk_size)
        pixels = torch.cat([self.vae.decode(chunk).sample.float() for chunk in chunks])
        return pixels.unflatten(0, (latents.shape[0], latents.shape[2])).transpose(1, 2)

    @torch.no_grad()
    @one_call_at_a_time
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int = 16,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006, diffusers' own default
        cross_attention_kwargs: dict[str, Any] | None = None,
        num_videos_per_prompt: int = 1,
        fps: float = 8,
        motion_guidance_scale: float | None = None,
        motion_guidance_percentage: float = 0.5,
        decode_chunk_size: int = 8,
        timesteps: list[int] | None = None,
    ) -> VDMiniT2VPipelineOutput | tuple:
        r"""
        Args:
            prompt (`str` or `list[str]`, *optional*): Or `prompt_embeds`.
            height, width (`int`, *optional*):
                In pixels; multiples of what the VAE downsamples by (8 for the models' own). By default the U-Net's
                `sample_size`, or 320 and 512.
            num_frames (`int`, defaults to 16): At least 1.
            num_inference_steps (`int`, *optional*):
                At least 1. By default 16 with embedded guidance (T2V-Turbo-v2; 8 and 4 work as well), otherwise 50.
            guidance_scale (`float`, *optional*):
                At least 0; by default 7.5 with embedded guidance, otherwise 9. Embedded, it is T2V-Turbo's `w` in
                `cond + w (cond - uncond)`. At run time it is the usual `w + 1`, and there is no guidance up to 1.
            negative_prompt (`str` or `list[str]`, *optional*): Only for guidance at run time.
            eta (`float`, defaults to 0.0): DDIM's share of new noise in each step; other schedulers do not use it.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*): One, or one per video.
            latents (`torch.Tensor`, *optional*):
                Noise of unit variance, `(batch * num_videos_per_prompt, 4, num_frames, height / 8, width / 8)` for the
                models' own VAE. Any floating dtype: it is cast to float32.
            prompt_embeds, negative_prompt_embeds (`torch.Tensor`, *optional*):
                `(batch, tokens, channels)`, instead of the prompts. From `encode_prompt`, for example.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, defaults to `True`): An output object with `frames`, or a tuple.
            callback_on_step_end (`Callable`, *optional*): `callback(pipe, step, timestep, callback_kwargs) -> dict`.
            callback_on_step_end_tensor_inputs (`list[str]`):
                The tensors that the callback gets in `callback_kwargs`: `"latents"`, `"prompt_embeds"` (with guidance
                at run time after the negative ones, in one tensor). Those in its result replace the pipeline's.
            cross_attention_kwargs (`dict`, *optional*):
                For the U-Net's attention processors. A LoRA's strength is set by `set_adapters`, not by `scale` here.
            num_videos_per_prompt (`int`, defaults to 1): At least 1. Videos of one prompt are neighbours.
            fps (`float`, defaults to 8): At least 1; conditions a U-Net that has `fps_cond`.
            motion_guidance_scale (`float`, *optional*):
                At least 0, by default 0.05: the strength that conditions a U-Net with `motion_cond_proj_dim`. Others
                refuse it.
            motion_guidance_percentage (`float`, defaults to 0.5):
                The part of the noise levels, from the highest on, at which the strength is this one; below, it is 0.
            decode_chunk_size (`int`, defaults to 8):
                Frames that the VAE decodes at once, at least 1. It decodes each frame by itself, so that fewer at once
                take less memory for the same video.
            timesteps (`list[int]`, *optional*):
                Falling timesteps, from 0 on, instead of the default ones, where the scheduler takes them.

        Returns:
            [`VDMiniT2VPipelineOutput`] or a tuple with its `frames`: for `"pil"` a list of images per video, for
            `"np"` `(batch, num_frames, height, width, 3)`, for `"pt"` `(batch, num_frames, 3, height, width)`, both in
            `[0, 1]`; for `"latent"` as `latents`, in float32.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if an argument is out of range, shapes do not fit, or the scheduler's timesteps are not DDPM's.
                Both before anything is computed. After a step, if the callback does not return what it should.
        """
        config = self.unet.config
        motion_dim = config.get("motion_cond_proj_dim")  # stock U-Nets have neither this nor `fps_cond`
        defaults = EMBEDDED_DEFAULTS if self.embeds_guidance else RUN_TIME_DEFAULTS
        height = self.default_size[0] if height is None else height
        width = self.default_size[1] if width is None else width
        num_inference_steps = defaults[0] if num_inference_steps is None else num_inference_steps
        guidance_scale = defaults[1] if guidance_scale is None else guidance_scale
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        _check_numbers(Integral, 1, height=height, width=width, num_frames=num_frames)
        _check_numbers(Integral, 1, num_inference_steps=num_inference_steps, decode_chunk_size=decode_chunk_size)
        _check_numbers(Integral, 1, num_videos_per_prompt=num_videos_per_prompt)
        _check_numbers(Real, 1, fps=fps)
        _check_numbers(Real, 0, guidance_scale=guidance_scale, eta=eta)
        if motion_guidance_scale is None:
            motion_guidance_scale = MOTION_GUIDANCE_SCALE
        elif motion_dim is None:
            raise ValueError("This U-Net has no embedding of `motion_guidance_scale`: leave it out.")
        _check_numbers(Real, 0, motion_guidance_scale=motion_guidance_scale)
        _check_numbers(Real, 0, motion_guidance_percentage=motion_guidance_percentage)
        if motion_guidance_percentage > 1:
            raise ValueError(f"`motion_guidance_percentage` must be at most 1, not {motion_guidance_percentage}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, not {output_type!r}.")
        if self.vae is None and output_type != "latent":
            raise ValueError("This pipeline has no VAE: pass `output_type='latent'`.")
        _check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        self._guidance_scale, self._interrupt = guidance_scale, False
        batch_size = self._check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        num_videos = batch_size * num_videos_per_prompt
        shape = self._check_shapes(num_videos, num_frames, height, width, generator, latents)

        device = self._execution_device
        self._check_scheduler()
        steps = self._set_timesteps(num_inference_steps, timesteps, device)
        self._num_timesteps = len(steps)

        context, negative_context = self.encode_prompt(
            prompt,
            device,
            num_videos_per_prompt,
            self.do_classifier_free_guidance,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
        )
        if negative_context is not None:
            context = torch.cat([negative_context.to(context), context])

        # The conditioning beyond text and timestep that the U-Net was built for.
        unet_dtype = self.unet.dtype  # read once, as it is looked for in every module
        conditioning = {"fps": fps} if config.get("fps_cond") else {}

        def embed(value: float, embedding_dim: int) -> torch.Tensor:
            values = torch.full((num_videos,), value, dtype=torch.float32, device=device)
            return guidance_embedding(values, embedding_dim, unet_dtype)

        if self.embeds_guidance:
            conditioning["timestep_cond"] = embed(guidance_scale, config.time_cond_proj_dim)
        motion_ends = self.scheduler.config.num_train_timesteps * (1 - motion_guidance_percentage)

        # The sampler's own numbers are float32 at least.
        dtype = torch.promote_types(unet_dtype, torch.float32)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        latents = latents.to(device, dtype) * self.scheduler.init_noise_sigma
        takes = inspect.signature(self.scheduler.step).parameters
        step_kwargs = {k: v for k, v in {"eta": eta, "generator": generator}.items() if k in takes}
        with self.progress_bar(total=len(steps)) as progress_bar:  # pyright: ignore[reportCallIssue] - decorated
            for i, t in enumerate(steps):
                if self.interrupt:
                    continue
                if motion_dim is not None:
                    # Never left out: no embedding is another input than the embedding of 0.
                    strength = motion_guidance_scale if t >= motion_ends else 0.0
                    conditioning["motion_cond"] = embed(strength, motion_dim)
                model_input = torch.cat([latents] * 2) if self.do_classifier_free_guidance else latents
                model_input = self.scheduler.scale_model_input(model_input, t)
                model_output = self.unet(
                    model_input.to(unet_dtype),
                    t,
                    encoder_hidden_states=context.to(unet_dtype),
                    cross_attention_kwargs=cross_attention_kwargs,
                    return_dict=False,
                    **conditioning,
                )[0].to(dtype)
                if self.do_classifier_free_guidance:
                    unguided, guided = model_output.chunk(2)
                    model_output = unguided + self.guidance_scale * (guided - unguided)
                latents = self.scheduler.step(model_output, t, latents, **step_kwargs, return_dict=False)[0]
                if callback_on_step_end is not None:
                    tensors = {"latents": latents, "prompt_embeds": context}
                    chosen = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    tensors |= _callback_result(callback_on_step_end(self, i, t, chosen), shape, device, dtype)
                    latents, context = tensors["latents"], tensors["prompt_embeds"]
                progress_bar.update()

        frames = latents
        if output_type != "latent":
            pixels = self.decode_latents(latents, decode_chunk_size)
            frames = self.video_processor.postprocess_video(pixels, output_type=output_type)
        self.maybe_free_model_hooks()
        return VDMiniT2VPipelineOutput(frames=frames) if return_dict else (frames,)

    def _set_timesteps(
        self, num_inference_steps: int, timesteps: list[int] | None, device: torch.device
    ) -> torch.Tensor:
        if timesteps is None and isinstance(self.scheduler, LCMScheduler):
            config = self.scheduler.config
            timesteps = consistency_timesteps(
                num_inference_steps, config.original_inference_steps, config.num_train_timesteps
            )
        if timesteps is None:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
        elif not (isinstance(timesteps, list) and timesteps and all(isinstance(t, Integral) for t in timesteps)):
            raise TypeError(f"`timesteps` must be a list of integers, not {timesteps!r}.")
        elif min(timesteps) < 0:
            raise ValueError(f"`timesteps` must be at least 0, not {min(timesteps)}.")
        elif max(timesteps) >= self.scheduler.config.num_train_timesteps or timesteps != sorted(timesteps)[::-1]:
            most = self.scheduler.config.num_train_timesteps - 1
            raise ValueError(f"`timesteps` must be descending, from {most} at most, not {timesteps}.")
        elif "timesteps" not in inspect.signature(self.scheduler.set_timesteps).parameters:
            raise ValueError(f"{type(self.scheduler).__name__} takes no `timesteps`: pass `num_inference_steps`.")
        else:
            self.scheduler.set_timesteps(timesteps=timesteps, device=device)
        return self.scheduler.timesteps

    def _check_prompts(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        prompt_embeds: torch.Tensor | None,
        negative_prompt_embeds: torch.Tensor | None,
    ) -> int:
        """The number of prompts."""
        for name, texts in {"prompt": prompt, "negative_prompt": negative_prompt}.items():
            strings = texts if isinstance(texts, list) and texts else [texts]
            if texts is not None and not all(isinstance(text, str) for text in strings):
                raise TypeError(f"`{name}` must be a string or a list of strings, not {texts!r}.")
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("Pass either `prompt` or `prompt_embeds`.")
        width = self.unet.config.cross_attention_dim
        for name, embeds in {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}.items():
            if embeds is not None:
                _check_finite(**{name: embeds})
            if embeds is not None and (embeds.ndim != 3 or embeds.shape[0] < 1 or embeds.shape[2] != width):
                raise ValueError(f"`{name}` must have the shape (batch, tokens, {width}), not {tuple(embeds.shape)}.")
        batch_size = 1 if isinstance(prompt, str) else len(prompt or prompt_embeds)

        negative = negative_prompt if negative_prompt_embeds is None else negative_prompt_embeds
        if negative is not None and self.embeds_guidance:
            raise ValueError(
                "This U-Net takes the guidance weight as an embedding and runs with the prompt only: it takes no"
                " negative prompt."
            )
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("Pass either `negative_prompt` or `negative_prompt_embeds`, not both.")
        if negative is not None and not isinstance(negative, str) and len(negative) != batch_size:
            raise ValueError(f"There are {len(negative)} negative prompts for {batch_size} prompts.")
        lengths = {embeds.shape[1] for embeds in (prompt_embeds, negative_prompt_embeds) if embeds is not None}
        if prompt is not None or (self.do_classifier_free_guidance and negative_prompt_embeds is None):
            if self.text_encoder is None or self.tokenizer is None:
                raise ValueError(
                    "This pipeline has no text encoder or no tokenizer: pass `prompt_embeds`, and for guidance at run"
                    " time `negative_prompt_embeds`."
                )
            lengths.add(self.text_encoder.config.max_position_embeddings)  # that of embedded text
        if len(lengths) > 1:
            raise ValueError(f"Embeddings of prompt and negative prompt must have as many tokens, not {lengths}.")
        return batch_size

    def _check_shapes(
        self,
        num_videos: int,
        num_frames: int,
        height: int,
        width: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
    ) -> tuple[int, ...]:
        """The shape of the latents. The U-Net takes latents of any size: it upsamples to its skip connections'."""
        multiple = self.vae_scale_factor
        if height % multiple or width % multiple:
            raise ValueError(
                f"`height` and `width` must be multiples of {multiple}, which the VAE downsamples by; got {height} and"
                f" {width}."
            )
        _check_generator(generator, num_videos)
        shape = (
            num_videos,
            self.unet.config.in_channels,
            num_frames,
            height // self.vae_scale_factor,
            width // self.vae_scale_factor,
        )
        if latents is not None:
            _check_finite(latents=latents)
            if tuple(latents.shape) != shape:
                raise ValueError(f"`latents` must have the shape {shape}, not {tuple(latents.shape)}.")
        return shape

    def _check_scheduler(self) -> None:
        """Raises `ValueError` unless timesteps are steps of DDPM's noising, as all U-Nets of the family count them."""
        config = self.scheduler.config
        if (
            not hasattr(self.scheduler, "alphas_cumprod")
            or config.get("timestep_type") == "continuous"
            or config.get("use_flow_sigmas")
            or config.get("prediction_type") == "flow_prediction"
        ):
            raise ValueError(
                f"{type(self.scheduler).__name__} with this config does not suit this U-Net, which was trained on the"
                " timesteps of DDPM: use `LCMScheduler`, `DDIMScheduler` or another without flow matching and EDM."
            )

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """As [`~loaders.StableDiffusionLoraLoaderMixin.load_lora_weights`].

        Raises:
            ValueError: if the U-Net takes no adapters, or these are not its: names or shapes differ.
        """
        source: Any = pretrained_model_name_or_path_or_dict
        source = os.fspath(source) if isinstance(source, os.PathLike) else source
        with _lora_must_fit(self, source, hotswap):
            super().load_lora_weights(source, adapter_name, hotswap, **kwargs)

    # How the folder is written. `save_pretrained` and `push_to_hub` save the components and then call `save_config`,
    # which ends here: the index comes last, and only whole files take the place of others.

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """As the parent's, but a `model_index.json` names code files beside the weights, which are written with it."""
        index_file = Path(json_file_path)
        if index_file.name != self.config_name:
            super().to_json_file(json_file_path)
            return
        folder = index_file.parent
        index = json.loads(self.to_json_string())
        for name, (library, class_name) in _components(index):
            if library == "transformers":  # which without torchvision names classes that older versions do not have
                index[name] = (library, class_name.removesuffix("Pil"))
            # Stock classes need no file. Nothing can be published of a class from a notebook or script (`__main__`).
            if library.partition(".")[0] not in ("diffusers", "transformers", "__main__") and library in sys.modules:
                index[name] = publish_class(getattr(sys.modules[library], class_name), folder / name)
        if type(self).__module__ != "__main__":
            index["_class_name"] = publish_class(type(self), folder)
        self._copy_companions(folder)
        _replace_file(index_file, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())

    def _copy_companions(self, folder: Path) -> None:
        """Model card and pruning plan, where the pipeline came from a local folder that has them."""
        sources = [(self.unet.config.get("_name_or_path"), name, folder / "unet") for name in UNET_COMPANIONS]
        if not (folder / "README.md").exists():  # a card that is there may have been edited
            sources.append((self.name_or_path, "README.md", folder))
        for source_folder, name, target_folder in sources:
            if source_folder and (Path(source_folder) / name).is_file():
                _replace_file(target_folder / name, (Path(source_folder) / name).read_bytes())

    # How the folder is read. `from_pretrained` opens what the other two give it; these leave alone what the package
    # does not have.

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *, optimize: bool = True, **kwargs: Any
    ) -> Any:
        """As [`~DiffusionPipeline.from_pretrained`]. A folder of HunyuanVideo or VDMini-T2V-HY opens as a
        [`VDMiniHunyuanVideoPipeline`], whose call has the arguments of [`HunyuanVideoPipeline`].

        Args:
            optimize (`bool`, defaults to `True`):
                Exchange the forward passes of modules in the loaded networks for faster ones that compute the same up
                to rounding, by the package's `optimize`; its `restore` undoes that. `False` leaves the stock modules.
                Networks that are passed in, and HunyuanVideo's, stay as they are.

        Raises:
            OSError: if a file is missing, or its JSON is damaged.
            ValueError: if configs and weights do not describe a pipeline of this class.
        """
        with _explaining_errors(cls, pretrained_model_name_or_path):
            other = cls._pipeline_of_a_transformer(pretrained_model_name_or_path, kwargs)
            if other is not None:
                return other.from_pretrained(pretrained_model_name_or_path, **kwargs)
            pipe = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if optimize:
            _optimize(pipe, kwargs)
        return pipe

    @classmethod
    def _pipeline_of_a_transformer(cls, name: str | os.PathLike, kwargs: dict[str, Any]) -> Any:
        """The class that opens a folder of HunyuanVideo's pipeline; None for a folder of this class."""
        index = super().load_config(name, **{key: kwargs[key] for key in DOWNLOAD_ARGUMENTS if key in kwargs})
        if index.get("_class_name") != HunyuanVideoPipeline.__name__:
            return None
        package = sys.modules.get(__name__.partition(".")[0])  # nothing of the kind where this file is remote code
        return getattr(package, "VDMiniHunyuanVideoPipeline", HunyuanVideoPipeline)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """As [`~DiffusionPipeline.from_pipe`], which takes over networks of exactly the classes that `__init__` names;
        here those of subclasses as well, as students are."""
        kinds = cls._get_signature_types()
        for name, part in pipeline.components.items():
            if isinstance(part, ModelMixin) and isinstance(part, kinds.get(name, ())):
                kwargs.setdefault(name, part)
        return super().from_pipe(pipeline, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike, **kwargs: Any) -> dict[str, Any]:
        index = _read_index(super()._dict_from_json_file, json_file, **kwargs)
        entry = index.get("_class_name")
        # A file name would make diffusers run that file in place of the class that the user called.
        if isinstance(entry, list) and entry[1] in {base.__name__ for base in cls.__mro__}:
            index["_class_name"] = entry[1]
        return index

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """As the parent's, with components that the installed package has named by their modules there.

        Not done in `_dict_from_json_file`: the downloader checks the entries it gets there against the repository.
        """
        result = super().load_config(*args, **kwargs)
        index = result[0] if isinstance(result, tuple) else result
        package = sys.modules.get(__name__.partition(".")[0])  # nothing of the kind where this file is remote code
        for name, (stem, class_name) in _components(index):
            installed = getattr(package, class_name, None)
            if isinstance(installed, type) and installed.__module__.rpartition(".")[2] == stem:
                index[name] = [installed.__module__, class_name]
        return result


def _clean(text: str) -> str:
    """As open_clip cleans: repaired, unescaped twice, with single spaces, in lower case."""
    if ftfy is None:
        warnings.warn("Without ftfy, prompts are not repaired as in training: curly quotes, say. `pip install ftfy`")
    else:
        text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text))
    return re.sub(r"\s+", " ", text).strip().lower()


def _read_index(read: Callable[..., Any], file: str | os.PathLike, **kwargs: Any) -> dict[str, Any]:
    """A `model_index.json`, or an `OSError` that says what is wrong with it."""
    try:
        index = read(file, **kwargs)
    except (ValueError, RecursionError) as error:  # not JSON, not text, or nested without end
        raise OSError(f"{file} is not valid JSON ({type(error).__name__}: {error}): download it again.") from error
    if not isinstance(index, dict):
        raise OSError(f"{file} must hold a JSON object, not {type(index).__name__}: it is no pipeline's.")
    entries = {name: entry for name, entry in index.items() if isinstance(entry, list) or name == "_class_name"}
    for name, entry in entries.items():
        pair = isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
        if not (pair or entry == [None, None] or (name == "_class_name" and isinstance(entry, str))):
            raise OSError(f"{file}: `{name}` must be a file or library and a class of it, not {entry!r}.")
    return index


def _optimize(pipe: Any, given: dict[str, Any]) -> None:
    """Rewrite the networks of `pipe` that were loaded, not `given`; none where this file runs without the package."""
    package = sys.modules.get(__name__.partition(".")[0])  # nothing of the kind where this file is remote code
    for name, part in pipe.components.items() if hasattr(package, "optimize") else ():
        if isinstance(part, torch.nn.Module) and name not in given:
            package.optimize(part)


@contextmanager
def _explaining_errors(cls: type, source: Any) -> Iterator[None]:
    """Errors of loading a pipeline from `source` say what was tried."""
    try:
        yield
    except (ImportError, OSError):
        raise
    except Exception as error:  # whatever a component makes of a config that is not its own
        if isinstance(error, ValueError) and str(source) in str(error):
            raise
        raise ValueError(
            f"{source} does not open as a {cls.__name__}: `model_index.json`, configs and weights do not fit together"
            f" ({type(error).__name__}: {' '.join(str(error).split())[:1000]})."
        ) from error


@contextmanager
def _lora_must_fit(pipe: Any, source: Any, hotswap: bool) -> Iterator[None]:
    """Raises `ValueError` where diffusers loads nothing with a warning, or ends in an error of peft or torch."""
    if not hasattr(pipe.unet, "load_lora_adapter"):
        raise ValueError(
            f"{type(pipe.unet).__name__} takes no LoRA. Open the U-Net with the VDMini class of its kind, which does;"
            " for a stock folder, pass it the `mid_block_type` that its config does not have."
        )
    name = "the given tensors" if isinstance(source, dict) else source
    before = pipe.get_list_adapters()
    try:
        yield
    except (KeyError, RuntimeError, ValueError) as error:  # those of peft and torch list every tensor
        reason = " ".join(str(error).split("\n\t")[:2])[:500]
        raise ValueError(f"The LoRA of {name} does not load into {type(pipe.unet).__name__}: {reason}") from error
    if not hotswap and pipe.get_list_adapters() == before:
        raise ValueError(
            f"Nothing was loaded: {name} has no LoRA for {' or '.join(pipe._lora_loadable_modules)}. Names of tensors"
            " begin with `unet.`, as `save_lora_weights` writes them; an adapter that `unet.save_lora_adapter` wrote"
            " loads by `pipe.unet.load_lora_adapter(folder, prefix=None)`."
        )


def _components(index: dict[str, Any]) -> list[tuple[str, tuple[str, str]]]:
    """Name and `(library or file stem, class name)` of each component that a `model_index.json` holds."""
    entries = {name: entry for name, entry in index.items() if isinstance(entry, list) and name != "_class_name"}
    return [(name, (library, class_name)) for name, (library, class_name) in entries.items() if library is not None]


def _check_numbers(kind: type, least: float, most: float | None = None, /, **arguments: Any) -> None:
    """Raises unless all are finite numbers from `least` to `most`; integers are those of 32 bits at most."""
    for name, value in arguments.items():
        if not isinstance(value, kind):
            raise TypeError(f"`{name}` must be {'an integer' if kind is Integral else 'a number'}, not {value!r}.")
        if not value >= least:
            raise ValueError(f"`{name}` must be at least {least}, not {value}.")
        limit = most or (2**31 - 1 if kind is Integral else sys.float_info.max)
        if value > limit:
            raise ValueError(f"`{name}` must be at most {limit:g}, not {value}.")


def _check_finite(**tensors: Any) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"`{name}` must be a `torch.Tensor`, not {type(tensor).__name__}.")
        if not tensor.is_floating_point():
            raise TypeError(f"`{name}` must hold floats, not {tensor.dtype}.")
        if not tensor.isfinite().all():
            raise ValueError(f"`{name}` must hold finite numbers only; it has NaN or infinity.")


def _check_generator(generator: Any, num_videos: int) -> None:
    generators = generator if isinstance(generator, list) else [generator]
    if generator is not None and not all(isinstance(one, torch.Generator) for one in generators):
        raise TypeError(f"`generator` must be a `torch.Generator` or a list of them, not {generator!r}.")
    if isinstance(generator, list) and len(generator) != num_videos:
        raise ValueError(f"`generator` lists {len(generator)} generators for {num_videos} videos.")


def _check_callback(callback: Any, tensor_inputs: Any, known: list[str]) -> None:
    if callback is not None and not callable(callback):
        raise TypeError(f"`callback_on_step_end` must be callable, not {callback!r}.")
    if not isinstance(tensor_inputs, (list, tuple)) or not all(isinstance(name, str) for name in tensor_inputs):
        raise TypeError(f"`callback_on_step_end_tensor_inputs` must be a list of names, not {tensor_inputs!r}.")
    unknown = sorted(set(tensor_inputs) - set(known))
    if unknown:
        raise ValueError(f"`callback_on_step_end_tensor_inputs` may name {known}, not {unknown}.")


def _callback_result(
    result: Any, shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype
) -> dict[str, Any]:
    """What `callback_on_step_end` returned, with latents of the pipeline's device and dtype."""
    if not isinstance(result, dict):
        raise ValueError(
            f"`callback_on_step_end` must return a dictionary, not {result!r}; an empty one if it changes nothing."
        )
    for name in {"latents", "prompt_embeds"} & set(result):
        tensor = result[name]
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"`callback_on_step_end` must return a tensor for `{name}`, not {tensor!r}.")
        if name == "latents" and tensor.shape != shape:
            raise ValueError(
                f"`callback_on_step_end` must return `latents` of the shape {shape}, not {tuple(tensor.shape)}."
            )
    return {**result, "latents": result["latents"].to(device, dtype)} if "latents" in result else result


def _replace_file(path: Path, content: bytes) -> None:
    """Write `path` in one move: interrupted, it leaves the file that was there."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
