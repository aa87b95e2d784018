#!/usr/bin/env python
"""ICMD distillation (section 3.3): give a pruned student its teacher's quality back.

    accelerate launch training/train_icmd.py \
        --pretrained_teacher_model_name_or_path path/to/sf-v \
        --pretrained_student_model_name_or_path path/to/vdmini-i2v-pruned \
        --train_data_dir path/to/videos --output_dir vdmini-i2v

    accelerate launch training/train_icmd.py --task t2v \
        --pretrained_teacher_model_name_or_path path/to/t2v-turbo-v2 \
        --pretrained_student_model_name_or_path path/to/vdmini-t2v-pruned \
        --ode_teacher_model_name_or_path path/to/videocrafter2 \
        --train_data_dir path/to/videos --output_dir vdmini-t2v

The bare commands are the paper's runs. A YAML file with settings may be the first argument: `train_icmd.py run.yaml`.
"""

from dataclasses import dataclass, field
from typing import Literal

from vdmini_diffusers.data.arguments import TextToVideoDataArguments, VideoDataArguments
from vdmini_diffusers.distillation.arguments import (
    CriticArguments,
    ICMDArguments,
    TrainingArguments,
    asked_for,
    parse_arguments,
)
from vdmini_diffusers.distillation.consistency_arguments import (
    ConsistencyArguments,
    RewardArguments,
    TextToVideoICMDArguments,
    TextToVideoTrainingArguments,
)
from vdmini_diffusers.image_to_video import ImageToVideo
from vdmini_diffusers.text_to_video import TextToVideo
from vdmini_diffusers.train_unet import train_unet


@dataclass
class ModelArguments:
    pretrained_teacher_model_name_or_path: str = field(
        metadata={"help": "Pipeline folder or Hub id of the unpruned teacher (SF-V; T2V-Turbo-v2)."}
    )
    pretrained_student_model_name_or_path: str = field(
        metadata={"help": "Pipeline folder or Hub id of the pruned student, as a script in conversion/ wrote it."}
    )
    task: Literal["i2v", "t2v"] = field(
        default="i2v", metadata={"help": "Image or text to video. Each has settings of its own: --task t2v --help."}
    )
    variant: str | None = field(default=None, metadata={"help": "Of the teacher's weight files, e.g. fp16."})
    revision: str | None = field(default=None, metadata={"help": "Of the teacher on the Hub."})
    student_variant: str | None = field(default=None, metadata={"help": "Of the student's weight files, e.g. fp16."})


def main() -> None:
    if asked_for("task", default="i2v") == "t2v":
        kinds = (TextToVideoTrainingArguments, CriticArguments, TextToVideoICMDArguments, TextToVideoDataArguments)
        kinds = (ModelArguments, *kinds, ConsistencyArguments, RewardArguments)
    else:
        kinds = (ModelArguments, TrainingArguments, CriticArguments, ICMDArguments, VideoDataArguments)
    models, args, critic_args, icmd_args, data_args, *own = parse_arguments(kinds)
    base_model = TextToVideo if models.task == "t2v" else ImageToVideo
    base = base_model(
        models.pretrained_teacher_model_name_or_path,
        models.pretrained_student_model_name_or_path,
        *own,
        variant=models.variant,
        revision=models.revision,
        student_variant=models.student_variant,
    )
    train_unet(base, args, critic_args, icmd_args, data_args)


if __name__ == "__main__":
    main()
