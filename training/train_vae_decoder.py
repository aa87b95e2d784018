#!/usr/bin/env python
"""Fine-tune a pruned VAE decoder (appendix A) by reconstruction, perceptual and adversarial losses.

    accelerate launch training/train_vae_decoder.py \
        --pretrained_vae_model_name_or_path path/to/vdmini-vae-pruned \
        --train_data_dir path/to/videos --output_dir vdmini-vae

The bare command is the paper's run. A YAML file with settings may be the first argument: `train_vae_decoder.py
run.yaml`.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.distillation.decoder_arguments import DecoderLossArguments, DecoderTrainingArguments
from vdmini_diffusers.trainers.vae_decoder import train_vae_decoder


@dataclass
class ModelArguments:
    help_part: ClassVar[str] = "models"

    pretrained_vae_model_name_or_path: str = field(
        metadata={
            "help": "Folder or Hub id of a VAE that conversion/prune_vae_decoder.py wrote, or of a pipeline with one."
        }
    )
    pretrained_teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "The VAE before pruning, or a pipeline with it, for distillation and for comparison."},
    )
    variant: str | None = field(
        default=None, metadata={"help": "Variant of the pruned VAE's weight files, e.g. fp16."}
    )
    revision: str | None = field(default=None, metadata={"help": "Revision of the pruned VAE on the Hub."})
    teacher_variant: str | None = field(
        default=None, metadata={"help": "Variant of the teacher's weight files, e.g. fp16."}
    )


@dataclass
class DecoderDataArguments(VideoDataArguments):
    num_frames: int = field(default=25, metadata={"help": "Frames of the longest clip (section 4.2: 14 to 25)."})


def main() -> None:
    models, args, loss_args, data_args = parse_arguments(
        (ModelArguments, DecoderTrainingArguments, DecoderLossArguments, DecoderDataArguments),
        description=(__doc__ or "").partition("\n")[0],
    )
    train_vae_decoder(
        args,
        loss_args,
        data_args,
        models.pretrained_vae_model_name_or_path,
        models.pretrained_teacher_model_name_or_path,
        models.variant,
        models.revision,
        models.teacher_variant,
    )


if __name__ == "__main__":
    run(main)
