#!/usr/bin/env python
"""What F3-Pruning does to videos, against the share alpha of pruned layers or steps, on a demo teacher of either task.

    pip install -e '.[teacher,train,plot]'
    python benchmarks/f3_quality.py --output_dir outputs/f3_quality
    python benchmarks/f3_quality.py --teacher vdmini_diffusers/demo/t2v_teacher --output_dir outputs/f3_quality_t2v
    python benchmarks/f3_quality.py --teacher vdmini_diffusers/demo/t2v_teacher --unit step --alphas 0.25 0.5 \
        --output_dir outputs/f3_quality_steps

Layers, or denoising steps, are scored on scenes of another seed. The share alpha of them loses its temporal attention,
or its whole temporal block: those with the lowest scores, as F3-Pruning has it, those with the highest, and random
ones, for each seed on scenes and noise of its own, in which the choices are compared. Each layer is pruned alone as
well, on the scenes that it was scored on: does the score tell what it is worth? All frames are a linear decoding of
the latents. Writes `table.md`, `results.json`, `layers.json` (`steps.json`) and `plot.png`. What is finished is kept:
run it again after a stop.
"""

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from vdmini_diffusers.analysis.f3 import F3Plan, apply_f3, measure_temporal_attention, remove_f3, temporal_layers
from vdmini_diffusers.analysis.f3.layers import attention_class
from vdmini_diffusers.analysis.f3.plan import num_pruned
from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.plots import import_figure
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.judge import SAMPLING, Judge
from vdmini_diffusers.demo.measures import Videos
from vdmini_diffusers.demo.run_results import Results, differences, earlier_results, keep_settings, levels, means
from vdmini_diffusers.demo.teachers import I2V_TEACHER
from vdmini_diffusers.demo.training_latents import write_training_latents
from vdmini_diffusers.evaluation.continuation import MAX_PSNR, psnr
from vdmini_diffusers.families import find_trainable_family
from vdmini_diffusers.serialization.atomic import write_file


Order = Literal["lowest", "random", "highest"]
Part = Literal["attention", "block"]
ORDERS: tuple[Order, ...] = ("lowest", "random", "highest")
PARTS: tuple[Part, ...] = ("attention", "block")
WHOLE, SCORE = "nothing", "attention to other frames"
MEASURES = ("right_way", "moves", "speed", "teachers_way", "motion_cosine", "psnr_to_teacher")
SHOWN = ("right_way", "speed", "psnr_to_teacher")
SCORES_SEED = 1000  # of the scenes that layers are scored on
NUM_LATENTS = 64  # training clips that the linear decoder is fitted to


@dataclass
class Arguments:
    teacher: Path = field(default=I2V_TEACHER, metadata={"help": "Few-step pipeline folder, of either task."})
    output_dir: Path = field(default=Path("outputs/f3_quality"), metadata={"help": "Where results go."})
    unit: Literal["layer", "step"] = field(
        default="layer", metadata={"help": "What is scored and pruned; steps: of a teacher that takes several."}
    )
    alphas: list[float] = field(
        default_factory=lambda: [0.25, 0.5, 0.75, 1.0], metadata={"help": "Shares of the layers, or of the steps."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "They seed scenes, noise and the random choice."}
    )
    num_scored: int = field(default=16, metadata={"help": "Videos that layers are scored on."})
    num_clips: int = field(default=128, metadata={"help": "Videos of each variant and seed."})

    def __post_init__(self) -> None:
        if not self.seeds or not self.alphas or not all(0 < alpha <= 1 for alpha in self.alphas):
            raise ValueError(f"Give `--seeds`, and `--alphas` above 0 up to 1; not {self.seeds} and {self.alphas}.")
        if min(self.num_scored, self.num_clips) < 1:
            raise ValueError("`--num_scored` and `--num_clips` are 1 at least.")


class Variant(NamedTuple):
    """A choice of units, and what is pruned there."""

    part: Part
    order: Order
    alpha: float

    def __str__(self) -> str:
        which = "all" if self.alpha == 1 else f"{self.order} {self.alpha:g}"
        return f"{self.part}, {which}"


