"""Image to video in one step: SF-V's sampler (Eq. 2 of the paper) behind the interface of Stable Video Diffusion.

This file is also published beside the weights, where it runs without the package: it imports third-party code only.
"""

import copy
import functools
import inspect
import json
import math
import os
import sys
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    ModelMixin,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    StableVideoDiffusionPipelineOutput,
    retrieve_timesteps,
)
from diffusers.video_processor import VideoProcessor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection


SVD_SIZE = (576, 1024)  # pixels: what SVD was trained at, and the stock pipeline's default
# The 768 pixels of `sample_size` in SVD's own U-Net configs, which is neither. (As far as we know: the files were not
# at hand.)
SVD_SAMPLE_SIZE = 96
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
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


class VDMiniI2VPipeline(StableVideoDiffusionPipeline, StableDiffusionLoraLoaderMixin):
    r"""
    Image to video with a VDMini student, or with any U-Net that [`StableVideoDiffusionPipeline`] takes, in one step by
    default: `x_T = sigma_max * eps`, and the latent video is `D(x_T; sigma_max)` (SF-V, arXiv 2406.04324; section 3.1
    and Eq. 2 of the VDMini paper). More steps and classifier-free guidance remain possible. The parent does the
    computing. One pipeline may be called from several threads: the calls take turns.

    Saving (`save_pretrained`, `push_to_hub`) writes the Python files of this class and of non-stock components beside
    the weights. Such a folder opens in two ways:

    - `VDMiniI2VPipeline.from_pretrained(...)`, with the package installed, runs the installed code and needs no
      `trust_remote_code`. Code files of a repository are not executed, except those of components that the package
      does not have, which diffusers refuses without `trust_remote_code=True`.
    - `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)`, with or without the package, runs the files.

    `load_lora_weights`, `set_adapters`, `fuse_lora`, `unload_lora_weights` and `save_lora_weights` are those of Stable
    Diffusion's pipelines, for the U-Net alone. [`VDMiniUNetSpatioTemporalConditionModel`] takes adapters; the stock
    U-Net does not.

    Args:
        vae ([`AutoencoderKLTemporalDecoder`]): Encodes the image and decodes the video.
        image_encoder ([`~transformers.CLIPVisionModelWithProjection`]): Its image embedding is the U-Net's context.
        unet ([`UNetSpatioTemporalConditionModel`]): A student (a subclass) or a teacher.
        scheduler ([`EulerDiscreteScheduler`]):
            SVD's: v-prediction, Karras sigmas from 700 to 0.002, `timestep_type="continuous"`. Others are refused
            unless they mean the same by a timestep, as EDM's do with `sigma_data=1` and v-prediction.
        feature_extractor ([`~transformers.CLIPImageProcessor`]): Normalises the image for `image_encoder`.

    Example:

        >>> import torch
        >>> from diffusers.utils import export_to_gif, load_image
        >>> from vdmini_diffusers import VDMiniI2VPipeline

        >>> pipe = VDMiniI2VPipeline.from_pretrained("org/vdmini-i2v", dtype=torch.float16)
        >>> frames = pipe.to("cuda")(load_image("first_frame.png"), num_frames=14).frames[0]
        >>> export_to_gif(frames, "video.gif", fps=7)
    """

    _lora_loadable_modules = ["unet"]

    def __init__(
        self,
        vae: AutoencoderKLTemporalDecoder,
        image_encoder: CLIPVisionModelWithProjection,
        unet: UNetSpatioTemporalConditionModel,
        scheduler: EulerDiscreteScheduler,
        feature_extractor: CLIPImageProcessor,
    ):
        super().__init__(vae, image_encoder, unet, scheduler, feature_extractor)
        self.video_processor = UInt8VideoProcessor(do_resize=True, vae_scale_factor=self.vae_scale_factor)

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels that suit the loaded U-Net: its `sample_size` where that is telling, or SVD's."""
        sample_size = self.unet.config.sample_size
        if sample_size is None or (sample_size == SVD_SAMPLE_SIZE and self.vae_scale_factor == 8):
            return SVD_SIZE
        height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    @one_call_at_a_time
    def __call__(
        self,
        image: PIL.Image.Image | list[PIL.Image.Image] | torch.Tensor,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int = 1,
        sigmas: list[float] | None = None,
        min_guidance_scale: float = 1.0,
        max_guidance_scale: float = 1.0,
        fps: int = 7,
        motion_bucket_id: int = 127,
        noise_aug_strength: float = 0.02,
        decode_chunk_size: int | None = None,
        num_videos_per_prompt: int | None = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str | None = "pil",
        callback_on_step_end: Callable[[int, int], None] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006, the parent's own default
        return_dict: bool = True,
    ) -> StableVideoDiffusionPipelineOutput | list[list[PIL.Image.Image]] | np.ndarray | torch.Tensor:
        r"""
        Arguments, their order and the result are those of [`StableVideoDiffusionPipeline`]; four defaults differ.

        Args:
            image (`PIL.Image.Image`, `list[PIL.Image.Image]` or `torch.Tensor`):
                RGB, at least 2 x 2 pixels; a list holds images of one size. A tensor has the shape `(batch, 3, size,
                size)` with the `size` of the image encoder (224), as the parent does not resize tensors for it, and
                values in `[0, 1]`.
            height, width (`int`, *optional*):
                In pixels; multiples of what the VAE downsamples by (8 for SVD's). By default the U-Net's
                `sample_size`, or 576 and 1024.
            num_frames (`int`, *optional*): At least 1; by default the U-Net's `num_frames`.
            num_inference_steps (`int`, defaults to 1): At least 1.
            sigmas (`list[float]`, *optional*):
                Falling noise levels instead of the scheduler's, where it takes them; the last one, usually 0, is where
                the last step ends.
            min_guidance_scale, max_guidance_scale (`float`, defaults to 1.0):
                Guidance of the first and the last frame, at least 0. Without guidance (`max_guidance_scale` at most 1)
                the U-Net runs once per step, otherwise on a doubled batch.
            fps (`int`, defaults to 7), motion_bucket_id (`int`, defaults to 127):
                Conditioning of the U-Net: at least 1, and at least 0.
            noise_aug_strength (`float`, defaults to 0.02):
                Noise added to the image, at least 0; it also conditions the U-Net.
            decode_chunk_size (`int`, *optional*):
                Frames that the VAE decodes at once, at least 1; by default all. Not used by a VAE with tiling in time.
            num_videos_per_prompt (`int`, defaults to 1): At least 1. Videos of one image are neighbours in the result.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One, or one per video, which then is the video of its image and its generator alone.
            latents (`torch.Tensor`, *optional*):
                The noise `eps`, of unit variance: `(batch * num_videos_per_prompt, num_frames, 4, height / 8, width /
                8)` for SVD's VAE. Any floating dtype: it is cast to the U-Net's.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            callback_on_step_end (`Callable`, *optional*):
                `callback(pipe, step, timestep, callback_kwargs) -> dict`; `latents` in the result replace the
                pipeline's.
            callback_on_step_end_tensor_inputs (`list[str]`):
                The tensors that the callback gets in `callback_kwargs`; only `"latents"`.
            return_dict (`bool`, defaults to `True`): An output object with `frames`, or `frames` alone.

        Returns:
            [`StableVideoDiffusionPipelineOutput`] or its `frames`: for `"pil"` a list of frames per video, for `"np"`
            `(batch, num_frames, height, width, 3)`, for `"pt"` `(batch, num_frames, 3, height, width)`, both in
            `[0, 1]`.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if an argument is out of range, shapes do not fit, or the scheduler is not one of SVD's kind.
                Both before anything is computed. After a step, if the callback does not return what it should.
        """
        height = self.default_size[0] if height is None else height
        width = self.default_size[1] if width is None else width
        num_frames = self.unet.config.num_frames if num_frames is None else num_frames
        decode_chunk_size = num_frames if decode_chunk_size is None else decode_chunk_size
        _check_numbers(Integral, 1, height=height, width=width, num_frames=num_frames)
        _check_numbers(Integral, 1, num_inference_steps=num_inference_steps, decode_chunk_size=decode_chunk_size)
        _check_numbers(Integral, 1, num_videos_per_prompt=num_videos_per_prompt)
        dtype = self.unet.dtype
        most = torch.finfo(dtype).max  # the U-Net's conditioning is of its dtype
        _check_numbers(Real, 1, most, fps=fps)
        _check_numbers(Real, 0, most, motion_bucket_id=motion_bucket_id, noise_aug_strength=noise_aug_strength)
        _check_numbers(Real, 0, most, min_guidance_scale=min_guidance_scale, max_guidance_scale=max_guidance_scale)
        min_guidance_scale, max_guidance_scale = float(min_guidance_scale), float(max_guidance_scale)
        # The parent decides by `max_guidance_scale` whether it doubles the conditioning, and by the scales of the
        # frames, rounded to its dtype, whether it doubles the latents.
        scales = torch.linspace(min_guidance_scale, max_guidance_scale, num_frames).to(dtype)
        if bool(scales.max() > 1) != (max_guidance_scale > 1):
            raise ValueError(
                f"`max_guidance_scale` ({max_guidance_scale}) must be above 1 if a frame is to be guided, and must not"
                f" be if none is: the {num_frames} frames have scales from {scales[0]:g} to {scales[-1]:g} in {dtype}."
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, not {output_type!r}.")
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        _check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        if self.image_encoder.dtype != dtype and not torch.is_autocast_enabled(self._execution_device.type):
            # transformers goes by the dtype in a saved config, diffusers by float32.
            raise ValueError(
                f"The image encoder is of {self.image_encoder.dtype} and the U-Net of {dtype}: pass `dtype` to"
                " `from_pretrained`."
            )
        num_videos = self._check_image(image) * num_videos_per_prompt
        shape = self._check_shapes(num_videos, num_frames, height, width, generator, latents)
        self._check_scheduler(num_inference_steps, sigmas)
        if isinstance(generator, list) and num_videos_per_prompt > 1:
            # The parent noises one first frame an image, by as many of the generators as there are images.
            image, num_videos_per_prompt = _repeated(image, num_videos_per_prompt), 1
        callback = callback_on_step_end
        if callback is not None:

            def callback_on_step_end(*args: Any) -> dict[str, Any]:
                return _callback_result(callback(*args), shape, self._execution_device, dtype)

        return super().__call__(
            image=image,
            height=height,
            width=width,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            sigmas=sigmas,
            min_guidance_scale=min_guidance_scale,
            max_guidance_scale=max_guidance_scale,
            fps=fps,
            motion_bucket_id=motion_bucket_id,
            noise_aug_strength=noise_aug_strength,
            decode_chunk_size=decode_chunk_size,
            num_videos_per_prompt=num_videos_per_prompt,
            generator=generator,
            latents=None if latents is None else latents.to(dtype),
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            return_dict=return_dict,
        )

    def check_inputs(self, image: Any, height: int, width: int) -> None:
        """Nothing: `__call__` has checked all by now. The parent asks for multiples of 8 whatever the VAE."""

    def _encode_vae_image(
        self,
        image: torch.Tensor,
        device: str | torch.device,
        num_videos_per_prompt: int,
        do_classifier_free_guidance: bool,
    ) -> torch.Tensor:
        # With several images and several videos of each, the parent orders the image latents a, b, a, b and the image
        # embeddings a, a, b, b: videos get the first frame of one image and the context of another.
        image_latents = super()._encode_vae_image(image, device, 1, do_classifier_free_guidance)
        return image_latents.repeat_interleave(num_videos_per_prompt, dim=0)

    def decode_latents(self, latents: torch.Tensor, num_frames: int, decode_chunk_size: int = 14) -> torch.Tensor:
        # A VAE that blends chunks of frames by itself gets whole clips.
        blends = getattr(self.vae, "use_tiling", False) and hasattr(self.vae, "tile_sample_min_num_frames")
        return super().decode_latents(latents, num_frames, num_frames if blends else decode_chunk_size)

    def _check_image(self, image: PIL.Image.Image | list[PIL.Image.Image] | torch.Tensor) -> int:
        """The number of images."""
        if isinstance(image, torch.Tensor):
            if not image.is_floating_point():
                raise TypeError(f"A tensor `image` holds floats in [0, 1], not {image.dtype}.")
            _check_finite(image=image)
            size = self.image_encoder.config.image_size
            if image.ndim != 4 or image.shape[0] < 1 or image.shape[1:] != (3, size, size):
                raise ValueError(
                    f"A tensor `image` has the shape (batch, 3, {size}, {size}), as the image encoder takes it, not"
                    f" {tuple(image.shape)}. Other sizes: pass `PIL.Image.Image`."
                )
            return image.shape[0]
        images = image if isinstance(image, list) else [image]
        others = sorted({type(i).__name__ for i in images if not isinstance(i, PIL.Image.Image)})
        if others:
            raise TypeError(
                f"`image` must be a `PIL.Image.Image`, a list of them or a `torch.Tensor`, not {', '.join(others)}."
            )
        if len({i.size for i in images}) != 1:
            raise ValueError(f"`image` must hold images of one size, got {[i.size for i in images]}.")
        if min(images[0].size) < 2:  # the parent's blur before the image encoder reflects at the border
            raise ValueError(f"`image` must be of at least 2 x 2 pixels, not {images[0].width} x {images[0].height}.")
        modes = sorted({i.mode for i in images} - {"RGB"})
        if modes:
            raise ValueError(f"`image` must be RGB, not {', '.join(modes)}: use `image.convert('RGB')`.")
        return len(images)

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
            num_frames,
            self.unet.config.in_channels // 2,
            height // self.vae_scale_factor,
            width // self.vae_scale_factor,
        )
        if latents is not None:
            _check_finite(latents=latents)
            if tuple(latents.shape) != shape:
                raise ValueError(f"`latents` must have the shape {shape}, not {tuple(latents.shape)}.")
        return shape

    def _check_scheduler(self, num_inference_steps: int, sigmas: list[float] | None) -> None:
        """Raises `ValueError` unless the scheduler's steps are those that the U-Net was trained for."""
        numbers = sigmas is None or (
            isinstance(sigmas, list) and len(sigmas) > 1 and all(isinstance(sigma, Real) for sigma in sigmas)
        )
        if not numbers:
            raise TypeError(f"`sigmas` must be a list of two or more numbers, not {sigmas!r}.")
        if sigmas is not None and not all(a > b for a, b in zip([math.inf, *sigmas], [*sigmas, -1e-9], strict=True)):
            raise ValueError(f"`sigmas` must fall from one to the next, and not below 0: got {sigmas}.")
        scheduler = copy.deepcopy(self.scheduler)  # the pipeline's own is set where the parent does it
        timesteps, _ = retrieve_timesteps(scheduler, num_inference_steps, "cpu", None, sigmas)
        levels = torch.as_tensor(getattr(scheduler, "sigmas", torch.zeros(0)))[: len(timesteps)].cpu()
        config = scheduler.config
        # EDM's preconditioning with SVD's constants (Eq. 2), and its `c_noise`.
        if not (
            config.get("prediction_type") == "v_prediction"
            and config.get("sigma_data", 1.0) == 1.0
            and len(levels) == len(timesteps)
            and torch.allclose(timesteps.float(), levels.float().log() / 4, atol=1e-3)
        ):
            raise ValueError(
                f"{type(scheduler).__name__} with this config does not suit Stable Video Diffusion, whose U-Net takes"
                " log(sigma) / 4 for the timestep and predicts v: use"
                ' `EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous",'
                " use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0)`."
            )

    # LoRA. The parent's methods, without the text encoder that this pipeline does not have.

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """As [`~loaders.StableDiffusionLoraLoaderMixin.load_lora_weights`], for the U-Net alone.

        Raises:
            ValueError: if the U-Net takes no adapters, or these are not its: names or shapes differ.
        """
        source: Any = pretrained_model_name_or_path_or_dict
        source = os.fspath(source) if isinstance(source, os.PathLike) else source
        options = {name: kwargs.pop(name) for name in ("low_cpu_mem_usage",) if name in kwargs}
        with _lora_must_fit(self, source, hotswap):
            state_dict, alphas, metadata = self.lora_state_dict(
                dict(source) if isinstance(source, dict) else source, return_lora_metadata=True, **kwargs
            )
            self.load_lora_into_unet(
                state_dict,
                alphas,
                self.unet,
                adapter_name=adapter_name,
                metadata=metadata,
                _pipeline=self,
                hotswap=hotswap,
                **options,
            )

    def fuse_lora(self, components: Sequence[str] = ("unet",), *args: Any, **kwargs: Any) -> None:
        super().fuse_lora(list(components), *args, **kwargs)

    def unfuse_lora(self, components: Sequence[str] = ("unet",), **kwargs: Any) -> None:
        super().unfuse_lora(list(components), **kwargs)

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
        """As [`~DiffusionPipeline.from_pretrained`].

        Args:
            optimize (`bool`, defaults to `True`):
                Exchange the forward passes of modules in the loaded networks for faster ones that compute the same up
                to rounding, by the package's `optimize`; its `restore` undoes that. `False` leaves the stock modules.
                Networks that are passed in stay as they are.

        Raises:
            OSError: if a file is missing, or its JSON is damaged.
            ValueError: if configs and weights do not describe a pipeline of this class.
        """
        with _explaining_errors(cls, pretrained_model_name_or_path):
            pipe = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if optimize:
            _optimize(pipe, kwargs)
        return pipe

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


def _repeated(image: Any, num_videos: int) -> Any:
    """Each of the images so many times, one after the other."""
    if isinstance(image, torch.Tensor):
        return image.repeat_interleave(num_videos, dim=0)
    images = image if isinstance(image, list) else [image]
    return [one for one in images for _ in range(num_videos)]


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
