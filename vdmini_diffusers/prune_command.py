"""The command line of the scripts that prune a pipeline."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from vdmini_diffusers.hub import push_folder
from vdmini_diffusers.pruning import PLANS, read_plan
from vdmini_diffusers.pruning.unet_survey import UNetSurvey


@dataclass
class ConversionArguments:
    pretrained_model_name_or_path: str = field(
        metadata={"help": "The teacher: the folder of a pipeline, or its id on the Hub."}
    )
    output_dir: str = field(metadata={"help": "The folder of the student's pipeline. It must not exist yet."})
    plan: str = field(
        default="vdmini", metadata={"help": f"What to keep: one of {', '.join(PLANS)}, or a JSON file with a plan."}
    )
    variant: str | None = field(default=None, metadata={"help": "Variant of the weight files, e.g. fp16."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the teacher on the Hub."})
    max_shard_size: str = field(default="10GB", metadata={"help": "Larger weights are split into files of this size."})
    overwrite: bool = field(default=False, metadata={"help": "Replace output_dir if it is a pipeline folder."})
    allow_pickle: bool = field(
        default=False, metadata={"help": "Read .bin files where there are no safetensors. Only from people you trust."}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Upload the folder to the Hub as well."})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "Where to, e.g. org/vdmini. By default the name of output_dir."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Print what would be removed; write nothing."})


def prune_command(description: str, survey: Callable[..., UNetSurvey], prune: Callable[..., Path]) -> None:
    """Parse the command line, and do what it asks for.

    Args:
        description: of the script, for `--help`.
        survey, prune: such as `survey_svd_pipeline` and `prune_svd_pipeline`.
    """
    parser = HfArgumentParser(ConversionArguments, description=description)
    (args,) = parser.parse_args_into_dataclasses()
    plan = read_plan(args.plan, PLANS)
    if args.dry_run:
        found = survey(args.pretrained_model_name_or_path, plan, revision=args.revision)
        print(f"teacher {found.num_teacher_parameters:,} parameters")
        print(f"student {found.num_student_parameters:,} parameters")
        for block, num_parameters in found.dropped_blocks.items():
            print(f"removes {block} ({num_parameters:,} parameters)")
        return
    folder = prune(
        args.pretrained_model_name_or_path,
        args.output_dir,
        plan=plan,
        variant=args.variant,
        revision=args.revision,
        max_shard_size=args.max_shard_size,
        overwrite=args.overwrite,
        allow_pickle=args.allow_pickle,
    )
    if args.push_to_hub:
        push_folder(folder, args.hub_model_id, "Pruned student")
