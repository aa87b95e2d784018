"""Distillation of a pruned student as a function, and the objectives that there are.

The scripts in `training/` parse their arguments and call `train_denoiser`.
"""

import os
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from vdmini_diffusers.data.arguments import (
    TextToVideoDataArguments,
    TransformerDataArguments,
    VideoDataArguments,
)
from vdmini_diffusers.distillation.arguments import (
    ICMDArguments,
    TrainingArguments,
    UNetCriticArguments,
)
from vdmini_diffusers.distillation.consistency_arguments import (
    ConsistencyArguments,
    RewardArguments,
    TextToVideoICMDArguments,
    TextToVideoTrainingArguments,
)
from vdmini_diffusers.distillation.flow_matching_arguments import (
    FlowMatchingArguments,
    FlowMatchingCriticArguments,
    FlowMatchingICMDArguments,
    FlowMatchingTrainingArguments,
)
from vdmini_diffusers.families import find_trainable_family
from vdmini_diffusers.trainers.consistency import ConsistencyPair
from vdmini_diffusers.trainers.flow_matching import FlowMatchingPair
from vdmini_diffusers.trainers.single_step import SingleStepPair
from vdmini_diffusers.trainers.teacher_and_student import TeacherAndStudent
from vdmini_diffusers.trainers.train_denoiser import train_denoiser


class Objective(NamedTuple):
    """A training objective: the pairs of models that it trains, and the groups of its settings.

    Args:
        arguments: the groups for the run, the critics, ICMD and the data, in this order.
        own: further groups, which `pair` takes.
    """

    pair: type[TeacherAndStudent]
    arguments: tuple[type[Any], type[Any], type[Any], type[Any]]
    own: tuple[type[Any], ...] = ()


OBJECTIVES = {
    "single_step": Objective(
        SingleStepPair, (TrainingArguments, UNetCriticArguments, ICMDArguments, VideoDataArguments)
    ),
    "consistency": Objective(
        ConsistencyPair,
        (TextToVideoTrainingArguments, UNetCriticArguments, TextToVideoICMDArguments, TextToVideoDataArguments),
        own=(ConsistencyArguments, RewardArguments),
    ),
    "flow_matching": Objective(
        FlowMatchingPair,
        (
            FlowMatchingTrainingArguments,
            FlowMatchingCriticArguments,
            FlowMatchingICMDArguments,
            TransformerDataArguments,
        ),
        own=(FlowMatchingArguments,),
    ),
}


def distill(
    pretrained_teacher_model_name_or_path: str | os.PathLike,
    pretrained_student_model_name_or_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    variant: str | None = None,
    revision: str | None = None,
    student_variant: str | None = None,
    **settings: Any,
) -> Path:
    """Train a pruned student towards its teacher by ICMD (section 3.3), and write the whole pipeline.

        distill("path/to/sf-v", "vdmini-i2v-pruned", "vdmini-i2v", train_data_dir="path/to/videos")

    Args:
        pretrained_teacher_model_name_or_path: folder or Hub id of the unpruned pipeline.
        pretrained_student_model_name_or_path: folder or Hub id of a pipeline that `prune_pipeline` wrote. Its family
            decides on the objective.
        output_dir: folder for checkpoints and the finished pipeline. Called again, an interrupted run goes on from
            there.
        variant: variant of the teacher's weight files, e.g. `"fp16"`.
        revision: revision of the teacher on the Hub.
        student_variant: variant of the student's weight files.
        settings: the flags of `training/train_icmd.py` under their names, e.g. `max_train_steps=1000`.

    Returns:
        `output_dir`.

    Raises:
        TypeError: for a setting that does not exist.
        Exception: as `train_denoiser`.
    """
    teacher, student = str(pretrained_teacher_model_name_or_path), str(pretrained_student_model_name_or_path)
    objective = OBJECTIVES[find_trainable_family(student).task]
    settings = {**settings, "output_dir": Path(output_dir)}
    groups = (*objective.arguments, *objective.own)
    known = {kind: {field.name for field in fields(kind)} for kind in groups}
    if unknown := sorted(settings.keys() - set().union(*known.values())):
        raise TypeError(f"`distill` has no setting {unknown[0]!r}; see `training/train_icmd.py --help`.")
    run, critic, icmd, data, *own = (
        kind(**{name: settings[name] for name in names & settings.keys()}) for kind, names in known.items()
    )
    pair = objective.pair(teacher, student, *own, variant=variant, revision=revision, student_variant=student_variant)
    return train_denoiser(pair, run, critic, icmd, data)
