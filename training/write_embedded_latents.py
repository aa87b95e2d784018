#!/usr/bin/env python
"""Write latents of moving pictures, on which embedded models are trained, for `--precomputed_data_dir`.

python training/write_embedded_latents.py --output_dir outputs/latents
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from vdmini_diffusers.embedded import I2V_TEACHER
from vdmini_diffusers.training_clips import write_training_latents


@dataclass
class Arguments:
    output_dir: Path = field(metadata={"help": "Where the shards go. Started again, it goes on."})
    num_clips: int = field(default=1024, metadata={"help": "Clips to draw."})
    seed: int = field(default=0, metadata={"help": "Of the clips."})
    teacher: Path = field(default=I2V_TEACHER, metadata={"help": "Whose VAE and image encoder: a pipeline folder."})


if __name__ == "__main__":
    args = HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]
    write_training_latents(args.output_dir, args.teacher, args.num_clips, args.seed)
