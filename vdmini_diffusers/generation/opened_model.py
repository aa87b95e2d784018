"""A model that is kept open and makes clips of any size that fits, each with its time and memory."""

import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vdmini_diffusers.evaluation.live_bytes import grown_by
from vdmini_diffusers.families import Family
from vdmini_diffusers.generation.memory import (
    GIB,
    SHARE,
    MemorySaving,
    choose_saving,
    free_bytes,
    peak_bytes,
    save_memory,
)
from vdmini_diffusers.generation.memory_count import count_call
from vdmini_diffusers.generation.opening import choose_device, choose_dtype, open_pipeline, recognise
from vdmini_diffusers.generation.pipeline_call import (
    call_parameters,
    chosen_options,
    file_fps,
    make_clip,
    steps_made_for,
    video_size,
)
from vdmini_diffusers.generation.production import ModelToOpen


SIZE = ("num_frames", "height", "width")
# One clip at a time in this process: they share the device, and some schedulers draw from torch's global generator.
_RUNNING = threading.Lock()


class ClipStoppedError(Exception):
    """A clip was given up because `stop` was set."""


@dataclass(frozen=True)
class MadeClip:
    """Args:
    frames: uint8 `(frames, height, width, 3)`.
    seconds: of the pipeline's call.
    peak: bytes, or None where they cannot be measured: on an accelerator all that were allocated, weights included;
        on a CPU those by which the process grew.
    is_first: of the model's clips of this size, which takes longer and more memory than those after it.
    """

    frames: np.ndarray
    seconds: float
    num_steps: int
    peak: int | None
    is_first: bool