def variants_of(args: Arguments) -> list[Variant]:
    """All units are the same ones in whichever order."""
    return [
        Variant(part, order, alpha)
        for part in PARTS
        for alpha in args.alphas
        for order in (ORDERS[:1] if alpha == 1 else ORDERS)
    ]


class Bench:
    """The teacher, and held-out scenes by seed."""

    def __init__(self, args: Arguments):
        self.args = args
        family = find_trainable_family(str(args.teacher))
        self.pipe = family.pipeline.from_pretrained(args.teacher, dtype=torch.float32)
        self.denoiser = getattr(self.pipe, family.denoiser)
        self.num_steps = SAMPLING[family.given]["num_inference_steps"]

    @cached_property
    def latents(self) -> Path:
        return write_training_latents(self.args.output_dir / "latents", self.args.teacher, NUM_LATENTS)

    def videos(self, judge: Judge) -> Videos:
        return judge.all.generate(self.pipe, decode=judge.linear, **judge.sampling)

    def judge(self, seed: int, num_clips: int) -> Judge:
        return Judge(self.args.teacher, self.latents, self.args.output_dir, seed, num_clips, num_decoded=1)

    @property
    def num_units(self) -> int:
        return self.num_steps if self.args.unit == "step" else len(temporal_layers(self.denoiser))

    @contextmanager
    def pruned(self, scores: Mapping[str, float], units: Sequence[str], part: Part) -> Iterator[None]:
        name, alpha = attention_class(self.denoiser), len(units) / len(scores)
        apply_f3(self.denoiser, F3Plan(name, self.args.unit, part, alpha, scores, tuple(units)))
        try:
            yield
        finally:
            remove_f3(self.denoiser)

    def units(self) -> dict[str, dict[str, float]]:
        """By unit: the aggregate temporal attention, and the PSNR to the whole teacher's videos without it alone."""
        file = self.args.output_dir / f"{self.args.unit}s.json"
        if not file.exists():
            judge = self.judge(SCORES_SEED, self.args.num_scored)
            with measure_temporal_attention(self.denoiser) as measured:
                whole = self.videos(judge)
            scores = measured.by_layer() if self.args.unit == "layer" else measured.by_step()
            rows = {unit: {SCORE: score} for unit, score in scores.items()}
            for unit in tqdm(rows, desc=f"{self.args.unit}s alone", unit=self.args.unit):
                for part in PARTS:
                    with self.pruned(scores, [unit], part):
                        videos = self.videos(judge)
                    rows[unit][f"PSNR without its {part}"] = min(psnr(videos.frames, whole.frames), MAX_PSNR)
            write_file(file, (json.dumps(rows, indent=2) + "\n").encode())
        return json.loads(file.read_text())

    def measure(self, seed: int, variants: Sequence[Variant]) -> Iterator[tuple[str, dict[str, float]]]:
        """Measures of the whole teacher, then of each variant, on the scenes of one seed."""
        judge, scores = self.judge(seed, self.args.num_clips), scores_of(self.units())
        whole = self.videos(judge)
        yield WHOLE, means(judge.all.per_clip(whole))
        name = attention_class(self.denoiser)
        for v in tqdm(variants, desc=f"seed {seed}", unit="variant"):
            plan = F3Plan.from_scores(name, scores, v.alpha, self.args.unit, v.part, v.order, seed)
            with self.pruned(scores, plan.pruned, v.part):
                videos = self.videos(judge)
            yield str(v), means(judge.all.per_clip(videos, whole))


