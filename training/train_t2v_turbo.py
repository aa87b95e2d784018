#!/usr/bin/env python
"""T2V-Turbo (Li et al., 2024): distil a text-to-video model to a few steps (Eq. 3), as the teacher of VDMini-T2V.

    accelerate launch training/train_t2v_turbo.py \
        --pretrained_model_name_or_path path/to/videocrafter2 \
        --train_data_dir path/to/videos --output_dir t2v-turbo

The student is the model itself with a new embedding of the guidance weight; the frozen model solves the ODE.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.data.arguments import TextToVideoDataArguments
from vdmini_diffusers.distillation.arguments import CriticArguments, setting
from vdmini_diffusers.distillation.consistency_arguments import (
    ConsistencyArguments,
    RewardArguments,
    TextToVideoICMDArguments,
    TextToVideoTrainingArguments,
)
from vdmini_diffusers.trainers.consistency import ConsistencyPair
from vdmini_diffusers.trainers.train_denoiser import train_denoiser


@dataclass
class ModelArguments:
    help_part: ClassVar[str] = "models"

    pretrained_model_name_or_path: str = field(
        metadata={"help": "Pipeline folder or Hub id of a model that is guided at run time, e.g. VideoCrafter2."}
    )
    variant: str | None = field(default=None, metadata={"help": "Variant of the weight files, e.g. fp16."})
    revision: str | None = field(default=None, metadata={"help": "Revision of the model on the Hub."})
    time_cond_proj_dim: int = field(default=256, metadata={"help": "Channels of the guidance weight's embedding."})
    motion_cond_proj_dim: int = field(
        default=256, metadata={"help": "Channels of the embedding of motion guidance; 0 for a model without one."}
    )


@dataclass
class T2VTurboTrainingArguments(TextToVideoTrainingArguments):
    output_dir: Path = field(
        default=Path("t2v-turbo"), metadata={"help": "Folder for checkpoints and the finished pipeline."}
    )
    max_train_steps: int = setting(8_000, "Number of optimiser steps (T2V-Turbo-v2).")
    train_batch_size: int = setting(3, "Videos per process and step (T2V-Turbo-v2).")


def main() -> None:
    models, args, consistency_args, reward_args, data_args = parse_arguments(
        (ModelArguments, T2VTurboTrainingArguments, ConsistencyArguments, RewardArguments, TextToVideoDataArguments),
        description=(__doc__ or "").partition("\n")[0],
    )
    if models.motion_cond_proj_dim < 0 or models.time_cond_proj_dim < 4:
        raise ValueError("`--time_cond_proj_dim` must be at least 4, `--motion_cond_proj_dim` 0 or as much.")
    pair = ConsistencyPair(
        models.pretrained_model_name_or_path,
        None,
        consistency_args,
        reward_args,
        models.variant,
        models.revision,
        guidance_dims=(models.time_cond_proj_dim, models.motion_cond_proj_dim or None),
    )
    alone = TextToVideoICMDArguments(lambda_icd=0.0, lambda_mca=0.0, lambda_data_critic=0.0)
    train_denoiser(pair, args, CriticArguments(), alone, data_args)


if __name__ == "__main__":
    run(main)
