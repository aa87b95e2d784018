"""The demo teachers and example clips that ship with the package, for its first command to work on.

`I2V_TEACHER` is a small pipeline folder in Stable Video Diffusion's layout. Its U-Net makes a video in one step, as
SF-V's does; with `variant=MULTI_STEP` it is the one before that, as Stable Video Diffusion's own. `load_examples`
gives held-out clips.

`T2V_TEACHER` is a small pipeline folder of T2V-Turbo's kind, which makes a video of a caption in a few steps.
`T2V_BASE` has the U-Net and the scheduler that it was made of, of VideoCrafter2's kind, without what the two share.

Each folder's card (`README.md`) says what the weights were made of, and which gates they passed.
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
# T2V-Turbo's are 7.5, 5 to 15, and 50 of 1,000: a small teacher's guidance is weaker, and its steps are fewer.
T2V_SAMPLING = {"num_inference_steps": 4, "guidance_scale": 1.0}
T2V_DISTILLATION = {"w_min": 0.0, "w_max": 2.0, "num_ddim_steps": 20}
EXAMPLES = Path(__file__).parent / "examples"


class Example(NamedTuple):
    """`frames`: uint8 `(16, 64, 64, 3)`, RGB. A pipeline is given the first; the rest is one of the ways to go on."""

    caption: str
    frames: np.ndarray


def load_examples() -> list[Example]:
    """Held-out clips: the object is where, in this place, no clip to train students on has it."""
    examples = []
    for name, caption in json.loads((EXAMPLES / "examples.json").read_text()).items():
        strip = np.asarray(Image.open(EXAMPLES / name).convert("RGB"))  # frames side by side
        frames = strip.reshape(strip.shape[0], -1, strip.shape[0], 3).swapaxes(0, 1)
        examples.append(Example(caption, frames))
    return examples
