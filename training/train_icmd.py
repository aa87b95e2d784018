#!/usr/bin/env python
"""ICMD distillation (section 3.3): train a pruned student to recover its teacher's quality.

    accelerate launch training/train_icmd.py \
        --pretrained_teacher_model_name_or_path path/to/sf-v \
        --pretrained_student_model_name_or_path path/to/vdmini-i2v-pruned \
        --train_data_dir path/to/videos --output_dir vdmini-i2v

    accelerate launch training/train_icmd.py --task t2v \
        --pretrained_teacher_model_name_or_path path/to/t2v-turbo-v2 \
        --pretrained_student_model_name_or_path path/to/vdmini-t2v-pruned \
        --ode_teacher_model_name_or_path path/to/videocrafter2 \
        --train_data_dir path/to/videos --output_dir vdmini-t2v

    accelerate launch training/train_icmd.py --task t2v_hy \
        --pretrained_teacher_model_name_or_path hunyuanvideo-community/HunyuanVideo \
        --pretrained_student_model_name_or_path path/to/vdmini-t2v-hy-pruned \
        --precomputed_data_dir path/to/latents --output_dir vdmini-t2v-hy

The bare commands are the paper's runs. A YAML file with settings may be the first argument: `train_icmd.py run.yaml`.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal

from vdmini_diffusers.cli.script import named_settings, parse_arguments, peek_argument, run
from vdmini_diffusers.families import find_trainable_family
from vdmini_diffusers.trainers.distill import OBJECTIVES, Objective
from vdmini_diffusers.trainers.train_denoiser import train_denoiser


TASKS = {"i2v": "single_step", "t2v": "consistency", "t2v_hy": "flow_matching"}


@dataclass
class ModelArguments:
    help_part: ClassVar[str] = "models"

    pretrained_teacher_model_name_or_path: str = field(
        metadata={"help": "Pipeline folder or Hub id of the unpruned teacher: SF-V, T2V-Turbo-v2, HunyuanVideo."}
    )
    pretrained_student_model_name_or_path: str = field(
        metadata={"help": "Pipeline folder or Hub id of the pruned student, written by a script in conversion/."}
    )
    task: Literal["i2v", "t2v", "t2v_hy"] | None = field(
        default=None,
        metadata={
            "help": "Image to video; text to video by a U-Net; or by a transformer: HunyuanVideo, Wan, CogVideoX. By"
            " default what the student was made for. Each task has settings of its own, see --task t2v --help."
        },
    )
    variant: str | None = field(default=None, metadata={"help": "Variant of the teacher's weight files, e.g. fp16."})
    revision: str | None = field(default=None, metadata={"help": "Revision of the teacher on the Hub."})
    student_variant: str | None = field(
        default=None, metadata={"help": "Variant of the student's weight files, e.g. fp16."}
    )


def find_objective() -> Objective:
    """That of the task that is named, or of the student's family. It decides which settings there are.

    Raises:
        ValueError: if the student does not open, and settings of its task would be called unknown.
    """
    if task := peek_argument("task", default=""):
        return OBJECTIVES[TASKS.get(task, "single_step")]  # the parser refuses any other task
    student = peek_argument("pretrained_student_model_name_or_path", default="")
    try:
        return OBJECTIVES[find_trainable_family(student).task]
    except (OSError, ValueError) as error:
        objective = OBJECTIVES["single_step"]
        known = {setting.name for kind in (ModelArguments, *objective.arguments) for setting in fields(kind)}
        if not student or named_settings() <= known:  # what is wrong is said later
            return objective
        where = "" if Path(student).exists() else " is not a folder here, and does not open from the Hub"
        raise ValueError(f"`--pretrained_student_model_name_or_path` {student}{where}: {error}") from error


def main() -> None:
    objective = find_objective()
    models, args, critic_args, icmd_args, data_args, *own = parse_arguments(
        (ModelArguments, *objective.arguments, *objective.own), description=(__doc__ or "").partition("\n")[0]
    )
    pair = objective.pair(
        models.pretrained_teacher_model_name_or_path,
        models.pretrained_student_model_name_or_path,
        *own,
        variant=models.variant,
        revision=models.revision,
        student_variant=models.student_variant,
    )
    train_denoiser(pair, args, critic_args, icmd_args, data_args)


if __name__ == "__main__":
    run(main)
