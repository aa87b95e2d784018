"""What a pipeline's call takes, and one call of it."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from vdmini_diffusers.analysis.generation import frame_size
from vdmini_diffusers.data.images import fit_picture
from vdmini_diffusers.data.video_writing import video_to_uint8
from vdmini_diffusers.pipelines import VDMiniAnimateLCMSVDScheduler


FPS = 8  # as in VBench's examples, where the pipeline has no `fps`
ANIMATELCM_STEPS = 8  # the paper's Table 2


def call_parameters(pipeline: type[Any]) -> dict[str, inspect.Parameter]:
    """What a call takes by name; a subclass may pass on `**kwargs` to its parent's."""
    calls = [vars(cls)["__call__"] for cls in reversed(pipeline.__mro__) if "__call__" in vars(cls)]
    return {name: given for call in calls for name, given in inspect.signature(call).parameters.items()}


def chosen_options(given: Mapping[str, Any], pipeline: type[Any]) -> dict[str, Any]:
    """The options that are not None, by the pipeline's names; `fps` is the file's alone where the pipeline lacks it.

    A `guidance_scale` is `max_guidance_scale` to a pipeline that has that instead, as Stable Video Diffusion's.

    Raises:
        ValueError: if the pipeline does not take one of them.
    """
    parameters = call_parameters(pipeline)
    options = {name: value for name, value in given.items() if value is not None}
    if "guidance_scale" in options and "guidance_scale" not in parameters and "max_guidance_scale" in parameters:
        options["max_guidance_scale"] = options.pop("guidance_scale")
    if refused := [name for name in options if name not in parameters and name != "fps"]:
        raise ValueError(f"{pipeline.__name__} takes no {', '.join(refused)}: leave that out.")
    return {name: value for name, value in options.items() if name in parameters}


def steps_made_for(pipe: Any) -> int | None:
    """The denoising steps that a model is made for, if its scheduler tells: one that one model alone has.

    Stable Video Diffusion's does not: its students of one step have the same.
    """
    return ANIMATELCM_STEPS if isinstance(pipe.scheduler, VDMiniAnimateLCMSVDScheduler) else None


def few_steps_note(pipe: Any, num_inference_steps: int | None) -> str | None:
    """What to tell a user who gives no steps to a model that is known to be made for more than its pipeline's own."""
    steps = steps_made_for(pipe)
    if num_inference_steps is not None or steps is None:
        return None
    default = call_parameters(type(pipe))["num_inference_steps"].default
    return (
        f"This model is AnimateLCM-SVD by its scheduler, {type(pipe.scheduler).__name__}, and made for"
        f" {steps} steps; {type(pipe).__name__} takes {default} where none are given. Pass --steps {steps}, or"
        f" --num_inference_steps {steps} to a script."
    )


def file_fps(pipeline: type[Any], fps: float | None) -> float:
    """Frames per second of the file: those given, or the pipeline's own, or `FPS`."""
    own = call_parameters(pipeline).get("fps")
    return fps or (own.default if own is not None and isinstance(own.default, (int, float)) else FPS)


def video_size(pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width: those given, or the pipeline's own. Raises `ValueError` where it has none."""
    if height is not None and width is not None:
        return height, width
    own_height, own_width = frame_size(pipe)
    return height or own_height, width or own_width


@torch.no_grad()
def make_clip(
    pipe: Any, seed: int, options: Mapping[str, Any], image: Image.Image | None = None, prompt: str | None = None
) -> np.ndarray:
    """One video, uint8 `(frames, height, width, 3)`.

    Args:
        options: of the call, with `height` and `width`.
        image: of any size; see `fit_picture`.

    Raises:
        ValueError: if the pipeline refuses what it is given, or makes values that are not finite.
    """
    given: dict[str, Any] = {} if prompt is None else {"prompt": prompt}
    if image is not None:
        given["image"] = fit_picture(image, options["width"], options["height"])
    # The global generator, because some schedulers draw from it (AnimateLCM-SVD's).
    generator = torch.manual_seed(seed)
    frames = np.asarray(pipe(**given, **options, generator=generator, output_type="np").frames[0])
    if not np.isfinite(frames).all():
        raise ValueError(
            "The model made values that are not finite: it is damaged, or --dtype should be bfloat16 or float32."
        )
    return video_to_uint8(frames)
