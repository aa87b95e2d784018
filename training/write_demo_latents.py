#!/usr/bin/env python
"""Write latents of moving pictures, on which demo teachers and their students train, for `--precomputed_data_dir`.

python training/write_demo_latents.py --output_dir outputs/latents
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.teachers import I2V_TEACHER, T2V_TEACHER
from vdmini_diffusers.demo.training_latents import write_decoder_clips, write_training_latents


WRITERS = {
    "image_to_video": (write_training_latents, I2V_TEACHER),
    "text_to_video": (write_training_latents, T2V_TEACHER),
    "vae_decoder": (write_decoder_clips, I2V_TEACHER),
}


@dataclass
class Arguments:
    output_dir: Path = field(metadata={"help": "Folder of the shards. An interrupted run continues there."})
    latents_for: Literal["image_to_video", "text_to_video", "vae_decoder"] = field(
        default="image_to_video", metadata={"help": "What the latents will train."}
    )
    num_clips: int = field(default=1024, metadata={"help": "Clips to draw."})
    seed: int = field(default=0, metadata={"help": "Seed of the clips."})
    teacher: Path | None = field(
        default=None,
        metadata={"help": "Pipeline folder of the VAE and the image or text encoder. By default the demo teacher's."},
    )


def main(args: Arguments) -> None:
    write, demo_teacher = WRITERS[args.latents_for]
    write(args.output_dir, args.teacher or demo_teacher, args.num_clips, args.seed)


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
