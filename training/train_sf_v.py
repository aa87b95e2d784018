#!/usr/bin/env python
"""SF-V (Zhang et al., 2024): Stable Video Diffusion to one step, the teacher of VDMini-I2V that nobody has published.

    accelerate launch training/train_sf_v.py \
        --pretrained_model_name_or_path stabilityai/stable-video-diffusion-img2vid \
        --train_data_dir path/to/videos --output_dir sf-v

Latent adversarial diffusion: the student is the model itself, the critic's backbone its frozen encoder, data is real.
"""

from dataclasses import dataclass, field
from pathlib import Path

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.distillation.arguments import CriticArguments, ICMDArguments, TrainingArguments, setting
from vdmini_diffusers.trainers.distill import train_denoiser
from vdmini_diffusers.trainers.single_step import SingleStepPair


@dataclass
class ModelArguments:
    pretrained_model_name_or_path: str = field(
        metadata={"help": "Pipeline folder or Hub id of the multi-step model, e.g. Stable Video Diffusion."}
    )
    variant: str | None = field(default=None, metadata={"help": "Variant of the weight files, e.g. fp16."})
    revision: str | None = field(default=None, metadata={"help": "Of the model on the Hub."})


@dataclass
class SFVTrainingArguments(TrainingArguments):
    output_dir: Path = field(default=Path("sf-v"), metadata={"help": "Where checkpoints and the pipeline go."})
    max_train_steps: int = setting(50_000, "Optimiser steps (appendix C).")
    learning_rate: float = setting(1e-5, "Of the U-Net (appendix C).")
    adam_beta1: float = setting(0.5, "Of the U-Net's optimiser (SF-V).")
    use_ema: bool = setting(True, "Save the average of the weights (SF-V).")
    ema_decay: float = setting(0.95, "Of that average (SF-V).")


@dataclass
class SFVCriticArguments(CriticArguments):
    discriminator_learning_rate: float = setting(1e-4, "Of the heads (appendix C).")


def main() -> None:
    models, args, critic_args, data_args = parse_arguments(
        (ModelArguments, SFVTrainingArguments, SFVCriticArguments, VideoDataArguments)
    )
    only_data = ICMDArguments(lambda_icd=0.0, lambda_mca=0.0, lambda_data_critic=1.0)
    pair = SingleStepPair(models.pretrained_model_name_or_path, None, models.variant, models.revision)
    train_denoiser(pair, args, critic_args, only_data, data_args)


if __name__ == "__main__":
    run(main)
