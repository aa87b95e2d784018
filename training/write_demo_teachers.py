#!/usr/bin/env python
"""Copy trained demo teachers into the package: in half precision, without code and critics, shared parts once.

python training/write_demo_teachers.py --task i2v --base outputs/i2v_teacher/pipeline --teacher outputs/sf_v
python training/write_demo_teachers.py --task t2v --base outputs/t2v_teacher/pipeline --teacher outputs/t2v_turbo
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline, StableVideoDiffusionPipeline, UNetSpatioTemporalConditionModel

from vdmini_diffusers import VDMiniI2VPipeline, VDMiniT2VPipeline
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.teachers import I2V_TEACHER, MULTI_STEP, T2V_BASE, T2V_TEACHER
from vdmini_diffusers.serialization.atomic import write_file


@dataclass
class Arguments:
    base: Path = field(metadata={"help": "Pipeline folder that train_demo_teacher.py wrote."})
    teacher: Path = field(
        metadata={"help": "What train_sf_v.py or train_t2v_turbo.py made of it; or the same folder."}
    )
    task: Literal["i2v", "t2v"] = field(default="i2v", metadata={"help": "Image or text to video."})


def write(pipe: DiffusionPipeline, folder: Path) -> None:
    """The package has the code that the index names; a copy beside the weights would go stale."""
    pipe.save_pretrained(folder)
    for copy in folder.rglob("*.py"):
        copy.unlink()
    for file in folder.rglob("*config.json"):
        without_paths(file)
    # Without torchvision, transformers names a class that its older versions do not have.
    index = without_paths(folder / "model_index.json")
    write_file(index, index.read_bytes().replace(b"CLIPImageProcessorPil", b"CLIPImageProcessor"))


def without_paths(file: Path) -> Path:
    """Configs name the folder that they were read from."""
    config = json.loads(file.read_text())
    if config.pop("_name_or_path", None) is not None:
        write_file(file, (json.dumps(config, indent=2) + "\n").encode())
    return file


def main(args: Arguments) -> None:
    half: Any = {"dtype": torch.float16}
    if args.task == "i2v":
        pipe = VDMiniI2VPipeline.from_pretrained(args.teacher, **half)  # which opens what SF-V wrote as well
        write(StableVideoDiffusionPipeline(**pipe.components), I2V_TEACHER)
        multi_step = UNetSpatioTemporalConditionModel.from_pretrained(
            args.base, subfolder="unet", variant=MULTI_STEP, **half
        )
        multi_step.save_pretrained(I2V_TEACHER / "unet", variant=MULTI_STEP)
        without_paths(I2V_TEACHER / "unet" / "config.json")
        write_file(I2V_TEACHER / "training.json", (args.base / "training.json").read_bytes())
    else:
        shared = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
        write(VDMiniT2VPipeline.from_pretrained(args.base, **shared, **half), T2V_BASE)
        write(VDMiniT2VPipeline.from_pretrained(args.teacher, **half), T2V_TEACHER)


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
