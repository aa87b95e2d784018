"""Make the clips that are asked for: everything cheap is checked first, then the model is opened, then it runs."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.utils import logging as diffusers_logging
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from vdmini_diffusers.data.images import read_image
from vdmini_diffusers.families import Family
from vdmini_diffusers.generation.clip_files import check_writable, write_clip
from vdmini_diffusers.generation.jobs import Job, Request, unfinished
from vdmini_diffusers.generation.memory import GIB, choose_saving, free_bytes, save_memory
from vdmini_diffusers.generation.memory_count import count_call
from vdmini_diffusers.generation.opening import choose_device, choose_dtype, open_pipeline, recognise
from vdmini_diffusers.generation.pipeline_call import (
    call_parameters,
    chosen_options,
    few_steps_note,
    file_fps,
    make_clip,
    video_size,
)
from vdmini_diffusers.version import __version__


ENLARGED, CUT = 4, 0.5  # a picture scaled up that many times, or that share of it cut away, is worth a word

Say = Callable[[str], object]


@dataclass(frozen=True)
class ModelToOpen:
    """A pipeline, and how it is opened: see `open_pipeline`, `choose_device` and `choose_dtype`.

    Args:
        memory: GiB that may be used; by default all that are free.
        note: what a user is told before it is opened.
    """

    name: str
    variant: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    device: str | None = None
    dtype: str | None = None
    memory: float | None = None
    note: str | None = None


def produce(
    model: ModelToOpen, request: Request, options: Mapping[str, Any], overwrite: bool = False, say: Say = print
) -> dict[Path, str]:
    """Make the clips that are not there yet, one file each.

    Args:
        options: of the pipeline's call, by diffusers' names; None stands for the pipeline's own.
        say: takes a line for the user.

    Returns:
        what was wrong with pictures that could not be read, by file. The other clips are there.

    Raises:
        ValueError, OSError: if the model, an option or a single picture is not what it should be, or memory does not
            suffice; before the first clip is begun.
        ImportError: without PyAV, for an mp4 file.
    """
    jobs, alone = request.jobs, request.folder is None
    device, family = choose_device(model.device), recognise(model.name, model.revision)
    cls, fps = None if family is None else family.pipeline, options.get("fps")
    if cls is not None:
        _check_inputs(cls, jobs)
        chosen_options(options, cls)
    settings = _settings(model, options)
    todo = unfinished(request, settings, overwrite)
    if not alone:
        say(f"{len(jobs) - len(todo)} of {len(jobs)} clips are there.")
    if not todo:
        return {}
    check_writable(todo[0].output)
    if alone and todo[0].image is not None:
        read_image(todo[0].image)  # before the model is, which takes longer
    if model.note is not None:
        say(model.note)
    dtype = choose_dtype(model.dtype, device, family)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipe = open_pipeline(
        model.name,
        family,
        dtype,
        variant=model.variant,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
    )
    cls = type(pipe)
    _check_inputs(cls, jobs)
    call = chosen_options(options, cls)
    if note := few_steps_note(pipe, options.get("num_inference_steps")):
        say(note)
    call["height"], call["width"] = video_size(pipe, options.get("height"), options.get("width"))
    call |= _fit_into_memory(pipe, family, call, device, model.memory, say)
    pipe.set_progress_bar_config(disable=not alone, leave=False)
    wrong: dict[Path, str] = {}
    for job in tqdm(todo, "clips", unit="clip", disable=alone):
        try:
            image = None if job.image is None else read_image(job.image)
        except ValueError as error:
            if alone:
                raise
            wrong[Path(str(job.image))] = str(error)
            continue
        if image is not None and alone:
            say_what_fitting_does(image.size, (call["width"], call["height"]), say)
        start = time.perf_counter()
        frames = make_clip(pipe, job.seed, call, image, job.prompt)
        rate, num_steps = file_fps(cls, fps), len(pipe.scheduler.timesteps)
        write_clip(frames, job.output, rate, {**job.record(settings), "steps": num_steps})
        if alone:
            say(
                f"{job.output}: {len(frames)} frame{'s' * (len(frames) > 1)} of {frames.shape[2]} x"
                f" {frames.shape[1]}, {rate:g} a second;"
                f" seed {job.seed}, {num_steps} step{'s' * (num_steps > 1)}, {time.perf_counter() - start:.1f} s"
            )
    return wrong


def say_what_fitting_does(size: tuple[int, int], wanted: tuple[int, int], say: Say) -> None:
    """Say so where a picture is enlarged a lot, or a lot of it is cut away. Sizes are width and height."""
    (width, height), (wide, high) = size, wanted
    scale = max(wide / width, high / height)
    if scale > ENLARGED:
        say(f"The picture has {width} x {height} pixels and is enlarged {scale:.0f} times.")
    cut = 1 - wide * high / (scale * width * scale * height)
    if cut > CUT:
        say(
            f"{int(100 * cut)} % of the picture lies outside the video's {wide} x {high} pixels and is cut off:"
            " --width and --height give the video another shape."
        )


def _check_inputs(cls: type[Any], jobs: Sequence[Job]) -> None:
    """Raises `ValueError` unless the pipeline makes videos of what the jobs give."""
    parameters = call_parameters(cls)
    if "num_frames" not in parameters:
        raise ValueError(f"{cls.__name__} is no pipeline that makes videos of a length: it takes no `num_frames`.")
    with_image, with_prompt = jobs[0].image is not None, jobs[0].prompt is not None
    if with_image and "image" not in parameters:
        raise ValueError(f"{cls.__name__} takes no picture: leave --image out, or give another --model.")
    if with_prompt and "prompt" not in parameters:
        raise ValueError(f"{cls.__name__} takes no prompt: leave --prompt out, or give another --model.")
    needs_image = "image" in parameters and parameters["image"].default is parameters["image"].empty
    if needs_image and not with_image:
        raise ValueError(f"{cls.__name__} makes videos of pictures: give one with --image.")


def _settings(model: ModelToOpen, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the files of all jobs say, besides each job's own. A local folder's path is private, its name is not."""
    path = Path(model.name)
    return {
        "made_by": f"vdmini_diffusers {__version__}",
        "model": path.resolve().name if path.exists() else model.name,
        "revision": model.revision,
        **options,
    }


def _fit_into_memory(
    pipe: Any, family: Family | None, call: Mapping[str, Any], device: str, memory: float | None, say: Say
) -> dict[str, int]:
    """Move the pipeline to the device with what saves enough memory, and say so; what its calls take for that."""
    on_cpu = device == "cpu"
    need = count_call(pipe, family, call, on_cpu)
    free = free_bytes(device) if memory is None else round(memory * GIB)
    saving = choose_saving(need, free, can_offload=not on_cpu)
    dtype, known_by = str(pipe.dtype).removeprefix("torch."), "free" if memory is None else "allowed"
    say(f"On {device}, {free / GIB:.1f} GiB {known_by}, {dtype}: {saving}.")
    return save_memory(pipe, saving, device)
