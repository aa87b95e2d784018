"""The command line of the scripts that prune a pipeline."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from vdmini_diffusers.cli.script import parse_arguments
from vdmini_diffusers.families import Family, TrainableFamily, find_family
from vdmini_diffusers.pruning import PLANS
from vdmini_diffusers.pruning.cost import forward_cost
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline, survey_pipeline
from vdmini_diffusers.pruning.survey import Survey
from vdmini_diffusers.serialization.repository import check_push, push_folder


@dataclass
class ConversionArguments:
    pretrained_model_name_or_path: str = field(
        metadata={"help": "The teacher: the folder of a pipeline, or its id on the Hub."}
    )
    output_dir: str = field(metadata={"help": "The folder of the student's pipeline. It must not exist yet."})
    plan: str | None = field(
        default=None,
        metadata={
            "help": f"What to keep: one of {', '.join(PLANS)}, or a JSON file with a plan. By default the paper's for"
            " the teachers of the paper, and for others middle."
        },
    )


@dataclass
class FolderArguments:
    """How every script that prunes reads the teacher's folder and writes the student's."""

    variant: str | None = field(default=None, metadata={"help": "Variant of the weight files, e.g. fp16."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the teacher on the Hub."})
    max_shard_size: str = field(default="10GB", metadata={"help": "Larger weights are split into files of this size."})
    overwrite: bool = field(default=False, metadata={"help": "Replace output_dir if it is what this script writes."})
    allow_pickle: bool = field(
        default=False,
        metadata={"help": "Read .bin files where there are no safetensors. Only do this for people you trust."},
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Upload the folder to the Hub as well."})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "Repository to upload to, e.g. org/vdmini. By default the name of output_dir."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Print what would be removed; write nothing."})

    def __post_init__(self) -> None:
        try:  # as it will be read when all else is done
            split_state_dict_into_shards_factory(
                {}, get_storage_size=len, filename_pattern="{suffix}", max_shard_size=self.max_shard_size
            )
        except ValueError as error:
            raise ValueError(f"`--max_shard_size`: {error}") from error

    def check_push(self, output_dir: str) -> None:
        """Make the repository that will be uploaded to, if one will be. Raises as `check_push`."""
        if self.push_to_hub and not self.dry_run:
            check_push(self.hub_model_id or Path(output_dir).resolve().name)


@dataclass
class TransformerArguments:
    transformer_only: bool = field(
        default=False,
        metadata={"help": "Write the transformer without the rest of the pipeline, which stays where it is."},
    )
    original_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "The transformer's weights as its authors published them, e.g. HunyuanVideo's"
            " mp_rank_00_model_states.pt. The pipeline gives all else."
        },
    )


def prune_command(description: str, family: Family | None = None) -> None:
    """Parse the command line, and prune a teacher or print what would be removed.

    Args:
        description: the script's, for `--help`.
        family: the only family that is accepted. By default all are, with the flags for transformers.
    """
    kinds = (ConversionArguments, FolderArguments)
    args, files, *more = parse_arguments(kinds if family else (*kinds, TransformerArguments), description)
    prune_and_report(args, files, *more, family=family)


def prune_and_report(
    args: ConversionArguments,
    files: FolderArguments,
    transformer: TransformerArguments | None = None,
    family: Family | None = None,
) -> None:
    """Prune a teacher, or print what would be removed; print what came out, and the next command."""
    transformer = transformer or TransformerArguments()
    family = family or find_family(args.pretrained_model_name_or_path, files.revision)
    if files.dry_run:
        surveys = survey_pipeline(
            args.pretrained_model_name_or_path,
            args.plan,
            family=family,
            denoisers_only=transformer.transformer_only,
            variant=files.variant if transformer.original_checkpoint is None else None,
            revision=files.revision,
            allow_pickle=files.allow_pickle,
        )
        for name, survey in surveys.items():
            print(f"{name}:")
            print_survey(survey)
            if family.example_inputs is not None:
                print_flops(survey, family.example_inputs, family.evaluated_clip)
        return
    files.check_push(args.output_dir)
    folder = prune_pipeline(
        args.pretrained_model_name_or_path,
        args.output_dir,
        args.plan,
        family=family,
        denoisers_only=transformer.transformer_only,
        original_checkpoint=transformer.original_checkpoint,
        variant=files.variant,
        revision=files.revision,
        max_shard_size=files.max_shard_size,
        overwrite=files.overwrite,
        allow_pickle=files.allow_pickle,
    )
    for name in family.denoisers:
        if (folder / name).is_dir():
            print_parameters(folder / name, name)
    what = "transformer" if transformer.transformer_only else "pipeline"
    print(f"The student's {what} is in {folder}; its README.md shows how to open it.")
    if isinstance(family, TrainableFamily) and not transformer.transformer_only:
        print_training(args, files, family)
    if files.push_to_hub:
        repository = push_folder(folder, files.hub_model_id, "Pruned student")
        print(f"It is on the Hub as {repository}.")


def print_training(args: ConversionArguments, files: FolderArguments, family: TrainableFamily) -> None:
    """Print the commands that encode videos once and train the student on the latents."""
    print("The next step is encoding videos, once for all runs:")
    latents = f"{args.output_dir}-latents"
    print_command(
        "accelerate launch training/precompute_latents.py",
        latents_for=f"{family.given}_to_video",
        pretrained_model_name_or_path=args.pretrained_model_name_or_path,
        variant=files.variant,
        revision=files.revision,
        train_data_dir="FOLDER_OF_VIDEOS",
        output_dir=latents,
    )
    print("Clips have the paper's size unless --num_frames, --height and --width say otherwise.")
    weights = {"variant": files.variant, "revision": files.revision}
    teacher = args.pretrained_model_name_or_path
    if family.task == "single_step" and not (Path(teacher) / "training.json").is_file():
        print(
            "The paper's teacher makes a video in one step. Such a one is made of this model, on the same latents; if"
            " it is one already, leave this out and name its multi-step model as --critic_backbone below:"
        )
        one_step = f"{args.output_dir}-teacher"
        print_command(
            "accelerate launch training/train_sf_v.py",
            pretrained_model_name_or_path=teacher,
            **weights,
            precomputed_data_dir=latents,
            output_dir=one_step,
        )
        teacher, weights = one_step, {}
    print("Then comes training, for which training/configs/ has recipes by machine:")
    print_command(
        "accelerate launch training/train_icmd.py",
        pretrained_teacher_model_name_or_path=teacher,
        pretrained_student_model_name_or_path=args.output_dir,
        ode_teacher_model_name_or_path="MULTI_STEP_MODEL" if family.task == "consistency" else None,
        **weights,
        student_variant=files.variant,
        precomputed_data_dir=latents,
        output_dir=f"{args.output_dir}-distilled",
    )


def print_survey(survey: Survey, part: str = "") -> None:
    """Print what a plan would leave of a network, or of its `part` ("'s decoder"), and what it would remove."""
    print(f"teacher{part} {survey.num_teacher_parameters:,} parameters")
    print(f"student{part} {survey.num_student_parameters:,} parameters")
    for block, num_parameters in survey.dropped_blocks.items():
        print(f"removes {block} ({num_parameters:,} parameters)")


def print_flops(survey: Survey, example_inputs: Callable[..., dict[str, Any]], clip: tuple[int, int, int]) -> None:
    """Print the operations of a forward pass of both networks, for a clip of so many frames, its height and width."""
    num_frames, height, width = clip
    for what, network in (("teacher", survey.teacher), ("student", survey.student)):
        torch.nn.Module.to(network, "meta")  # diffusers makes mixing factors on the CPU, whatever the device
        with torch.device("meta"):
            cost = forward_cost(network, example_inputs(network.config, num_frames, height, width))[""]
        print(f"{what} {cost.num_flops / 1e12:,.1f} TFLOP for {num_frames} frames of {width} x {height} pixels")


def print_parameters(folder: Path, what: str) -> None:
    """Print the numbers of parameters that the provenance in `folder` records."""
    record = json.loads((folder / "pruning_provenance.json").read_text(encoding="utf-8"))
    before, after = (record["num_parameters"][network] for network in ("teacher", "student"))
    print(f"{what}: {before:,} parameters before, {after:,} after ({after / before:.1%})")


def print_command(command: str, **flags: str | None) -> None:
    """Print a command for the shell with its flags, one a line; flags of None are left out."""
    lines = [f"--{name} {shlex.quote(value)}" for name, value in flags.items() if value is not None]
    print(" \\\n    ".join([command, *lines]))
