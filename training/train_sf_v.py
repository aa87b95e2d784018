#!/usr/bin/env python
"""SF-V (Zhang et al., 2024): distil Stable Video Diffusion to one step. Its unpublished result teaches VDMini-I2V.

    accelerate launch training/train_sf_v.py \
        --pretrained_model_name_or_path stabilityai/stable-video-diffusion-img2vid \
        --train_data_dir path/to/videos --output_dir sf-v

This is latent adversarial distillation: the student is the model itself, the critic's backbone is its frozen encoder,
and the data are the critic's real samples.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.distillation.arguments import ICMDArguments, TrainingArguments, UNetCriticArguments, setting
from vdmini_diffusers.trainers.single_step import SingleStepPair
from vdmini_diffusers.trainers.train_denoiser import train_denoiser


@dataclass
class ModelArguments:
    help_part: ClassVar[str] = "models"

    pretrained_model_name_or_path: str = field(
        metadata={"help": "Pipeline folder or Hub id of the multi-step model, e.g. Stable Video Diffusion."}
    )
    variant: str | None = field(default=None, metadata={"help": "Variant of the weight files, e.g. fp16."})
    revision: str | None = field(default=None, metadata={"help": "Revision of the model on the Hub."})


@dataclass
class SFVTrainingArguments(TrainingArguments):
    output_dir: Path = field(
        default=Path("sf-v"), metadata={"help": "Folder for checkpoints and the finished pipeline."}
    )
    max_train_steps: int = setting(50_000, "Number of optimiser steps (appendix C).")
    learning_rate: float = setting(1e-5, "Learning rate of the U-Net (appendix C).")
    adam_beta1: float = setting(0.5, "First beta of the U-Net's optimiser (SF-V).")
    use_ema: bool = setting(True, "Save an exponential moving average of the weights (SF-V).")
    ema_decay: float = setting(0.95, "Decay rate of the exponential moving average (SF-V).")


@dataclass
class SFVCriticArguments(UNetCriticArguments):
    discriminator_learning_rate: float = setting(1e-4, "Learning rate of the critic's heads (appendix C).")


def main() -> None:
    models, args, critic_args, data_args = parse_arguments(
        (ModelArguments, SFVTrainingArguments, SFVCriticArguments, VideoDataArguments),
        description=(__doc__ or "").partition("\n")[0],
    )
    only_data = ICMDArguments(lambda_icd=0.0, lambda_mca=0.0, lambda_data_critic=1.0)
    pair = SingleStepPair(models.pretrained_model_name_or_path, None, models.variant, models.revision)
    train_denoiser(pair, args, critic_args, only_data, data_args)


if __name__ == "__main__":
    run(main)
