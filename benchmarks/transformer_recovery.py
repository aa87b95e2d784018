#!/usr/bin/env python
"""Pruned video transformers distilled with and without ICD, and by two plans: how near do they come to their teachers?

    pip install -e '.[teacher,train,plot]'
    python benchmarks/transformer_recovery.py --output_dir outputs/transformer_recovery

Small transformers of HunyuanVideo, Wan and CogVideoX are trained on latents in which two blobs move, as the text
embedding says. A third of their blocks goes, by the plan `middle`. What is left is trained by `distill`, for each seed
once without ICD and once with each of its weights: on the same clips, in the same order, with the same noise. So is
the student of a searched plan, with the first of these weights: it costs no more than the other one, and is found by
how much the error grows without each block, on clips to train on. The error on held-out clips is the mean square of
the student's velocity less the teacher's, in percent of the teacher's mean square: 0 for the teacher, and 100 for a
student that predicts nothing.

Writes `table.md`, `results.csv` and `plot.png`. What is finished is kept: run it again after a stop.
"""

import csv
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from vdmini_diffusers import distill, prune_pipeline
from vdmini_diffusers.analysis.cost_table import costed_parts, count_costs
from vdmini_diffusers.analysis.importance import ImportanceTable
from vdmini_diffusers.analysis.parts import plain_config, removable_parts, removed
from vdmini_diffusers.analysis.plan_search import Budget, cost_of_plan, plan_from_scores
from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.plots import import_figure
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.data.latents import LatentShards
from vdmini_diffusers.demo.resumable_training import Deadline, train_steps
from vdmini_diffusers.demo.run_results import keep_settings
from vdmini_diffusers.distillation.batches import sample_generators
from vdmini_diffusers.distillation.ode_teacher import DiffusionSchedule
from vdmini_diffusers.distillation.tasks.flow_matching import FlowMatchingTask
from vdmini_diffusers.distillation.velocity import FlowMatchingPath, VPredictionPath
from vdmini_diffusers.evaluation.paired import paired_difference
from vdmini_diffusers.families import family_of
from vdmini_diffusers.pruning.plans import PruningPlan
from vdmini_diffusers.pruning.presets import find_plan
from vdmini_diffusers.serialization.atomic import write_file


CHANNELS, FRAMES, SIZE = 4, 4, 8  # of the latents
NUM_BLOBS, WORD_WIDTH = 2, 32
NUM_SCORED_CLIPS = 128  # of the clips to train on, for the importance of blocks
MIDDLE, SEARCHED = "middle", "searched"


def hunyuan_video() -> HunyuanVideoPipeline:
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=4,
        attention_head_dim=16,
        num_layers=3,
        num_single_layers=6,
        num_refiner_layers=1,
        text_embed_dim=WORD_WIDTH,
        pooled_projection_dim=WORD_WIDTH,
        rope_axes_dim=(4, 6, 6),
    )
    absent = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "vae"))
    pipeline: Any = HunyuanVideoPipeline
    return pipeline(**absent, transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0))


def wan() -> WanPipeline:
    transformer = WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=WORD_WIDTH,
        freq_dim=64,
        ffn_dim=256,
        num_layers=9,
        rope_max_seq_len=16,
    )
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipeline: Any = WanPipeline
    return pipeline(tokenizer=None, text_encoder=None, vae=None, transformer=transformer, scheduler=scheduler)


def cogvideox() -> CogVideoXPipeline:
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=64,
        text_embed_dim=WORD_WIDTH,
        num_layers=9,
        sample_width=SIZE,
        sample_height=SIZE,
        sample_frames=4 * (FRAMES - 1) + 1,
        max_text_seq_length=3 * NUM_BLOBS,
        use_rotary_positional_embeddings=True,
    )
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0
    )
    pipeline: Any = CogVideoXPipeline
    return pipeline(tokenizer=None, text_encoder=None, vae=None, transformer=transformer, scheduler=scheduler)


