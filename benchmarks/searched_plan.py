#!/usr/bin/env python
"""A plan from measured scores against the paper's, under the paper's own budget, on a demo teacher of either task.

    pip install -e '.[teacher,train,plot]'
    python conversion/measure_block_importance.py --pretrained_model_name_or_path vdmini_diffusers/demo/i2v_teacher \\
        --parts stage layer block --real_videos FOLDER_OF_VIDEOS --output_dir outputs/importance
    python conversion/measure_block_cost.py --pretrained_model_name_or_path vdmini_diffusers/demo/i2v_teacher \\
        --num_frames 16 --height 64 --width 64 --output_dir outputs/cost
    python benchmarks/searched_plan.py --importance outputs/importance/importance.json --cost outputs/cost/cost.json

The budget is the paper's student: its parameters and its multiplications. The searched plan keeps the most importance
under it. As importances add up only about, the next best plans and the paper's are measured as students; then the best
of those that differ in a few layers from the best one measured, until none is better. If that is neither the paper's
nor the searched plan, it is the measured plan. All are measured as they are pruned, and after the same short ICMD with
the same seeds, on held-out scenes: first frames of which none was scored, or captions, of which there are few, so that
the scored ones are among them. Writes `searched_plan.json` and `measured_plan.json`; `table.md` and `results.json`
after each seed; and `contact_sheet.png` with videos of its first scenes, `scene-0.mp4` and so on. What is finished is
kept: run it again after a stop.
"""

import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vdmini_diffusers.analysis.cost_table import CostTable
from vdmini_diffusers.analysis.importance import ImportanceTable, Measurement, measure_importance
from vdmini_diffusers.analysis.plan_search import (
    CONTENT_AND_MOTION,
    Budget,
    cost_of_plan,
    importance_of_plan,
    plans_from_scores,
    weighted_importance,
)
from vdmini_diffusers.analysis.scores import standard_scores
from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.judge import FROM_LATENTS, MEASURES, Judge
from vdmini_diffusers.demo.run_results import Results, differences, earlier_results, levels, means
from vdmini_diffusers.demo.teachers import T2V_BASE
from vdmini_diffusers.demo.training_latents import write_training_latents
from vdmini_diffusers.demo.training_runs import ComparisonArguments, as_trained, complete_run, recipe_flags
from vdmini_diffusers.families import find_trainable_family
from vdmini_diffusers.pruning.plans import UNetPruningPlan
from vdmini_diffusers.pruning.presets import VDMINI_UNET
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.serialization.atomic import write_file
from vdmini_diffusers.serialization.hashes import sha256_of
from vdmini_diffusers.serialization.safetensors_reader import read_json


logger = logging.getLogger(__name__)

TRAIN_SCRIPT = Path(__file__).parents[1] / "training" / "train_icmd.py"
PAPER, SEARCHED, MEASURED = "the paper's plan", "the searched plan", "the measured plan"
SLUGS = {PAPER: "paper", SEARCHED: "searched", MEASURED: "measured"}
MIN_DIFFERENCE = 4  # layers, between the first candidates
REACH = 4  # layers in which later candidates differ at most from the best one measured: two swaps
SCORES_SEED, NUM_SCORED = 1000, 16  # scenes that candidates are measured on
UNTRAINED, TRAINED = "not trained", "ICMD"


@dataclass(kw_only=True)
class Arguments(ComparisonArguments):
    importance: Path = field(metadata={"help": "importance.json of conversion/measure_block_importance.py."})
    cost: Path = field(metadata={"help": "cost.json of conversion/measure_block_cost.py."})
    output_dir: Path = field(default=Path("outputs/searched_plan"), metadata={"help": "Where runs and results go."})
    ode_teacher: Path = field(
        default=T2V_BASE, metadata={"help": "What a text-to-video teacher was made of (multi-step pipeline folder)."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "The U-Net's rate, before its cosine."})
    num_candidates: int = field(
        default=16, metadata={"help": "Plans that are measured as students at once, before the search goes on."}
    )


class Job(NamedTuple):
    """One training run."""

    plan: str
    seed: int
    folder: Path


def job_of(args: Arguments, plan: str, seed: int) -> Job:
    return Job(plan, seed, args.output_dir / "runs" / f"{SLUGS[plan]}-{seed}")


def read_tables(args: Arguments) -> tuple[ImportanceTable, CostTable]:
    """Raises `ValueError` if they are not of the teacher's denoiser."""
    scores, costs = ImportanceTable.read(args.importance), CostTable.read(args.cost)
    config = read_json(args.teacher / find_trainable_family(str(args.teacher)).denoiser / "config.json")
    for name, table in (("importance", scores), ("cost", costs)):
        if not table.config or any(value != config.get(key, value) for key, value in table.config.items()):
            raise ValueError(f"{getattr(args, name)} is of another denoiser than {args.teacher}'s: measure that.")
    return scores, costs


def check_settings(args: Arguments) -> None:
    """Raises `ValueError` if the folder was begun with other settings."""
    tables = {name: sha256_of(getattr(args, name)) for name in ("importance", "cost")}
    args.keep_settings(more=tables)  # their content counts, not their place


