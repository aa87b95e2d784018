"""The command line of `conversion/measure_block_importance.py`, and its work, which `vdmini score` shares."""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from vdmini_diffusers.analysis.block_influence import block_influence
from vdmini_diffusers.analysis.calibration import reconstruction_losses
from vdmini_diffusers.analysis.clips import enough_videos, read_clips, read_prompts
from vdmini_diffusers.analysis.generation import FixedVideos, frame_size
from vdmini_diffusers.analysis.importance import ImportanceTable, Measurement, measure_importance, select_parts
from vdmini_diffusers.analysis.parts import MEASURED_KINDS, plain_config, removable_parts
from vdmini_diffusers.analysis.pictures import bars, png, sheet
from vdmini_diffusers.analysis.scores import standard_scores
from vdmini_diffusers.data.latents import PrecomputedLatents
from vdmini_diffusers.evaluation.detectors import load_detector
from vdmini_diffusers.families import Family, find_family
from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.generation.opening import open_pipeline
from vdmini_diffusers.generation.pipeline_call import chosen_options
from vdmini_diffusers.pruning.plans import PruningPlan
from vdmini_diffusers.pruning.presets import find_plan
from vdmini_diffusers.serialization.atomic import check_apart, write_file
from vdmini_diffusers.serialization.hashes import sha256_of


# What scores do not depend on, or whose content is noted instead.
FREE = ("output_dir", "offload", "parts", "plans", "block_influence", "precomputed_data_dir")


@dataclass
class ImportanceArguments:
    pretrained_model_name_or_path: str = field(metadata={"help": "A pipeline: a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Folder of the results; one with results of the same goes on."})
    real_videos: str | None = field(
        default=None,
        metadata={
            "help": "Folder of videos. Image to video starts from their first frames; with --fvd, as many others of"
            " them are what is compared with."
        },
    )
    prompts: str | None = field(default=None, metadata={"help": "Text file with one prompt a line."})
    num_videos: int = field(default=64, metadata={"help": "Videos made without each part; the paper makes 1,200."})
    seed: int = field(default=0, metadata={"help": "Video i has the noise of seed + i."})
    component: str | None = field(
        default=None, metadata={"help": "The denoiser, where a pipeline has two: transformer, transformer_2."}
    )
    parts: list[str] = field(
        default_factory=lambda: list(MEASURED_KINDS),
        metadata={"help": f"Names of parts (D.1.R.0), or kinds of parts: {', '.join(MEASURED_KINDS)}."},
    )
    block_influence: bool = field(
        default=False,
        metadata={"help": "Also how far each block, half or stream turns what it is given, in block_influence.json."},
    )
    precomputed_data_dir: str | None = field(
        default=None,
        metadata={"help": "Latents by training/precompute_latents.py: score the loss on the first clips too (SVD)."},
    )
    plans: list[str] = field(
        default_factory=list,
        metadata={"help": "Plans, by name or JSON file, whose students are scored as well, without training."},
    )
    fvd: bool = field(default=False, metadata={"help": "Score by I3D as well: FVD, KVD and the features' cosine."})
    num_frames: int | None = field(default=None, metadata={"help": "By default the pipeline's."})
    height: int | None = field(
        default=None, metadata={"help": "Height of videos that are made; by default the model's."}
    )
    width: int | None = field(default=None, metadata={"help": "Likewise."})
    fps: int = field(default=7, metadata={"help": "Frame rate at which real videos are read."})
    num_inference_steps: int | None = field(default=None, metadata={"help": "By default the pipeline's."})
    guidance_scale: float | None = field(
        default=None, metadata={"help": "Likewise; `max_guidance_scale` of image to video."}
    )
    score_height: int | None = field(
        default=None, metadata={"help": "Videos are resized to this before they are scored; the paper's is 240."}
    )
    score_width: int | None = field(default=None, metadata={"help": "Likewise; the paper's is 320."})
    variant: str | None = field(default=None, metadata={"help": "Variant of the weights, such as fp16."})
    revision: str | None = field(default=None, metadata={"help": "Revision of a repository on the Hub."})
    dtype: Literal["float32", "float16", "bfloat16"] = field(
        default="float32", metadata={"help": "Weights' precision."}
    )
    offload: Literal["none", "model", "sequential"] = field(
        default="none", metadata={"help": "For models larger than the GPU: diffusers' CPU offloading."}
    )

    def __post_init__(self) -> None:
        if self.num_videos < 2:
            raise ValueError(f"`num_videos` is 2 at least, as scores compare sets of videos; got {self.num_videos}.")
        if self.num_frames is not None and self.num_frames < 3:
            raise ValueError(f"`num_frames` is 3 at least, as scores compare motion; got {self.num_frames}.")
        for one, other in (("height", "width"), ("score_height", "score_width")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"`{one}` and `{other}` go together.")


