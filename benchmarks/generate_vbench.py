#!/usr/bin/env python
"""Generate the videos that VBench scores, from its own prompt list, with any pipeline of a family that is known here.

    accelerate launch benchmarks/generate_vbench.py --pretrained_model_name_or_path vdmini-t2v \
        --prompts VBench/vbench/VBench_full_info.json --output_dir outputs/vbench_t2v --num_inference_steps 16
    accelerate launch benchmarks/generate_vbench.py --pretrained_model_name_or_path vdmini-i2v \
        --prompts VBench/vbench2_beta_i2v/vbench2_i2v_full_info.json \
        --image_dir VBench/vbench2_beta_i2v/data/crop/16-9 --output_dir outputs/vbench_i2v

Videos go to `<output_dir>/videos` by VBench's names, `{prompt}-{index}.mp4`: five of a prompt, and 25 of those for
text to video's `temporal_flickering`. Each process makes every n-th of those that are missing; the same command goes
on where the last one stopped. A video's seed depends on `--seed`, its prompt and its index alone. VBench itself is run
elsewhere (`vbench evaluate`, `evaluate_i2v.py`), and `benchmarks/score_vbench.py` makes totals of what it writes.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageOps
from tqdm import tqdm

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.data.images import read_image
from vdmini_diffusers.evaluation.vbench_folder import keep_video, open_generation, unfinished_videos
from vdmini_diffusers.evaluation.vbench_videos import Prompt, read_vbench_prompts, wanted_videos
from vdmini_diffusers.families import find_family
from vdmini_diffusers.generation.pipeline_call import (
    call_parameters,
    chosen_options,
    few_steps_note,
    file_fps,
    video_size,
)
from vdmini_diffusers.serialization.atomic import check_apart
from vdmini_diffusers.serialization.hashes import sha256_of


MAX_ASPECT_ERROR = 0.03  # VBench's pictures of 7-4 are 1.6 % off 16-9


@dataclass
class Arguments:
    pretrained_model_name_or_path: str = field(metadata={"help": "A pipeline's folder, or its id on the Hub."})
    prompts: Path = field(metadata={"help": "VBench's full info (.json), or a text file with a prompt a line."})
    output_dir: Path = field(metadata={"help": "Where the videos go."})
    image_dir: Path | None = field(
        default=None, metadata={"help": "Image to video: VBench's pictures, of the videos' aspect ratio."}
    )
    dimensions: list[str] = field(default_factory=list, metadata={"help": "VBench's dimensions; default: all."})
    variant: str | None = field(default=None, metadata={"help": "Variant of the weight files, e.g. fp16."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    dtype: Literal["float16", "bfloat16", "float32"] = field(default="float16", metadata={"help": "Precision."})
    num_inference_steps: int | None = field(
        default=None, metadata={"help": "Default: the pipeline's, for this and the next."}
    )
    guidance_scale: float | None = field(default=None, metadata={"help": "Guidance, for text to video."})
    min_guidance_scale: float | None = field(default=None, metadata={"help": "Guidance of the first frame, for SVD."})
    max_guidance_scale: float | None = field(default=None, metadata={"help": "Guidance of the last frame, for SVD."})
    num_frames: int | None = field(default=None, metadata={"help": "Frames in a video."})
    height: int | None = field(default=None, metadata={"help": "Pixels."})
    width: int | None = field(default=None, metadata={"help": "Pixels."})
    fps: int | None = field(default=None, metadata={"help": "Frames per second, which condition some models as well."})
    decode_chunk_size: int | None = field(default=None, metadata={"help": "Frames that the VAE decodes at once."})
    seed: int = field(default=0, metadata={"help": "From which the seeds of all videos follow."})


# Passed to the pipeline where they are given.
OPTIONS = (
    *("num_inference_steps", "guidance_scale", "min_guidance_scale", "max_guidance_scale"),
    *("num_frames", "height", "width", "fps", "decode_chunk_size"),
)


def picture(args: Arguments, prompt: Prompt, size: tuple[int, int]) -> Image.Image:
    """A prompt's first frame, in the videos' size: height and width."""
    assert args.image_dir is not None and prompt.image_name is not None
    image, (height, width) = read_image(args.image_dir / prompt.image_name), size
    aspect = image.width / image.height
    if abs(aspect * height / width - 1) > MAX_ASPECT_ERROR:
        raise ValueError(
            f"{args.image_dir / prompt.image_name} is {image.width} x {image.height} pixels, {aspect:.3f} times as"
            f" wide as high, and the videos are {width} x {height}, {width / height:.3f} times: give VBench's pictures"
            " of the videos' ratio (crop/16-9 and others; its crop_to_diff_ratio.py makes any)."
        )
    return ImageOps.fit(image, (width, height))


def check_pictures(args: Arguments, prompts: list[Prompt], takes_image: bool) -> None:
    """Raises `ValueError` unless there are pictures just where the pipeline takes them."""
    named = [prompt for prompt in prompts if prompt.image_name is not None]
    if not takes_image:
        if named or args.image_dir is not None:
            raise ValueError("The pipeline takes no image: use VBench-T2V's prompt list, without --image_dir.")
        return
    if len(named) < len(prompts) or args.image_dir is None:
        raise ValueError(
            "The pipeline starts from an image: use VBench-I2V's vbench2_i2v_full_info.json (its newest version, in"
            " which all entries have an `image_name`) and give --image_dir."
        )
    missing = sorted({str(p.image_name) for p in named if not (args.image_dir / str(p.image_name)).is_file()})
    if missing:
        raise ValueError(f"{args.image_dir} lacks {len(missing)} pictures of the list, first {missing[0]!r}.")


def weights_of(name: str, component: str) -> dict[str, str] | None:
    """Hashes of a local model's weight files: another model may come to stand in the same folder. None for the Hub."""
    files = sorted((Path(name) / component).glob("*.safetensors"))
    return {file.name: sha256_of(file) for file in files} or None


