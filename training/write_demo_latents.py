#!/usr/bin/env python
"""Write latents of moving pictures, on which embedded models are trained, for `--precomputed_data_dir`.

python training/write_demo_latents.py --output_dir outputs/latents
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transformers import HfArgumentParser

from vdmini_diffusers.demo.teachers import I2V_TEACHER, T2V_TEACHER
from vdmini_diffusers.demo.training_latents import write_captioned_latents, write_decoder_clips, write_training_latents


WRITERS = {
    "image_to_video": (write_training_latents, I2V_TEACHER),
    "text_to_video": (write_captioned_latents, T2V_TEACHER),
    "vae_decoder": (write_decoder_clips, I2V_TEACHER),
}


@dataclass
class Arguments:
    output_dir: Path = field(metadata={"help": "Where the shards go. Started again, it goes on."})
    latents_for: Literal["image_to_video", "text_to_video", "vae_decoder"] = field(
        default="image_to_video", metadata={"help": "What will be trained on them."}
    )
    num_clips: int = field(default=1024, metadata={"help": "Clips to draw."})
    seed: int = field(default=0, metadata={"help": "Of the clips."})
    teacher: Path | None = field(
        default=None,
        metadata={"help": "Whose VAE and image or text encoder: a pipeline folder. By default the embedded one."},
    )


if __name__ == "__main__":
    args = HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]
    write, embedded = WRITERS[args.latents_for]
    write(args.output_dir, args.teacher or embedded, args.num_clips, args.seed)