KINDS: Mapping[str, Callable[[], Any]] = {"HunyuanVideo": hunyuan_video, "Wan": wan, "CogVideoX": cogvideox}


@dataclass
class Arguments:
    output_dir: Path = field(
        default=Path("outputs/transformer_recovery"), metadata={"help": "Where runs and results go."}
    )
    families: list[str] = field(default_factory=lambda: list(KINDS), metadata={"help": f"Of {', '.join(KINDS)}."})
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Each has a run without ICD, and one a weight."}
    )
    teacher_steps: int = field(default=800, metadata={"help": "Optimiser steps of a teacher."})
    teacher_batch_size: int = field(default=8, metadata={"help": "Clips per step of a teacher."})
    teacher_learning_rate: float = field(default=1e-3, metadata={"help": "A teacher's rate, before its cosine."})
    max_train_steps: int = field(default=200, metadata={"help": "Optimiser steps of a student."})
    train_batch_size: int = field(default=4, metadata={"help": "Clips per step of a student."})
    learning_rate: float = field(default=5e-4, metadata={"help": "A student's rate, before its cosine."})
    lambda_icd: list[float] = field(
        default_factory=lambda: [0.1, 1.0],
        metadata={
            "help": "Weights of ICD. Paper, and default of training: 0.1; the second was tuned on another seed."
        },
    )
    num_train_clips: int = field(default=2048, metadata={"help": "Clips to train on."})
    num_held_out_clips: int = field(default=128, metadata={"help": "Clips to measure on."})
    measure_steps: int = field(default=40, metadata={"help": "A student is measured every so many steps."})