def pictures_of(args: Arguments, prompts: list[Prompt]) -> dict[str, str]:
    """Hashes of the list's pictures, by name."""
    assert args.image_dir is not None  # `check_pictures` has seen to it
    names = sorted({str(prompt.image_name) for prompt in prompts})
    return {name: sha256_of(args.image_dir / name) for name in names if (args.image_dir / name).is_file()}


@torch.no_grad()
def main(args: Arguments) -> None:
    state = Accelerator()
    prompts = read_vbench_prompts(args.prompts, args.dimensions)
    family = find_family(args.pretrained_model_name_or_path, args.revision)
    parameters = call_parameters(family.pipeline)
    options = chosen_options({name: getattr(args, name) for name in OPTIONS}, family.pipeline)
    takes_image = "image" in parameters
    check_pictures(args, prompts, takes_image)
    check_apart(args.output_dir, {"the pipeline": args.pretrained_model_name_or_path, "the pictures": args.image_dir})
    settings = {
        "pipeline": args.pretrained_model_name_or_path,
        **{name: getattr(args, name) for name in ("revision", "variant", "dtype", "seed")},
        **{name: getattr(args, name) for name in OPTIONS},
        "prompts_sha256": sha256_of(args.prompts),
        "weights_sha256": weights_of(args.pretrained_model_name_or_path, family.denoiser),
        "pictures_sha256": pictures_of(args, read_vbench_prompts(args.prompts)) if takes_image else None,
    }
    with state.main_process_first():
        folder = open_generation(args.output_dir, settings)
    # Videos of other dimensions may be there from an earlier run.
    of_all_dimensions = set(unfinished_videos(folder, wanted_videos(read_vbench_prompts(args.prompts), args.seed)))
    wanted = wanted_videos(prompts, args.seed)
    missing = [video for video in wanted if video in of_all_dimensions]
    state.wait_for_everyone()  # before any process adds a video to what the others look through
    state.print(f"{len(wanted) - len(missing)} of {len(wanted)} videos are there.")
    mine = missing[state.process_index :: state.num_processes]
    if not mine:
        return
    pipe = family.pipeline.from_pretrained(
        args.pretrained_model_name_or_path,
        variant=args.variant,
        revision=args.revision,
        dtype=getattr(torch, args.dtype),
    ).to(state.device)
    pipe.set_progress_bar_config(disable=True)
    if note := few_steps_note(pipe, args.num_inference_steps):
        state.print(f"Note: {note}")
    fps = file_fps(family.pipeline, args.fps)
    start = time.perf_counter()
    for video in tqdm(mine, disable=not state.is_main_process, unit="video"):
        given: dict[str, Any] = {"prompt": video.prompt.text} if "prompt" in parameters else {}
        if takes_image:
            given["image"] = picture(args, video.prompt, video_size(pipe, args.height, args.width))
        # The global generator, because some schedulers draw from it (AnimateLCM-SVD's).
        generator = torch.manual_seed(video.seed)
        frames = np.asarray(pipe(**given, **options, generator=generator, output_type="np").frames[0])
        if not np.isfinite(frames).all():
            raise ValueError(
                f"The pipeline made values that are not finite of {video.prompt.text!r}: give another --dtype, such as"
                f" bfloat16 instead of {args.dtype}."
            )
        keep_video(folder, video.name, frames, fps)
    if state.is_main_process:
        print(f"{len(mine)} videos by this process, {(time.perf_counter() - start) / len(mine):.2f} s each.")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