def importance_command(args: ImportanceArguments) -> None:
    """Measure the importance of a denoiser's parts, and write tables and plots."""
    check_apart(args.output_dir, {"the model": args.pretrained_model_name_or_path, "the videos": args.real_videos})
    family = find_family(args.pretrained_model_name_or_path, args.revision)
    component = args.component or family.denoiser
    if component not in family.denoisers:
        raise ValueError(f"`component` is one of {', '.join(family.denoisers)} for {family.name}, not {component!r}.")
    _check_inputs(args, family)
    state = Accelerator().state
    detector = load_detector("i3d", device=state.device) if args.fvd else None
    name, dtype = args.pretrained_model_name_or_path, getattr(torch, args.dtype)
    pipe = open_pipeline(name, family, dtype, variant=args.variant, revision=args.revision)
    _place(pipe, args.offload, state.device)
    denoiser = getattr(pipe, component)
    if denoiser is None:
        raise ValueError(f"{args.pretrained_model_name_or_path} has no {component}.")
    generate, real = _videos_of(args, pipe, family.pipeline_tag == "image-to-video")
    parts: dict[str, Any] = {**select_parts(removable_parts(denoiser), args.parts), **_plans_of(args, denoiser)}
    settings = {name: value for name, value in vars(args).items() if name not in FREE}
    losses = _losses_of(args, lambda: getattr(pipe, component), state.device)
    if args.precomputed_data_dir is not None:
        settings["latents_sha256"] = sha256_of(Path(args.precomputed_data_dir) / "manifest.json")
    settings["inputs_sha256"] = digest_of_inputs([*generate.inputs, {"real": real}])
    if detector is not None:
        settings["detector_sha256"] = detector.sha256
    measurement = Measurement(
        denoiser=denoiser,
        generate=generate,
        scores=standard_scores(detector, real),
        losses=losses,
        parts=parts,
        use=lambda other: setattr(pipe, component, other),
        student_class=family.denoisers[component].student,
        detector=detector,
        settings=settings,
        num_broken=lambda: generate.num_broken,
    )
    folder = Path(args.output_dir)
    print(f"{len(parts)} parts, and {args.num_videos} videos without each.", file=sys.stderr)
    table = measure_importance(measurement, folder, state.process_index, state.num_processes)
    if table is None:
        print("Other processes are still at work; the last of them writes the tables.")
        return
    _draw(table, folder)
    if args.block_influence:
        _write_influence(block_influence(denoiser, generate), folder)
    for note in table.notes:
        print(note, file=sys.stderr)
    print(f"{len(table.parts)} parts, {len(table.unpruned)} scores: {folder}/importance.csv")


def _losses_of(
    args: ImportanceArguments, denoiser: Callable[[], Any], device: torch.device
) -> dict[str, Callable[[], float]]:
    """The training loss on the first clips of a folder of latents, if there is one."""
    if args.precomputed_data_dir is None:
        return {}
    clips = PrecomputedLatents(args.precomputed_data_dir)
    losses = reconstruction_losses(SVD, clips, args.num_videos, device=device)
    return {"reconstruction": lambda: float(np.mean([float(loss) for loss in losses(denoiser())]))}


