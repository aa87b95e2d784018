"""`vdmini generate`: from a picture or a prompt to a clip."""

import math
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import BadParameter, Option, echo


class Precision(StrEnum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def finite(value: float | None) -> float | None:
    """For numbers, of which typer takes nan and inf within any bounds."""
    if value is not None and not math.isfinite(value):
        raise BadParameter(f"{value} is no finite number.")
    return value


say = partial(echo, err=True)

INPUT, OUTPUT, VIDEO, MODEL, MACHINE = "Input", "Output", "Video", "Model", "Machine"


def generate(
    image: Annotated[
        Path | None,
        Option(
            help="Picture to animate, or a folder of pictures. Any kind; cut to the video's shape.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        Option(help="What the video shows, or a .txt file with a prompt a line.", rich_help_panel=INPUT),
    ] = None,
    out: Annotated[
        Path | None,
        Option(
            help="File .mp4, .gif or .png (a sheet of all frames); for several clips a folder. Default: the input's"
            " name, .mp4.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace what is there.", rich_help_panel=OUTPUT)] = False,
    frames: Annotated[int | None, Option(min=1, help="Number of frames.", rich_help_panel=VIDEO)] = None,
    height: Annotated[int | None, Option(min=1, help="Pixels.", rich_help_panel=VIDEO)] = None,
    width: Annotated[int | None, Option(min=1, help="Pixels.", rich_help_panel=VIDEO)] = None,
    fps: Annotated[
        float | None, Option(min=1, max=1000, callback=finite, help="Frames per second.", rich_help_panel=VIDEO)
    ] = None,
    steps: Annotated[int | None, Option(min=1, help="Denoising steps.", rich_help_panel=VIDEO)] = None,
    guidance_scale: Annotated[
        float | None, Option(min=0, callback=finite, help="Classifier-free guidance.", rich_help_panel=VIDEO)
    ] = None,
    seed: Annotated[
        int,
        Option(
            min=0,
            max=2**32 - 1,
            help="Seed of the noise. Several clips have seeds from it and their names.",
            rich_help_panel=VIDEO,
        ),
    ] = 0,
    model: Annotated[
        str | None, Option(help="Folder or Hub id of a pipeline. Default: the demo model.", rich_help_panel=MODEL)
    ] = None,
    variant: Annotated[
        str | None, Option(help="Variant of the weight files, e.g. fp16.", rich_help_panel=MODEL)
    ] = None,
    revision: Annotated[str | None, Option(help="Branch, tag or commit.", rich_help_panel=MODEL)] = None,
    trust_remote_code: Annotated[
        bool,
        Option(
            "--trust-remote-code", help="Run code that the model brings. Our models need none.", rich_help_panel=MODEL
        ),
    ] = False,
    device: Annotated[
        str | None, Option(help="cuda, mps, xpu, cpu. Default: the fastest here.", rich_help_panel=MACHINE)
    ] = None,
    dtype: Annotated[
        Precision | None, Option(help="Precision. Default: what suits the device.", rich_help_panel=MACHINE)
    ] = None,
    memory: Annotated[
        float | None,
        Option(min=0, callback=finite, help="GiB that may be used. Default: what is free.", rich_help_panel=MACHINE),
    ] = None,
) -> None:
    """Make a video from a picture or a prompt.

    Example: vdmini generate --image photo.jpg --out clip.mp4 --seed 7

    Options left out are the model's own. A folder of pictures becomes a folder of clips, and the same command goes on
    where it was stopped.
    """
    from vdmini_diffusers.generation.jobs import refuse_existing, request_of

    request = request_of(image, prompt, out, seed)
    refuse_existing(request, overwrite)
    # What follows imports diffusers, which takes seconds.
    from vdmini_diffusers.demo.students import demo_model
    from vdmini_diffusers.generation.production import ModelToOpen, produce

    options = {
        "num_frames": frames,
        "height": height,
        "width": width,
        "fps": fps,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
    }
    note = None
    if model is None:
        demo = demo_model("text" if image is None else "image")
        note = demo.note
        options |= {name: value for name, value in demo.defaults.items() if options[name] is None}
        model = str(demo.folder)
    opened = ModelToOpen(model, variant, revision, trust_remote_code, device, dtype, memory, note)
    wrong = produce(opened, request, options, overwrite, say)
    num_jobs = len(request.jobs)
    if request.folder is not None:
        say(f"{num_jobs - len(wrong)} of {num_jobs} clips are in {request.folder}; each file says its seed.")
    if wrong:
        raise ValueError(f"{len(wrong)} of {num_jobs} pictures could not be read: {' '.join(wrong.values())}")
