#!/usr/bin/env python
"""Copy the trained text-to-video teachers into the package: in half precision, without code, shared parts once.

python training/write_demo_t2v_teachers.py --base outputs/t2v_teacher/pipeline --teacher outputs/t2v_turbo
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from vdmini_diffusers import VDMiniT2VPipeline
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.teachers import T2V_BASE, T2V_TEACHER


@dataclass
class Arguments:
    base: Path = field(metadata={"help": "Pipeline folder that train_demo_t2v_teacher.py wrote."})
    teacher: Path = field(metadata={"help": "Pipeline folder that train_t2v_turbo.py wrote from it."})


def write(pipe: VDMiniT2VPipeline, folder: Path) -> None:
    """The package has the code that the index names; a copy beside the weights would go stale."""
    pipe.save_pretrained(folder)
    for copy in folder.rglob("*.py"):
        copy.unlink()


def main(args: Arguments) -> None:
    shared = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    write(VDMiniT2VPipeline.from_pretrained(args.base, **shared, dtype=torch.float16), T2V_BASE)
    write(VDMiniT2VPipeline.from_pretrained(args.teacher, dtype=torch.float16), T2V_TEACHER)


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