def _plans_of(args: ImportanceArguments, denoiser: Any) -> dict[str, PruningPlan]:
    """By name, which are different ones. Raises `PruningPlanError` for plans that do not fit the denoiser."""
    if args.plans and args.offload != "none":
        raise ValueError("`--plans` are scored without `--offload`: students share the weights of the model.")
    plans = [find_plan(plan).for_teacher(type(denoiser).__name__, plain_config(denoiser)) for plan in args.plans]
    if len({plan.name for plan in plans}) < len(plans):
        raise ValueError(f"`--plans` have names of their own, not {', '.join(plan.name for plan in plans)}.")
    for plan in plans:
        plan.student_config({"_class_name": type(denoiser).__name__, **plain_config(denoiser)})
    return {plan.name: plan for plan in plans}


def _write_influence(influence: Mapping[str, float], folder: Path) -> None:
    write_file(folder / "block_influence.json", (json.dumps(influence, indent=1) + "\n").encode())
    title = "Block influence: 1 - cosine of what goes in and what comes out"
    write_file(folder / "block_influence.png", png(bars(influence, title)))


def _place(pipe: Any, offload: str, device: torch.device) -> None:
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)


def _check_inputs(args: ImportanceArguments, family: Family) -> None:
    """Raises `ValueError` if there is not enough to make videos from, before the pipeline is loaded."""
    task = family.pipeline_tag
    if task not in ("image-to-video", "text-to-video"):
        raise ValueError(f"Importance is measured of image-to-video and text-to-video pipelines, not of {task}.")
    from_image = task == "image-to-video"
    if args.precomputed_data_dir is not None and family is not SVD:
        raise ValueError(f"`--precomputed_data_dir` is for U-Nets like SVD's, not for {family.name}.")
    if from_image or args.fvd:
        if args.real_videos is None:
            uses = ["image to video starts from them"] * from_image + ["FVD compares with them"] * args.fvd
            raise ValueError(f"`--real_videos` is needed: {', and '.join(uses)}.")
        enough_videos(args.real_videos, args.num_videos * (from_image + args.fvd))
    if not from_image and args.prompts is None:
        raise ValueError("`--prompts` is needed for text to video.")
    if args.prompts is not None:
        read_prompts(args.prompts, args.num_videos)


def _videos_of(args: ImportanceArguments, pipe: Any, from_image: bool) -> tuple[FixedVideos, Any]:
    """The videos to make, and real clips for FVD, or None."""
    names = ("num_frames", "height", "width", "num_inference_steps", "guidance_scale")
    settings = chosen_options({name: getattr(args, name) for name in names}, type(pipe))
    inputs: list[dict[str, Any]] = [{} for _ in range(args.num_videos)]
    if from_image:
        height, width = (args.height, args.width) if args.height and args.width else frame_size(pipe)
        settings |= {"height": height, "width": width}
        images = read_clips(str(args.real_videos), args.num_videos, 1, args.fps, height, width, args.seed)[:, 0]
        inputs = [{"image": Image.fromarray(image)} for image in images]
    if args.prompts is not None:
        prompts = read_prompts(args.prompts, args.num_videos)
        inputs = [{**given, "prompt": prompt} for given, prompt in zip(inputs, prompts, strict=True)]
    size = (args.score_height, args.score_width) if args.score_height and args.score_width else None
    generate = FixedVideos(pipe, inputs, args.seed, settings, size)
    if not args.fvd:
        return generate, None
    _, num_frames, height, width, _ = generate(1).shape
    first = args.num_videos if from_image else 0
    return generate, read_clips(
        str(args.real_videos), args.num_videos, num_frames, args.fps, height, width, args.seed, first
    )


def digest_of_inputs(inputs: Sequence[Mapping[str, Any]]) -> str:
    """Tell inputs apart by prompts and pixels: other files under the same path are other inputs."""
    digest = hashlib.sha256()
    for name, value in ((name, value) for given in inputs for name, value in given.items()):
        content = value.encode() if isinstance(value, str) else b"" if value is None else np.asarray(value).tobytes()
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _draw(table: ImportanceTable, folder: Path) -> None:
    for score in table.higher_is_better:
        title = f"Importance by {score} (unpruned: {table.unpruned[score]:.4g})"
        write_file(folder / f"importance_{score}.png", png(bars(table.importance(score), title)))
    strips = [(name, Image.open(folder / "frames" / f"{name}.png")) for name in ("unpruned", *table.parts)]
    write_file(folder / "first_and_last_frames.png", png(sheet(strips)))
