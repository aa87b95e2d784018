#!/usr/bin/env python
"""ICMD distillation (section 3.3): give a pruned student its teacher's quality back.

    accelerate launch training/train_icmd.py \
        --pretrained_teacher_model_name_or_path path/to/sf-v \
        --pretrained_student_model_name_or_path path/to/vdmini-i2v-pruned \
        --train_data_dir path/to/videos --output_dir vdmini-i2v

The bare command is the paper's run. A YAML file with settings may be the first argument: `train_icmd.py run.yaml`.
"""

from dataclasses import dataclass, field

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.distillation.arguments import (
    CriticArguments,
    ICMDArguments,
    TrainingArguments,
    parse_arguments,
)
from vdmini_diffusers.train_image_to_video import train_image_to_video


@dataclass
class ModelArguments:
    pretrained_teacher_model_name_or_path: str = field(
        metadata={"help": "Pipeline folder or Hub id of the unpruned one-step teacher (SF-V)."}
    )
    pretrained_student_model_name_or_path: str = field(
        metadata={"help": "Pipeline folder or Hub id of the student that conversion/convert_svd_to_vdmini.py wrote."}
    )
    variant: str | None = field(default=None, metadata={"help": "Of the teacher's weight files, e.g. fp16."})
    revision: str | None = field(default=None, metadata={"help": "Of the teacher on the Hub."})
    student_variant: str | None = field(default=None, metadata={"help": "Of the student's weight files, e.g. fp16."})


def main() -> None:
    models, args, critic_args, icmd_args, data_args = parse_arguments(
        (ModelArguments, TrainingArguments, CriticArguments, ICMDArguments, VideoDataArguments)
    )
    train_image_to_video(
        args,
        critic_args,
        icmd_args,
        data_args,
        models.pretrained_teacher_model_name_or_path,
        models.pretrained_student_model_name_or_path,
        models.variant,
        models.revision,
        models.student_variant,
    )


if __name__ == "__main__":
    main()