def scores_of(units: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {unit: row[SCORE] for unit, row in units.items()}


def rank_correlations(units: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Spearman's, of the score with what is left without the unit: -1 where the lowest scores matter least."""
    from scipy.stats import spearmanr

    scores = list(scores_of(units).values())
    names = [name for name in next(iter(units.values())) if name != SCORE]
    return {name: float(spearmanr(scores, [row[name] for row in units.values()]).statistic) for name in names}


def compared_rows(variants: Sequence[Variant]) -> dict[str, str | None]:
    """Other choices of as many units are compared with the lowest scores, which F3-Pruning takes."""
    return {str(v): str(v._replace(order="lowest")) for v in variants if v.order != "lowest"}


def write_report(args: Arguments, results: Results, units: Mapping[str, Mapping[str, float]]) -> str:
    """The text of `table.md`."""
    variants, unit = variants_of(args), args.unit
    results = {row: results[row] for row in (WHOLE, *map(str, variants)) if row in results}
    ranked = sorted(units, key=lambda name: units[name][SCORE])
    correlations = ", ".join(f"{name} {value:+.2f}" for name, value in rank_correlations(units).items())
    lines = [
        f"{args.num_clips} held-out clips a seed, by a linear decoding; {unit}s scored on {args.num_scored} others."
        " ± is the standard deviation over seeds.",
        "",
        markdown_table(levels(results, MEASURES)),
        "",
        f"{unit.capitalize()}s by their score; its rank correlation with what is left without the {unit}:"
        f" {correlations}.",
        "",
        markdown_table([{unit: name, **units[name]} for name in ranked]),
    ]
    if compared := differences(results, compared_rows(variants), MEASURES):
        lines += ["", "Mean differences of seeds, with 95 % intervals:", "", markdown_table(compared)]
    text = "\n".join(lines) + "\n"
    write_file(args.output_dir / "table.md", text.encode())
    write_file(args.output_dir / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    return text


def plot(args: Arguments, results: Results) -> Any:
    """A panel for each measure and part: lines over alpha, one for each choice of units, dots for seeds."""
    figure = import_figure()(figsize=(4 * len(SHOWN), 3.5 * len(PARTS)), layout="constrained")
    grid = figure.subplots(len(PARTS), len(SHOWN), squeeze=False)
    for axes, part in zip(grid, PARTS, strict=True):
        for axis, measure in zip(axes, SHOWN, strict=True):
            for i, order in enumerate(ORDERS):
                rows = {}
                for variant in variants_of(args):
                    if variant.part == part and (variant.order == order or variant.alpha == 1):
                        rows[variant.alpha] = [run[measure] for run in results[str(variant)].values()]
                for alpha, values in rows.items():
                    axis.plot([alpha] * len(values), values, f"C{i}.", markersize=5)
                axis.plot(list(rows), [np.mean(values) for values in rows.values()], f"C{i}-", label=order)
            if whole := [run[measure] for run in results[WHOLE].values() if measure in run]:
                axis.axhline(float(np.mean(whole)), color="grey", linestyle=":", label="nothing pruned")
            axis.set(title=f"{part}: {measure.replace('_', ' ')}", xlabel=f"share of {args.unit}s")
    grid[0][0].legend(fontsize="small")
    return figure


def main(args: Arguments) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    import_figure()
    bench = Bench(args)
    if args.unit == "step" and bench.num_units < 2:
        raise ValueError("This teacher takes one step, which cannot be ranked: `--unit layer`.")
    if none := [alpha for alpha in args.alphas if num_pruned(alpha, bench.num_units) == 0]:
        raise ValueError(f"`--alphas` has {none[0]}, which is less than one of the {bench.num_units} {args.unit}s.")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in asdict(args).items() if name not in ("output_dir", "seeds")}
    keep_settings(args.output_dir, settings, args.teacher)
    units = bench.units()
    results = earlier_results(args.output_dir / "results.json")
    for seed in args.seeds:
        missing = [variant for variant in variants_of(args) if seed not in results.get(str(variant), {})]
        for row, numbers in bench.measure(seed, missing) if missing else ():
            results.setdefault(row, {})[seed] = numbers
            write_report(args, results, units)
    picture = io.BytesIO()
    plot(args, results).savefig(picture, dpi=120, format="png")
    write_file(args.output_dir / "plot.png", picture.getvalue())
    print(write_report(args, results, units))


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
