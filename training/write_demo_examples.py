#!/usr/bin/env python
"""Write the held-out clips that ship as `vdmini_diffusers/demo/examples`: strips of 16 frames.

pip install -e '.[teacher]' && python training/write_demo_examples.py
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.scenes import Scene, draw_clip, middle_view
from vdmini_diffusers.demo.teachers import EXAMPLES


# One for each kind of motion, of objects that stand out from their places, before any model was run on them.
CHOSEN = {
    "car.png": Scene("car", "chelsea", "moves right", "quickly"),
    "octopus.png": Scene("octopus", "hubble_deep_field", "moves up", "slowly"),
    "pizza.png": Scene("pizza", "chelsea", "turns left", "quickly"),
    "ball.png": Scene("ball", "rocket", "bounces", "quickly"),
}


@dataclass
class Arguments:
    output_dir: Path = field(
        default=EXAMPLES, metadata={"help": "Folder of the strips; by default the package's own."}
    )


def main(args: Arguments) -> None:
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, scene in CHOSEN.items():
        x, y = scene.held_out_start
        frames = draw_clip(scene, replace(middle_view(scene.place), x=x, y=y))
        Image.fromarray(np.concatenate(list(frames), axis=1)).save(args.output_dir / name, optimize=True)
    captions = {name: scene.caption for name, scene in CHOSEN.items()}
    (args.output_dir / "examples.json").write_text(json.dumps(captions, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
