"""Image to video in one step: SF-V's sampler (Eq. 2 of the paper) behind the interface of Stable Video Diffusion.

This file is also published beside the weights, where it runs without the package: it imports third-party code only.
"""

import inspect
import json
import os
import sys
import uuid
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import StableVideoDiffusionPipeline
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    StableVideoDiffusionPipelineOutput,
)


SVD_SIZE = (576, 1024)  # pixels: what SVD was trained at, and the stock pipeline's default
# What SVD's own U-Net configs say as far as we know (768 pixels; not checked against the files), which is neither.
SVD_SAMPLE_SIZE = 96
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# What may lie beside the weights and describes them; diffusers neither reads nor saves these files.
UNET_COMPANIONS = ("pruning_plan.json", "pruning_provenance.json")


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


class VDMiniI2VPipeline(StableVideoDiffusionPipeline):
    r"""
    Image to video with a VDMini student, or with any U-Net that [`StableVideoDiffusionPipeline`] takes, in one step by
    default: `x_T = sigma_max * eps`, and the latent video is `D(x_T; sigma_max)` (SF-V, arXiv 2406.04324; section 3.1
    and Eq. 2 of the VDMini paper). More steps and classifier-free guidance remain possible. The computing is the
    parent's.

    Saving (`save_pretrained`, `push_to_hub`) writes the Python files of this class and of non-stock components beside
    the weights. Such a folder opens in two ways:

    - `VDMiniI2VPipeline.from_pretrained(...)`, with the package installed: runs the installed code, and needs no
      `trust_remote_code`. Code files of a repository are not executed, except those of components that the package
      does not have, which diffusers refuses without `trust_remote_code=True`.
    - `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)`, with or without the package: runs the files.

    Args:
        vae ([`AutoencoderKLTemporalDecoder`]): Encodes the image and decodes the video.
        image_encoder ([`~transformers.CLIPVisionModelWithProjection`]): Its image embedding is the U-Net's context.
        unet ([`UNetSpatioTemporalConditionModel`]): A student (a subclass) or a teacher.
        scheduler ([`EulerDiscreteScheduler`]): SVD's: v-prediction, Karras sigmas from 700 to 0.002, continuous.
        feature_extractor ([`~transformers.CLIPImageProcessor`]): Normalises the image for `image_encoder`.

    Example:

        >>> import torch
        >>> from diffusers.utils import export_to_video, load_image
        >>> from vdmini_diffusers import VDMiniI2VPipeline

        >>> pipe = VDMiniI2VPipeline.from_pretrained("org/vdmini-i2v", dtype=torch.float16, variant="fp16")
        >>> frames = pipe.to("cuda")(load_image("first_frame.png"), num_frames=14).frames[0]
        >>> export_to_video(frames, "video.mp4", fps=7)
    """

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels that suit the loaded U-Net: its `sample_size` where that is telling, or SVD's."""
        sample_size = self.unet.config.sample_size
        if sample_size is None or (sample_size == SVD_SAMPLE_SIZE and self.vae_scale_factor == 8):
            return SVD_SIZE
        height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        return height * self.vae_scale_factor, width * self.vae_scale_factor

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
                RGB; a list holds images of one size. A tensor has the shape `(batch, 3, size, size)` with the `size`
                of the image encoder (224), as the parent does not resize tensors for it, and values in `[0, 1]`.
            height, width (`int`, *optional*):
                In pixels; multiples of what VAE and U-Net downsample by together (64 for SVD, 32 for VDMini-I2V).
                By default the U-Net's `sample_size`, or 576 and 1024.
            num_frames (`int`, *optional*): At least 1; by default the U-Net's `num_frames`.
            num_inference_steps (`int`, defaults to 1): At least 1.
            sigmas (`list[float]`, *optional*): Noise levels instead of the scheduler's, where it takes them.
            min_guidance_scale, max_guidance_scale (`float`, defaults to 1.0):
                Guidance of the first and the last frame. Without guidance (`max_guidance_scale` at most 1) the U-Net
                runs once per step, otherwise on a doubled batch.
            fps (`int`, defaults to 7), motion_bucket_id (`int`, defaults to 127):
                Conditions of the U-Net: at least 1, and at least 0.
            noise_aug_strength (`float`, defaults to 0.02): Noise added to the image, at least 0; also a condition.
            decode_chunk_size (`int`, *optional*):
                Frames that the VAE decodes at once, at least 1; by default all. Not used by a VAE with tiling in time.
            num_videos_per_prompt (`int`, defaults to 1): At least 1. Videos of one image are neighbours in the result.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*): One, or one per video.
            latents (`torch.Tensor`, *optional*):
                The noise `eps`, of unit variance: `(batch * num_videos_per_prompt, num_frames, 4, height / 8, width /
                8)` for SVD's VAE.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            callback_on_step_end (`Callable`, *optional*): `callback(pipe, step, timestep, callback_kwargs) -> dict`.
            callback_on_step_end_tensor_inputs (`list[str]`): What it gets in `callback_kwargs`; only `"latents"`.
            return_dict (`bool`, defaults to `True`): An output object with `frames`, or `frames` alone.

        Returns:
            [`StableVideoDiffusionPipelineOutput`] or its `frames`: for `"pil"` a list of frames per video, for `"np"`
            `(batch, num_frames, height, width, 3)`, for `"pt"` `(batch, num_frames, 3, height, width)`, both in
            `[0, 1]`.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if an argument is out of range, or shapes do not fit. Both before anything is computed.
        """
        height = self.default_size[0] if height is None else height
        width = self.default_size[1] if width is None else width
        num_frames = self.unet.config.num_frames if num_frames is None else num_frames
        decode_chunk_size = num_frames if decode_chunk_size is None else decode_chunk_size
        _check_numbers(Integral, 1, height=height, width=width, num_frames=num_frames)
        _check_numbers(Integral, 1, num_inference_steps=num_inference_steps, decode_chunk_size=decode_chunk_size)
        _check_numbers(Integral, 1, num_videos_per_prompt=num_videos_per_prompt)
        _check_numbers(Real, 1, fps=fps)
        _check_numbers(Real, 0, motion_bucket_id=motion_bucket_id, noise_aug_strength=noise_aug_strength)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, not {output_type!r}.")
        strangers = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if strangers:
            known = self._callback_tensor_inputs
            raise ValueError(f"`callback_on_step_end_tensor_inputs` may name {known}, not {sorted(strangers)}.")
        dtypes = (self.image_encoder.dtype, self.unet.dtype)
        if dtypes[0] != dtypes[1] and not torch.is_autocast_enabled(self._execution_device.type):
            # transformers goes by the dtype in a saved config, diffusers by float32.
            raise ValueError(f"Image encoder and U-Net are of {dtypes}: pass `dtype` to `from_pretrained`.")
        num_videos = self._check_image(image) * num_videos_per_prompt
        self._check_shapes(num_videos, num_frames, height, width, generator, latents)
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
            latents=latents,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            return_dict=return_dict,
        )

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
            size = self.image_encoder.config.image_size
            if image.ndim != 4 or image.shape[0] < 1 or image.shape[1:] != (3, size, size):
                raise ValueError(
                    f"A tensor `image` has the shape (batch, 3, {size}, {size}), as the image encoder takes it, not"
                    f" {tuple(image.shape)}. Other sizes: pass `PIL.Image.Image`."
                )
            return image.shape[0]
        images = image if isinstance(image, list) else [image]
        strangers = sorted({type(i).__name__ for i in images if not isinstance(i, PIL.Image.Image)})
        if strangers:
            raise TypeError(
                f"`image` must be a `PIL.Image.Image`, a list of them or a `torch.Tensor`, not {', '.join(strangers)}."
            )
        if len({i.size for i in images}) != 1:
            raise ValueError(f"`image` must hold images of one size, got {[i.size for i in images]}.")
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
    ) -> None:
        # The last stage of the U-Net does not downsample. Other sizes fail where skip connections meet.
        multiple = self.vae_scale_factor * 2 ** (len(self.unet.config.down_block_types) - 1)
        if height % multiple or width % multiple:
            raise ValueError(
                f"`height` and `width` must be multiples of {multiple}, which VAE and U-Net downsample by; got"
                f" {height} and {width}."
            )
        if isinstance(generator, list) and len(generator) != num_videos:
            raise ValueError(f"`generator` lists {len(generator)} generators for {num_videos} videos.")
        shape = (
            num_videos,
            num_frames,
            self.unet.config.in_channels // 2,
            height // self.vae_scale_factor,
            width // self.vae_scale_factor,
        )
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"`latents` must have the shape {shape}, not {tuple(latents.shape)}.")

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

    # How the folder is read: `from_pretrained` is the parent's, and takes from these two what it opens. Both leave
    # alone what the package does not have.

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike, **kwargs: Any) -> dict[str, Any]:
        index = super()._dict_from_json_file(json_file, **kwargs)
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


def _components(index: dict[str, Any]) -> list[tuple[str, tuple[str, str]]]:
    """Name and `(library or file stem, class name)` of each component that a `model_index.json` holds."""
    entries = {name: entry for name, entry in index.items() if isinstance(entry, list) and name != "_class_name"}
    return [(name, (library, class_name)) for name, (library, class_name) in entries.items() if library is not None]


def _check_numbers(kind: type, least: int, **arguments: Any) -> None:
    for name, value in arguments.items():
        if not isinstance(value, kind):
            raise TypeError(f"`{name}` must be {'an integer' if kind is Integral else 'a number'}, not {value!r}.")
        if not value >= least:
            raise ValueError(f"`{name}` must be at least {least}, not {value}.")


def _replace_file(path: Path, content: bytes) -> None:
    """Write `path` in one move: interrupted, it leaves the file that was there."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