def keep_plan(plan: UNetPruningPlan, file: Path) -> None:
    """Raises `ValueError` if the folder's students were pruned by another one."""
    if file.exists() and file.read_text() != plan.to_json_string():
        raise ValueError(f"{file} is another plan than the search now finds: choose another --output_dir.")
    write_file(file, plan.to_json_string().encode())


def search(scores: ImportanceTable, costs: CostTable, num_plans: int, **options: Any) -> list[UNetPruningPlan]:
    """What keeps the most importance, by content and motion alike, and costs no more than the paper's student; and the
    next best.

    Args:
        options: more of `plans_from_scores`.
    """
    paper = cost_of_plan(VDMINI_UNET, costs)
    budget = Budget(num_parameters=int(paper["num_parameters"]), num_macs=int(paper["num_macs"]))
    plans = plans_from_scores(scores, costs, num_plans, budget=budget, **options)
    return [plan for plan in plans if isinstance(plan, UNetPruningPlan)]


def search_on(
    scores: ImportanceTable,
    costs: CostTable,
    found: Sequence[UNetPruningPlan],
    num_candidates: int,
    measure: Callable[[Sequence[UNetPruningPlan], int], ImportanceTable],
) -> tuple[list[UNetPruningPlan], ImportanceTable]:
    """All plans that were measured, the best one first, and their errors.

    Begins with the paper's plan and those that were `found`, and goes on about the best one until it stays the best.

    Args:
        measure: gives the errors of plans as students; the second argument counts its calls from 1.
    """
    tried = [VDMINI_UNET, *found]
    measured = measure(tried, 1)
    for turn in itertools.count(2):
        best = ranked(tried, measured)[0]
        about = search(
            scores, costs, num_candidates + len(tried), name=f"turn-{turn}", near=best, max_difference=REACH
        )
        choices = [replace(plan, name=best.name) for plan in tried]
        new = [plan for plan in about if replace(plan, name=best.name) not in choices][:num_candidates]
        if new:
            more = measure(new, turn)
            parts, kinds = {**measured.parts, **more.parts}, {**measured.kinds, **more.kinds}
            measured = replace(measured, parts=parts, kinds=kinds)
            tried += new
        if ranked(tried, measured)[0] == best:
            break
    return ranked(tried, measured), measured


def ranked(plans: Sequence[UNetPruningPlan], measured: ImportanceTable) -> list[UNetPruningPlan]:
    """By their students' errors of content and motion alike, the least first."""
    errors = errors_of(plans, measured)
    return sorted(plans, key=lambda plan: errors[plan.name])


def errors_of(plans: Sequence[UNetPruningPlan], measured: ImportanceTable) -> dict[str, float]:
    """Each kind of error over the sum of it, added up."""
    return weighted_importance(measured, CONTENT_AND_MOTION, [plan.name for plan in plans])


def measure_candidates(
    args: Arguments, candidates: Sequence[UNetPruningPlan], latents: Path, folder: Path
) -> ImportanceTable:
    """The error of each plan's student, not trained, against the teacher. What is finished is kept in `folder`."""
    family = find_trainable_family(str(args.teacher))
    pipe = family.pipeline.from_pretrained(args.teacher, dtype=torch.float32)
    judge = Judge(args.teacher, latents, args.output_dir, SCORES_SEED, NUM_SCORED, num_decoded=1)

    def generate(num_videos: int | None = None, description: str | None = None) -> np.ndarray:
        return judge.all.generate(pipe, decode=judge.linear, **judge.sampling).frames[:num_videos]

    measurement = Measurement(
        denoiser=getattr(pipe, family.denoiser),
        generate=generate,
        scores=standard_scores(),
        parts={plan.name: plan for plan in candidates},
        use=lambda denoiser: setattr(pipe, family.denoiser, denoiser),
        student_class=family.denoisers[family.denoiser].student,
    )
    table = measure_importance(measurement, folder)
    assert table is not None  # with one process
    return table


def describe_candidates(
    candidates: Sequence[UNetPruningPlan], measured: ImportanceTable, scores: ImportanceTable, costs: CostTable
) -> list[dict[str, Any]]:
    """A line for each, with its student's errors."""
    errors = errors_of(candidates, measured)
    return [
        {
            "candidate": plan.name,
            "importance": f"{importance_of_plan(plan, scores, costs):.3f}",
            **{name: f"{measured.parts[plan.name][name]:.1f}" for name in CONTENT_AND_MOTION},
            "both, over the sum of all": f"{errors[plan.name]:.4f}",
        }
        for plan in candidates
    ]


