#!/usr/bin/env python
"""How well the embedded teacher continues held-out first frames, and what pruning without distillation costs.

    python benchmarks/embedded_teacher.py --num_clips 64 --output_dir outputs/embedded_teacher

Clips come from photographs that the teacher was not trained on (`HELD_OUT_PHOTOS`), half of each kind of motion.
Prints a table, and writes it with a contact sheet into the output folder.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import HfArgumentParser

from vdmini_diffusers.data.moving_pictures import Clip
from vdmini_diffusers.embedded import I2V_TEACHER
from vdmini_diffusers.evaluation.continuation import motion_cosine, motion_ratio, psnr
from vdmini_diffusers.held_out import KINDS, continue_clips, held_out_clips
from vdmini_diffusers.pipelines import VDMiniI2VPipeline
from vdmini_diffusers.prune_pipeline import prune_svd_pipeline
from vdmini_diffusers.quickstart import write_contact_sheet


@dataclass
class Arguments:
    output_dir: Path = field(default=Path("outputs/embedded_teacher"), metadata={"help": "Where table and sheet go."})
    teacher: Path = field(default=I2V_TEACHER, metadata={"help": "Another SVD-style pipeline folder to measure."})
    num_clips: int = field(default=64, metadata={"help": "Held-out clips."})
    num_inference_steps: int = field(default=8, metadata={"help": "Sampling steps."})
    seed: int = field(default=0, metadata={"help": "Seeds the clips and the noise."})


def generate(folder: Path, clips: list[Clip], args: Arguments) -> np.ndarray:
    pipe = VDMiniI2VPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return continue_clips(pipe, clips, args.num_inference_steps, args.seed)


def measure(generated: np.ndarray, real: np.ndarray) -> list[str]:
    moves = bool(np.diff(generated.astype(int), axis=1).any())
    return [
        f"{psnr(generated[:, 1:], real[:, 1:]):.2f}",
        f"{motion_cosine(generated, real):.3f}" if moves else "-",
        f"{motion_ratio(generated, real):.3f}",
    ]


def main(args: Arguments) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    clips = held_out_clips(args.num_clips, args.seed)
    real = np.stack([clip.frames for clip in clips])
    with TemporaryDirectory() as folder:
        student = prune_svd_pipeline(args.teacher, Path(folder) / "student")
        videos = {
            "first frame repeated": np.repeat(real[:, :1], real.shape[1], axis=1),
            "teacher": generate(args.teacher, clips, args),
            "pruned, not distilled": generate(student, clips, args),
        }
    lines = [
        f"{args.num_clips} held-out clips, {args.num_inference_steps} steps, seed {args.seed}",
        "",
        "| model | kind | PSNR to the real continuation, dB | motion cosine | motion ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, generated in videos.items():
        for kind in (*KINDS, "all"):
            rows = [i for i, clip in enumerate(clips) if kind in ("all", clip.kind)]
            lines.append(f"| {name} | {kind} | {' | '.join(measure(generated[rows], real[rows]))} |")
    table = "\n".join(lines) + "\n"
    (args.output_dir / "table.md").write_text(table)
    sheet = []
    for i, clip in enumerate(clips[:8]):
        sheet.append((f"{clip.caption}: what really came", real[i]))
        sheet += [(f"{clip.caption}: {name}", videos[name][i]) for name in list(videos)[1:]]
    write_contact_sheet(sheet, args.output_dir / "contact_sheet.png")
    print(table)


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