@dataclass(frozen=True)
class OpenedModel:
    """A pipeline on its device. `OpenedModel.open` makes it.

    Args:
        options: of each call, unless it gives others: by diffusers' names, with `num_frames`, `height` and `width`.
        memory: bytes that may be used; by default all that are free.
    """

    name: str
    pipe: Any
    family: Family | None
    device: str
    saving: MemorySaving
    options: Mapping[str, Any]
    memory: int | None = None
    _counted: dict[tuple[int, int, int], int] = field(default_factory=dict, repr=False)
    _made: set[tuple[int, ...]] = field(default_factory=set, repr=False)  # sizes

    @classmethod
    def open(cls, model: ModelToOpen, options: Mapping[str, Any] | None = None) -> "OpenedModel":
        """Open a pipeline and move it to its device, with what saves enough memory for a clip of its own size.

        Args:
            options: of its calls, where they are not to be the pipeline's own. Steps are also those that the model is
                known to be made for.

        Raises:
            ValueError, OSError: if it cannot be opened, makes no videos of a length, or does not fit.
        """
        device, family = choose_device(model.device), recognise(model.name, model.revision)
        pipe = open_pipeline(
            model.name,
            family,
            choose_dtype(model.dtype, device, family),
            variant=model.variant,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
        )
        parameters = call_parameters(type(pipe))
        if "num_frames" not in parameters:
            raise ValueError(f"{type(pipe).__name__} makes no videos of a length: it takes no `num_frames`.")
        pipe.set_progress_bar_config(disable=True)
        call = chosen_options(options or {}, type(pipe))
        if (steps := steps_made_for(pipe)) is not None:
            call.setdefault("num_inference_steps", steps)
        frames = call.get("num_frames") or parameters["num_frames"].default or pipe.unet.config.num_frames
        height, width = video_size(pipe, call.get("height"), call.get("width"))
        call |= {"num_frames": frames, "height": height, "width": width}
        memory = None if model.memory is None else round(model.memory * GIB)
        need = count_call(pipe, family, call, on_cpu=device == "cpu")
        free = free_bytes(device) if memory is None else memory
        saving = choose_saving(need, free, can_offload=device != "cpu")
        call |= save_memory(pipe, saving, device)
        path = Path(model.name)
        name = path.resolve().name if path.exists() else model.name  # a local folder's path is private
        return cls(name, pipe, family, device, saving, call, memory)

    @property
    def takes_image(self) -> bool:
        return "image" in call_parameters(type(self.pipe))

    @property
    def needs_image(self) -> bool:
        image = call_parameters(type(self.pipe)).get("image")
        return image is not None and image.default is image.empty

    @property
    def takes_prompt(self) -> bool:
        return "prompt" in call_parameters(type(self.pipe))

    @property
    def num_steps(self) -> int | None:
        """Denoising steps where none are given, or None for those of the schedule itself."""
        default = call_parameters(type(self.pipe))["num_inference_steps"].default
        return self.options.get("num_inference_steps") or default

    @property
    def fps(self) -> float:
        return file_fps(type(self.pipe), None)

    @property
    def weight_bytes(self) -> int:
        networks = [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]
        return sum(p.numel() * p.element_size() for network in networks for p in network.parameters())

    def need(self, num_frames: int, height: int, width: int) -> int:
        """Bytes that a clip takes beyond those in use now; counted once for each size."""
        size = num_frames, height, width
        if size not in self._counted:
            call = {**self.options, **dict(zip(SIZE, size, strict=True))}
            # Weights that stay on the device are no longer free there.
            need = count_call(self.pipe, self.family, call, on_cpu=not self.saving.offload)
            self._counted[size] = peak_bytes(need, self.saving)
        return self._counted[size]

    def check_fits(self, num_frames: int, height: int, width: int) -> None:
        """Raises `ValueError` for a clip that does not fit into memory; the message says which would."""
        free = round(SHARE * (free_bytes(self.device) if self.memory is None else self.memory))
        if self.need(num_frames, height, width) <= free:
            return
        step = math.gcd(self.options["height"], self.options["width"], 64)

        def scaled(part: int) -> tuple[int, int]:
            """Height and width of 64ths of the sides, in steps that the model's own are multiples of."""
            return height * part // 64 // step * step, width * part // 64 // step * step

        fewer = _large_that_fits(1, num_frames, 1, lambda n: self.need(n, height, width), free)
        least = -(-64 * step // min(height, width))
        part = _large_that_fits(least, 64, 2, lambda part: self.need(num_frames, *scaled(part)), free)
        fitting = [f"{fewer} frame{'s' * (fewer > 1)} of that size"] if fewer else []
        if part:
            fitting.append(f"{num_frames} frames of {scaled(part)[1]} x {scaled(part)[0]}")
        advice = f"What fits: {', or '.join(fitting)}." if fitting else "Ask for fewer frames and fewer pixels."
        needed = self.need(num_frames, height, width) / GIB
        raise ValueError(
            f"{num_frames} frames of {width} x {height} pixels need about {needed:.1f} GiB, and {free / GIB:.1f} GiB"
            f" can be used. {advice}"
        )

    def make(
        self,
        seed: int,
        options: Mapping[str, Any],
        image: Image.Image | None = None,
        prompt: str | None = None,
        stop: threading.Event | None = None,
        progress: Callable[[int, int], object] = lambda step, num_steps: None,
    ) -> MadeClip:
        """A clip, once no other is being made.

        Args:
            options: of the call, by diffusers' names.
            stop: ends the work after the step that runs; a pipeline without `callback_on_step_end` ends with its clip.
            progress: is told the steps that are done, and how many there are.

        Raises:
            ClipStoppedError: if `stop` was set. The memory of what was begun is free again.
            ValueError: if the clip does not fit into memory, or the pipeline refuses what it is given.
        """
        stop = stop or threading.Event()
        call = {**self.options, **options}

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            progress(step + 1, len(pipe.scheduler.timesteps))
            if stop.is_set():
                raise ClipStoppedError
            return {}

        if "callback_on_step_end" in call_parameters(type(self.pipe)):
            call["callback_on_step_end"] = after_step
        made: list[np.ndarray] = []
        with _RUNNING:
            if stop.is_set():
                raise ClipStoppedError
            self.check_fits(*(call[name] for name in SIZE))
            start = time.perf_counter()
            try:
                peak = self._peak_of(lambda: made.append(make_clip(self.pipe, seed, call, image, prompt)))
            finally:
                if self.saving.offload:
                    self.pipe.maybe_free_model_hooks()  # a call that was given up has left a part on the device
                if self.device != "cpu":
                    torch.get_device_module(self.device).empty_cache()  # so that what is free is seen to be free
            seconds = time.perf_counter() - start
            is_first = made[0].shape not in self._made
            self._made.add(made[0].shape)
        return MadeClip(made[0], seconds, len(self.pipe.scheduler.timesteps), peak, is_first)

    def _peak_of(self, work: Callable[[], object]) -> int | None:
        kind = torch.device(self.device).type
        if kind == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            work()
            return torch.cuda.max_memory_allocated(self.device)
        if kind == "cpu" and os.access("/proc/self/clear_refs", os.W_OK):
            return grown_by(work)
        work()
        return None


def _large_that_fits(least: int, above: int, power: int, need: Callable[[int], int], free: int) -> int:
    """A number from `least` to below `above` that fits, or 0; close to the largest where `need` grows as that power.

    A count takes a second, so that a bisection would take many.
    """
    if least >= above or need(least) > free:
        return 0
    share = (free - need(least)) / (need(above) - need(least))
    number = int((least**power + share * (above**power - least**power)) ** (1 / power))
    while number > least and need(number) > free:
        number = max(least, number * 9 // 10)
    return number