def describe(plans: Mapping[str, UNetPruningPlan], scores: ImportanceTable, costs: CostTable) -> list[dict[str, Any]]:
    """What each plan keeps, what it costs, and the share of all importance that it keeps."""
    lines = []
    for name, plan in plans.items():
        cost = cost_of_plan(plan, costs)
        lines.append(
            {
                "plan": name,
                "parameters": f"{cost['num_parameters']:,.0f}",
                "GMACs": f"{cost['num_macs'] / 1e9:.2f}",
                "importance": f"{importance_of_plan(plan, scores, costs):.3f}",
                "layers that stay, down": layers_of(plan.down),
                "mid block": "stays" if plan.keep_mid else "goes",
                "up": layers_of(plan.up),
            }
        )
    return lines


def layers_of(stages: Mapping[int, Sequence[int]]) -> str:
    return "; ".join(f"{stage}: {', '.join(map(str, layers))}" for stage, layers in sorted(stages.items()))


def table_of(
    args: Arguments, plans: Sequence[Mapping[str, Any]], candidates: Sequence[Mapping[str, Any]], results: Results
) -> str:
    against: dict[str, str | None] = {f"{plan}, {TRAINED}": f"{PAPER}, {TRAINED}" for plan in (SEARCHED, MEASURED)}
    lines = [
        f"{args.max_train_steps} steps of {args.train_batch_size} clips; {args.num_clips} held-out clips"
        f" ({', '.join(FROM_LATENTS)}), of which {args.num_decoded_clips} are decoded (the rest). ± is the standard"
        " deviation over seeds.",
        "",
        markdown_table(plans),
        "",
        f"Candidates as students, not trained, on {NUM_SCORED} other scenes:",
        "",
        markdown_table(candidates),
        "",
        markdown_table(levels(results, MEASURES)),
    ]
    if compared := differences(results, against, MEASURES):
        lines += ["", "Mean differences of seeds, with 95 % intervals:", "", markdown_table(compared)]
    return "\n".join(lines) + "\n"


def train(args: Arguments, latents: Path, job: Job) -> None:
    is_t2v = find_trainable_family(str(args.teacher)).given == "text"
    flags = recipe_flags(
        args,
        student=args.output_dir / "pruned" / SLUGS[job.plan],
        latents=latents,
        output_dir=job.folder,
        seed=job.seed,
        learning_rate=args.learning_rate,
        ode_teacher=args.ode_teacher if is_t2v else None,
    )
    complete_run(TRAIN_SCRIPT, flags, job.folder)


def folders_of(args: Arguments) -> dict[str, Path]:
    """Where the videos of each row are; of trained students those of the last seed."""
    folders = {"teacher": args.output_dir / "teacher"}
    for plan in SLUGS:
        folders[f"{plan}, {UNTRAINED}"] = args.output_dir / "measured" / SLUGS[plan]
        folders[f"{plan}, {TRAINED}"] = job_of(args, plan, args.seeds[-1]).folder
    return folders


def main(args: Arguments) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    scores, costs = read_tables(args)
    found = search(scores, costs, args.num_candidates, min_difference=MIN_DIFFERENCE)
    check_settings(args)
    latents = write_training_latents(args.output_dir / "latents", args.teacher, args.num_train_clips)

    def measure(candidates: Sequence[UNetPruningPlan], turn: int) -> ImportanceTable:
        return measure_candidates(args, candidates, latents, args.output_dir / "candidates" / str(turn))

    candidates, measured = search_on(scores, costs, found, args.num_candidates, measure)
    best, students = candidates[0], describe_candidates(candidates, measured, scores, costs)
    plans = {PAPER: VDMINI_UNET, SEARCHED: found[0]} | ({} if best in (VDMINI_UNET, found[0]) else {MEASURED: best})
    for name in (SEARCHED, MEASURED):
        if name in plans:
            keep_plan(plans[name], args.output_dir / f"{SLUGS[name]}_plan.json")
    described = describe(plans, scores, costs)
    logger.info("\n%s\n%s", markdown_table(described), markdown_table(students))

    judge = Judge(args.teacher, latents, args.output_dir, 0, args.num_clips, args.num_decoded_clips)
    results = earlier_results(args.output_dir / "results.json")
    results["teacher"] = {0: means(judge.measure(args.teacher, args.output_dir / "teacher"))}
    for name, plan in plans.items():
        student = args.output_dir / "pruned" / SLUGS[name]
        if not student.exists():
            prune_pipeline(args.teacher, student, plan)
        beside = args.output_dir / "measured" / SLUGS[name]
        results[f"{name}, {UNTRAINED}"] = {0: means(judge.measure(student, beside))}
    for seed in args.seeds:
        wanted = [job_of(args, name, seed) for name in plans if seed not in results.get(f"{name}, {TRAINED}", {})]
        for job in as_trained(wanted, lambda job: train(args, latents, job), args.num_parallel):
            results.setdefault(f"{job.plan}, {TRAINED}", {})[seed] = means(judge.measure(job.folder))
        text = table_of(args, described, students, results)
        write_file(args.output_dir / "table.md", text.encode())
        write_file(args.output_dir / "results.json", (json.dumps(results, indent=2) + "\n").encode())
        logger.info("seed %d is done\n%s", seed, text)
    judge.write_sheet(folders_of(args), args.output_dir / "contact_sheet.png")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
