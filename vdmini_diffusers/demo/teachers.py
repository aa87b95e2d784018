"""The demo teachers and example clips that ship with the package, for its first command to work on.

`I2V_TEACHER` is a small pipeline folder in Stable Video Diffusion's layout. Its U-Net makes a video in one step, as
SF-V's does; with `variant=MULTI_STEP` it is the one before that, as Stable Video Diffusion's own. The card
(`i2v_teacher/README.md`) says what both were made of. `load_examples` gives held-out clips.

`T2V_TEACHER` is a small pipeline folder of T2V-Turbo's kind, which makes a video of a caption in a few steps.
`T2V_BASE` has the U-Net and the scheduler that it was made of, of VideoCrafter2's kind, without what the two share.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


I2V_TEACHER = Path(__file__).parent / "i2v_teacher"
MULTI_STEP = "multi_step"
T2V_TEACHER = Path(__file__).parent / "t2v_teacher"
T2V_BASE = Path(__file__).parent / "t2v_base"
EXAMPLES = Path(__file__).parent / "examples"


class Example(NamedTuple):
    """`frames`: uint8 `(8, 64, 64, 3)`, RGB; a pipeline is given the first, and the rest are ground truth."""

    caption: str
    motion_bucket_id: int
    frames: np.ndarray


def load_examples() -> list[Example]:
    """The held-out clips: photographs and positions that the demo teacher has not seen."""
    examples = []
    for name, (caption, motion_bucket_id) in json.loads((EXAMPLES / "examples.json").read_text()).items():
        strip = np.asarray(Image.open(EXAMPLES / name).convert("RGB"))  # frames side by side
        frames = strip.reshape(strip.shape[0], -1, strip.shape[0], 3).swapaxes(0, 1)
        examples.append(Example(caption, motion_bucket_id, frames))
    return examples