def draw_clips(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Latents in which blobs move at constant speed, leaving at one side and coming in at the other, and texts.

    A blob is described by three words: where it starts, how it moves, and its colour, which is one value a channel.
    Embeddings of words are linear in what they say, as drawn at random once.
    """
    start = SIZE * torch.rand(count, NUM_BLOBS, 2, generator=generator)
    motion = 3 * torch.rand(count, NUM_BLOBS, 2, generator=generator) - 1.5
    colour = torch.randn(count, NUM_BLOBS, CHANNELS, generator=generator)
    centres = start[:, None] + motion[:, None] * torch.arange(FRAMES)[:, None, None]  # (count, frames, blobs, 2)
    places = torch.arange(SIZE)
    away = (places - centres[..., None] + SIZE / 2) % SIZE - SIZE / 2  # (count, frames, blobs, 2, size)
    profile = (-away.square() / 3).exp()
    latents = torch.einsum("nfby,nfbx,nbc->nfcyx", profile[..., 0, :], profile[..., 1, :], colour)

    drawn_once = torch.Generator().manual_seed(0)
    said = [start / SIZE - 0.5, motion, colour]
    words = [what @ torch.randn(what.shape[-1], WORD_WIDTH, generator=drawn_once) for what in said]
    kinds = torch.randn(NUM_BLOBS, 3, WORD_WIDTH, generator=drawn_once)
    prompt_embeds = (torch.stack(words, dim=2) + kinds).flatten(1, 2)  # (count, words, width)
    return {
        "latents": 3 * latents,  # of about unit variance
        "prompt_embeds": prompt_embeds,
        "prompt_attention_mask": torch.ones(count, prompt_embeds.shape[1], dtype=torch.long),
        "pooled_prompt_embeds": prompt_embeds.mean(dim=1),
        "fps": torch.full((count,), 8.0),
    }


def write_clips(folder: Path, clips: Mapping[str, Tensor]) -> None:
    """As `training/precompute_latents.py` writes them."""
    count = len(clips["fps"])
    samples = [{name: tensor[i] for name, tensor in clips.items()} for i in range(count)]
    shards = LatentShards(folder, {"made_by": Path(__file__).name})
    shards.write(0, samples, [{"name": str(i), "caption": ""} for i in range(count)])
    shards.finish([])


class Bench(NamedTuple):
    """What the runs of one family share."""

    task: FlowMatchingTask
    folder: Path
    training_clips: Mapping[str, Tensor]
    held_out: Mapping[str, Tensor]

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher"

    def student(self, plan: str) -> Path:
        return self.folder / ("student" if plan == MIDDLE else f"student-{plan}")


class Variant(NamedTuple):
    """What the runs of a seed differ in."""

    plan: str
    lambda_icd: float

    def __str__(self) -> str:
        losses = f"ICD, weight {self.lambda_icd:g}" if self.lambda_icd else "without ICD"
        return losses if self.plan == MIDDLE else f"{self.plan} plan, {losses}"

    @property
    def untrained(self) -> str:
        return "before" if self.plan == MIDDLE else f"{self.plan} plan, before"

    def folder(self, seed: int) -> str:
        name = f"icd-{self.lambda_icd}-seed-{seed}"
        return name if self.plan == MIDDLE else f"{self.plan}-{name}"


def variants_of(args: Arguments) -> dict[Variant, Variant | None]:
    """All of them, and what each is compared with."""
    base = Variant(MIDDLE, 0.0)
    variants: dict[Variant, Variant | None] = {base: None}
    variants |= dict.fromkeys((Variant(MIDDLE, weight) for weight in args.lambda_icd), base)
    if args.lambda_icd:
        variants[Variant(SEARCHED, args.lambda_icd[0])] = Variant(MIDDLE, args.lambda_icd[0])
    return variants


def train_teacher(bench: Bench, pipe: DiffusionPipeline, args: Arguments) -> None:
    """Leaves a pipeline's folder, without encoders, which training on latents does not need."""
    transformer = pipe.transformer.train()

    def loss_at(step: int) -> Tensor:
        generators = sample_generators(10_000, step, 0, args.teacher_batch_size)
        chosen = torch.randint(args.num_train_clips, (args.teacher_batch_size,), generator=generators[0])
        inputs = bench.task.prepare({name: clips[chosen] for name, clips in bench.training_clips.items()}, generators)
        denoised = bench.task.denoise(transformer, inputs.noisy_latents, inputs.noise_levels, inputs.conditioning)
        return torch.stack(list(bench.task.losses(denoised, inputs).values())).sum()

    train_steps(
        bench.folder / "teacher.pt",
        {"transformer": transformer},
        loss_at,
        num_steps=args.teacher_steps,
        learning_rate=args.teacher_learning_rate,
        deadline=Deadline(None),
    )
    pipe.save_pretrained(bench.teacher)


@torch.no_grad()
def predict(bench: Bench, transformer: nn.Module, clips: Mapping[str, Tensor]) -> tuple[Tensor, float]:
    """The velocities of clips, and the task's loss of them."""
    inputs = bench.task.prepare(clips, sample_generators(20_000, 0, 0, len(clips["fps"])))
    denoised = bench.task.denoise(transformer, inputs.noisy_latents, inputs.noise_levels, inputs.conditioning)
    return denoised.raw_output, sum(loss.item() for loss in bench.task.losses(denoised, inputs).values())


def relative_error(velocity: Tensor, teachers: Tensor) -> float:
    """In percent."""
    return 100 * ((velocity - teachers).square().mean() / teachers.square().mean()).item()


def search_plan(bench: Bench) -> PruningPlan:
    """The plan that keeps the most importance at no more than the parameters and multiplications of `middle`."""
    transformer = load_transformer(bench, bench.teacher)
    name, config = type(transformer).__name__, plain_config(transformer)
    clips = {name: tensor[:NUM_SCORED_CLIPS] for name, tensor in bench.training_clips.items()}
    whole, _ = predict(bench, transformer, clips)
    blocks = {name: part for name, part in removable_parts(transformer).items() if part.kind == "block"}
    errors = {}
    for block, part in blocks.items():
        with removed(transformer, part):
            errors[block] = {"error": relative_error(predict(bench, transformer, clips)[0], whole)}
    kinds = dict.fromkeys(blocks, "block")
    scores = ImportanceTable(name, config, {}, {"error": False}, {"error": 0.0}, errors, kinds)
    one = {name: tensor[:1] for name, tensor in clips.items()}
    costs = count_costs(
        transformer,
        lambda: predict(bench, transformer, one),
        costed_parts(transformer),
        (FRAMES, SIZE, SIZE),
        one.values(),
    )
    rule: Any = find_plan(MIDDLE)
    most = cost_of_plan(rule.for_teacher(name, config), costs)
    budget = Budget(num_parameters=int(most["num_parameters"]), num_macs=int(most["num_macs"]))
    return plan_from_scores(scores, costs, budget=budget, weights={"error": 1.0}, name=SEARCHED)


def load_transformer(bench: Bench, folder: Path) -> Any:
    student_class: Any = bench.task.family.denoisers["transformer"].student
    return student_class.from_pretrained(folder, subfolder="transformer").eval()


def train_student(bench: Bench, seed: int, variant: Variant, args: Arguments) -> dict[str, Any]:
    """Train a student, measure it on the way, and return the measures; those of a run that is finished are read."""
    folder = bench.folder / variant.folder(seed)
    measures_file = folder / "measures.json"
    if measures_file.exists():
        return json.loads(measures_file.read_text())
    distill(
        bench.teacher,
        bench.student(variant.plan),
        folder,
        precomputed_data_dir=str(bench.folder / "latents"),
        seed=seed,
        lambda_icd=variant.lambda_icd,
        lambda_mca=0.0,
        max_train_steps=args.max_train_steps,
        train_batch_size=args.train_batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler="cosine",
        checkpointing_steps=args.measure_steps,
        gradient_checkpointing=False,
        mixed_precision="no",
    )
    teacher_velocity, _ = predict(bench, load_transformer(bench, bench.teacher), bench.held_out)
    student = load_transformer(bench, bench.student(variant.plan))
    checkpoints = {int(path.name.rpartition("-")[2]): path for path in sorted(folder.glob("checkpoint-*"))}
    errors, task_losses = {}, {}
    for step in (0, *checkpoints):
        if step:
            student.load_state_dict(load_file(checkpoints[step] / "model.safetensors"))
        velocity, task_losses[step] = predict(bench, student, bench.held_out)
        errors[step] = relative_error(velocity, teacher_velocity)
    write_file(measures_file, json.dumps({"errors": errors, "task_losses": task_losses}).encode())
    for path in checkpoints.values():
        shutil.rmtree(path)
    return json.loads(measures_file.read_text())


def make_bench(name: str, args: Arguments) -> Bench:
    """Train the teacher of a family, prune it, and write the clips that its students are trained on."""
    torch.manual_seed(0)
    pipe, folder = KINDS[name](), args.output_dir / name
    family: Any = family_of(type(pipe).__name__)
    is_flow = pipe.scheduler.config.get("prediction_type", "flow_prediction") == "flow_prediction"
    path = FlowMatchingPath() if is_flow else VPredictionPath(DiffusionSchedule.of(pipe.scheduler))
    drawn = draw_clips(args.num_train_clips + args.num_held_out_clips, torch.Generator().manual_seed(1))
    clips = {name: drawn[name] for name in family.sample_tensors}
    training_clips = {name: tensor[: args.num_train_clips] for name, tensor in clips.items()}
    held_out = {name: tensor[args.num_train_clips :] for name, tensor in clips.items()}
    bench = Bench(FlowMatchingTask(family, path), folder, training_clips, held_out)
    folder.mkdir(parents=True, exist_ok=True)
    if not (bench.teacher / "model_index.json").exists():
        train_teacher(bench, pipe, args)
    if not bench.student(MIDDLE).exists():
        prune_pipeline(bench.teacher, bench.student(MIDDLE), MIDDLE)
    if not bench.student(SEARCHED).exists():
        prune_pipeline(bench.teacher, bench.student(SEARCHED), search_plan(bench))
    write_clips(folder / "latents", training_clips)
    return bench


def run_family(name: str, args: Arguments) -> list[dict[str, Any]]:
    """A row for each run and step at which it was measured."""
    bench = make_bench(name, args)
    _, teacher_loss = predict(bench, load_transformer(bench, bench.teacher), bench.held_out)
    rows = []
    for seed in args.seeds:
        for variant in variants_of(args):
            measures = train_student(bench, seed, variant, args)
            run_of = {"family": name, "seed": seed, **variant._asdict()}
            for step, error in measures["errors"].items():
                row = {**run_of, "step": int(step), "error": error, "task_loss": measures["task_losses"][step]}
                rows.append(row | {"teacher_task_loss": teacher_loss})
    return rows


def write_table(
    rows: Sequence[Mapping[str, Any]], measure: str, variants: Mapping[Variant, Variant | None], seeds: Sequence[int]
) -> str:
    """A measure before training and after it, for each family and seed, and the differences of what is compared."""
    last = max(row["step"] for row in rows)
    at = {(row["family"], row["seed"], row["plan"], row["lambda_icd"], row["step"]): row[measure] for row in rows}
    table = []
    for family in dict.fromkeys(row["family"] for row in rows):
        ended = {variant: [at[family, seed, *variant, last] for seed in seeds] for variant in variants}
        for i, seed in enumerate(seeds):
            before = {variant.untrained: at[family, seed, *variant, 0] for variant in variants}
            after = {str(variant): ended[variant][i] for variant in variants}
            table.append({"family": family, "seed": seed, **before, **after})
        if len(seeds) == 1:
            continue
        differences: dict[str, Any] = {"family": family, "seed": "difference [95 %]"}
        for variant, other in variants.items():
            if other is not None:
                better = sum(a < b for a, b in zip(ended[variant], ended[other], strict=True))
                difference = paired_difference(ended[variant], ended[other])
                differences[str(variant)] = f"{difference}, better in {better} of {len(seeds)}"
        table.append(differences)
    return markdown_table(table)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One panel a family, a line for each run: those of a colour differ in the seed."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    figure = import_figure()(figsize=(4 * len(families), 3.5), layout="constrained")
    for axis, family in zip(figure.subplots(1, len(families), squeeze=False)[0], families, strict=True):
        for i, variant in enumerate(dict.fromkeys(Variant(row["plan"], row["lambda_icd"]) for row in rows)):
            own = [row for row in rows if (row["family"], row["plan"], row["lambda_icd"]) == (family, *variant)]
            for seed in dict.fromkeys(row["seed"] for row in own):
                line = [(row["step"], row["error"]) for row in own if row["seed"] == seed]
                label = str(variant) if seed == own[0]["seed"] else None
                axis.plot(*zip(*line, strict=True), color=f"C{i}", label=label)
        axis.set(title=family, xlabel="step", yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
    figure.axes[0].set_ylabel("error against the teacher, %")
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)


def main(args: Arguments) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    import_figure()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    which = ("output_dir", "families", "seeds", "lambda_icd")  # runs there are, each of which is as it would be alone
    settings = {name: value for name, value in asdict(args).items() if name not in which}
    keep_settings(args.output_dir, settings)
    rows = [row for name in args.families for row in run_family(name, args)]
    with (args.output_dir / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    losses = {row["family"]: row["teacher_task_loss"] for row in rows}
    teachers = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
    variants = variants_of(args)
    errors, task_losses = (write_table(rows, measure, variants, args.seeds) for measure in ("error", "task_loss"))
    table = (
        f"Error against the teacher on held-out clips, percent:\n\n{errors}\n\n"
        f"The task's own loss on them, mean square error of the velocity (teachers: {teachers}):\n\n{task_losses}\n"
    )
    (args.output_dir / "table.md").write_text(table)
    plot(rows, args.output_dir / "plot.png")
    print(table)


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
