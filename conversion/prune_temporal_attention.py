"""F3-Pruning: find the layers, or denoising steps, whose temporal attention does least, without training.

    python conversion/prune_temporal_attention.py \
        --pretrained_model_name_or_path THUDM/CogVideoX-2b --inputs prompts.txt --alpha 0.3 --output_dir cogvideox-f3

The pipeline samples a video of each prompt or picture, while the attention to other frames is measured. The share
alpha of the layers with the least is written as a plan, `f3_plan.json`, which `load_f3` applies to the pipeline. A
call that was interrupted goes on where it was; another alpha takes no new measurement.
"""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from vdmini_diffusers.analysis.f3 import F3Error, F3Plan, save_f3_plan, temporal_layers
from vdmini_diffusers.analysis.f3.calibration import F3_SCORES, measure_pipeline
from vdmini_diffusers.analysis.f3.layers import attention_class
from vdmini_diffusers.analysis.f3.plan import num_pruned
from vdmini_diffusers.analysis.f3.pruning import F3_PLAN
from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.data.images import read_image
from vdmini_diffusers.families import Family, TrainableFamily, find_family
from vdmini_diffusers.generation.pipeline_call import chosen_options
from vdmini_diffusers.serialization.pipeline_folder import read_model_index


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Arguments:
    pretrained_model_name_or_path: str = field(metadata={"help": "Folder of a pipeline, or its id on the Hub."})
    inputs: Path = field(metadata={"help": "A text file with a prompt in each line, or a folder of pictures."})
    alpha: float = field(default=0.3, metadata={"help": "Share of layers or steps to prune, 0 to 1."})
    unit: Literal["layer", "step"] = field(default="layer", metadata={"help": "What is ranked."})
    order: Literal["lowest", "highest", "random"] = field(
        default="lowest", metadata={"help": "Whose scores go; highest and random (by --seed) are for comparison."}
    )
    part: Literal["attention", "block"] = field(
        default="attention",
        metadata={"help": "The temporal attention alone; or, in U-Nets, the whole temporal block: see the README."},
    )
    output_dir: Path | None = field(
        default=None, metadata={"help": "Where scores and plan go; by default the pipeline's own folder."}
    )
    num_frames: int | None = field(default=None, metadata={"help": "By default the pipeline's."})
    height: int | None = field(default=None, metadata={"help": "Pixels; by default the pipeline's."})
    width: int | None = field(default=None, metadata={"help": "Pixels; by default the pipeline's."})
    num_inference_steps: int | None = field(default=None, metadata={"help": "By default the pipeline's."})
    guidance_scale: float | None = field(
        default=None, metadata={"help": "Likewise; `max_guidance_scale` of image to video."}
    )
    max_queries_per_frame: int = field(
        default=64, metadata={"help": "Places of each frame at which attention is measured; 0: all, which is slow."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the first video's noise."})
    variant: str | None = field(default=None, metadata={"help": "Variant of the weight files, e.g. fp16."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    dtype: Literal["fp32", "fp16", "bf16"] = field(default="fp32", metadata={"help": "Precision of the weights."})
    device: str = field(default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "cuda or cpu."})
    cpu_offload: bool = field(default=False, metadata={"help": "Keep the models on the CPU while they do not run."})
    dry_run: bool = field(default=False, metadata={"help": "Print how many layers there are; sample nothing."})


def models_on_meta(args: Arguments, family: Family) -> dict[str, Any]:
    """The pipeline's denoisers without their weights, by component."""
    index, _ = read_model_index(args.pretrained_model_name_or_path, args.revision)
    models = {}
    for name, denoiser in family.denoisers.items():
        if not index.get(name, [None])[0]:
            continue
        config: dict[str, Any] = denoiser.student.load_config(
            args.pretrained_model_name_or_path, subfolder=name, revision=args.revision
        )
        classes = {cls.__name__: cls for cls in (denoiser.student, *denoiser.teachers)}
        with torch.device("meta"):
            models[name] = classes[config["_class_name"]].from_config(config)
    return models


def read_inputs(file: Path, given: Literal["image", "text"]) -> dict[str, Any]:
    """What each video is made from: pictures by their names, prompts by themselves."""
    if given == "image":
        if not file.is_dir():
            raise F3Error(f"This pipeline makes videos of pictures: {file} must be a folder of them.")
        found = {path.name: read_image(path) for path in sorted(file.iterdir()) if path.is_file()}
    else:
        if not file.is_file():
            raise F3Error(f"This pipeline makes videos of prompts: {file} must be a text file with one in each line.")
        lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
        found = {line: line for line in lines if line}
    if not found:
        raise F3Error(f"{file} is empty.")
    return found


def check(args: Arguments, family: TrainableFamily, models: dict[str, Any]) -> None:
    """Raises `F3Error` for what would be refused only after the videos are sampled."""
    for model in models.values():
        F3Plan.from_scores(
            attention_class(model), dict.fromkeys(temporal_layers(model), 0.0), args.alpha, part=args.part
        )
    if args.max_queries_per_frame < 0:
        raise F3Error(f"`--max_queries_per_frame` is at least 1, or 0 for all, not {args.max_queries_per_frame}.")
    own_steps = inspect.signature(family.pipeline.__call__).parameters["num_inference_steps"].default
    if args.unit == "step" and (args.num_inference_steps or own_steps) == 1:
        raise F3Error("One step cannot be ranked: take more steps, or rank layers (--unit layer).")


def main(args: Arguments) -> None:
    family = find_family(args.pretrained_model_name_or_path, args.revision)
    if not isinstance(family, TrainableFamily):
        raise F3Error(f"F3-Pruning does not know where {family.name} has temporal attention.")
    models = models_on_meta(args, family)
    check(args, family, models)
    if args.dry_run:
        for name, model in models.items():
            layers = temporal_layers(model)
            share = f", of which {num_pruned(args.alpha, len(layers))} would be pruned" if args.unit == "layer" else ""
            print(f"{name}: {len(layers)} layers with temporal attention{share}: {', '.join(layers)}")
        return
    output_dir = args.output_dir or Path(args.pretrained_model_name_or_path)
    if args.output_dir is None and not output_dir.is_dir():
        raise F3Error("The pipeline is on the Hub: say with --output_dir where the plan goes.")
    samples = read_inputs(args.inputs, family.given)
    for name in models:
        (output_dir / name).mkdir(parents=True, exist_ok=True)

    names = ("num_frames", "height", "width", "num_inference_steps", "guidance_scale")
    options = chosen_options({name: getattr(args, name) for name in names}, family.pipeline)
    pipe = family.pipeline.from_pretrained(
        args.pretrained_model_name_or_path,
        variant=args.variant,
        revision=args.revision,
        dtype=DTYPES[args.dtype],
    )
    if args.cpu_offload:
        pipe.enable_model_cpu_offload(device=args.device)
    else:
        pipe.to(args.device)
    scores = measure_pipeline(
        pipe,
        samples,
        "image" if family.given == "image" else "prompt",
        output_dir / F3_SCORES,
        options,
        args.max_queries_per_frame or None,
        args.seed,
    )
    plans = {}
    for name, measured in scores.items():
        ranked = measured.by_layer() if args.unit == "layer" else measured.by_step()
        plans[name] = F3Plan.from_scores(
            measured.model_class, ranked, args.alpha, args.unit, args.part, args.order, args.seed
        )
    for name, plan in plans.items():
        rows = [
            {args.unit: unit, "attention to other frames": score, "pruned": "yes" if unit in plan.pruned else ""}
            for unit, score in plan.scores.items()
        ]
        replaced = (output_dir / name / F3_PLAN).exists()
        file = save_f3_plan(plan, output_dir / name)
        print(f"{markdown_table(rows)}\n\nThe plan is {file}{', in the place of an earlier one' if replaced else ''}.")
    print(f'`load_f3(pipe, "{output_dir}")` applies it to the pipeline, `remove_f3` undoes it.')


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
