#!/usr/bin/env python
"""Write the held-out clips that ship as `vdmini_diffusers/demo/examples`: strips of eight frames.

pip install -e '.[teacher]' && python training/write_demo_examples.py
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.moving_pictures import DEFAULT_MOTION_BUCKET_ID, MovingPictures
from vdmini_diffusers.demo.teachers import EXAMPLES


# Chosen among the first draws of each photograph and kind for being easy to see, before any model was run on them.
CHOSEN = {
    "flower.png": ("flower.jpg", "push-in", 3),
    "coffee.png": ("coffee", "push-in", 0),
    "blue_car.png": ("flower.jpg", "drive", 4),
    "balloon.png": ("coffee", "drive", 0),
}


@dataclass
class Arguments:
    output_dir: Path = field(
        default=EXAMPLES, metadata={"help": "Folder of the strips; by default the package's own."}
    )


def main(args: Arguments) -> None:
    args.output_dir.mkdir(parents=True, exist_ok=True)
    described = {}
    for name, (photo, kind, draw) in CHOSEN.items():
        rng = np.random.default_rng((photo == "coffee", kind == "drive", draw))
        clip = MovingPictures((photo,)).clip(rng, DEFAULT_MOTION_BUCKET_ID, kind)
        Image.fromarray(np.concatenate(list(clip.frames), axis=1)).save(args.output_dir / name, optimize=True)
        described[name] = [clip.caption, clip.motion_bucket_id]
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in described.items())
    (args.output_dir / "examples.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
