"""The same videos again and again: any pipeline with fixed inputs and fixed noise."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from vdmini_diffusers.analysis.encodings import Encodings


class FixedVideos:
    """Makes one video for each of `inputs`, whose noise depends on the seed and on its place alone.

    Prompts and pictures are encoded at the first call. Denoising and decoding are done at each, but for what
    `SharedStates` replays. PyTorch's global random numbers are seeded for each video.

    Args:
        pipe: a video pipeline of diffusers.
        inputs: keyword arguments of the pipeline that differ between videos, such as `image` and `prompt`.
        seed: video `i` has the noise of `seed + i`.
        settings: keyword arguments that all videos share.
        size: `(height, width)` that videos are resized to before they are scored; by default they stay as they are.

    Raises:
        ValueError: if there are no inputs, or the pipeline does not take one of the arguments.
    """

    def __init__(
        self,
        pipe: Any,
        inputs: Sequence[Mapping[str, Any]],
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        size: tuple[int, int] | None = None,
    ):
        self.pipe, self.inputs, self.seed, self.settings = pipe, inputs, seed, dict(settings or {})
        self.size, self.encodings = size, Encodings()
        self.num_broken = 0  # videos of the last call that had values that are not finite
        takes = inspect.signature(pipe.__call__).parameters
        if not inputs:
            raise ValueError("There are no inputs to make videos from.")
        if unknown := sorted({*self.settings, *inputs[0]} - set(takes)):
            raise ValueError(f"A {type(pipe).__name__} takes no {', '.join(f'`{name}`' for name in unknown)}.")

    def __call__(self, num_videos: int | None = None, description: str | None = None) -> np.ndarray:
        """uint8 `(n, frames, height, width, 3)`. Values that are not finite, of a denoiser that broke, are black.

        Args:
            num_videos: how many of the first, by default all.
            description: for a progress bar.
        """
        self.num_broken = 0
        self.pipe.set_progress_bar_config(disable=True)
        inputs = tqdm(self.inputs[:num_videos], description, disable=description is None, unit="video", leave=False)
        with self.encodings.remembered(self.pipe):
            return np.stack([self._video(i, kwargs) for i, kwargs in enumerate(inputs)])

    def _video(self, i: int, kwargs: Mapping[str, Any]) -> np.ndarray:
        # On the CPU, so that it is the same on any device. The global one, as schedulers that add noise between steps
        # are given none by SVD's pipeline.
        generator = torch.manual_seed(self.seed + i)
        output = self.pipe(**self.settings, **kwargs, generator=generator, output_type="np").frames[0]
        frames = np.asarray(output, dtype=np.float32)
        self.num_broken += not np.isfinite(frames).all()
        frames = np.nan_to_num(frames, posinf=0, neginf=0)
        video = (frames.clip(0, 1) * 255).round().astype(np.uint8)
        if self.size is None or video.shape[1:3] == self.size:
            return video
        height, width = self.size
        resized = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in video]
        return np.stack([np.asarray(frame) for frame in resized])


def frame_size(pipe: Any) -> tuple[int, int]:
    """Height and width in pixels of the videos that a pipeline makes by default.

    Raises:
        ValueError: if it does not say.
    """
    if hasattr(pipe, "default_size"):
        return pipe.default_size
    parameters = inspect.signature(pipe.__call__).parameters
    sizes: Any = [parameters[name].default if name in parameters else None for name in ("height", "width")]
    if not all(isinstance(size, int) for size in sizes):
        raise ValueError(f"A {type(pipe).__name__} has no size of its own: give `height` and `width`.")
    return sizes[0], sizes[1]
