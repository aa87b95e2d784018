"""What runs where no model is named: the demo teachers' students, if they ship, and else the teachers themselves.

Nothing else knows what these models are asked for by default.
"""

from pathlib import Path
from typing import Any, NamedTuple

from vdmini_diffusers.demo.teachers import I2V_TEACHER, T2V_SAMPLING, T2V_TEACHER


I2V_STUDENT = Path(__file__).parent / "i2v_student"
T2V_STUDENT = Path(__file__).parent / "t2v_student"
# Where the quickstart of each task writes, unless it is told otherwise.
QUICKSTART_FOLDERS = {"i2v": Path("outputs/quickstart"), "t2v": Path("outputs/quickstart_t2v")}


class DemoModel(NamedTuple):
    """Args:
    folder: of the pipeline.
    note: what it is, for whoever has not asked for it by name.
    defaults: arguments of its call where none are given.
    """

    folder: Path
    note: str
    defaults: dict[str, Any]


def demo_model(given: str) -> DemoModel:
    """The model that makes a video from an `"image"` or a `"text"`."""
    if given == "image":
        student, teacher, task, defaults = I2V_STUDENT, I2V_TEACHER, "i2v", {}
    else:
        student, teacher, task, defaults = T2V_STUDENT, T2V_TEACHER, "t2v", T2V_SAMPLING
    if (student / "model_index.json").is_file():
        return DemoModel(student, "No --model: the distilled student of the demo teacher makes it.", defaults)
    made = QUICKSTART_FOLDERS[task] / f"vdmini-{task}"
    return DemoModel(
        teacher,
        "No --model: the small demo teacher makes it, as no distilled student ships yet. To make one in minutes:"
        f" python -m vdmini_diffusers.quickstart --task {task}, and then --model {made.as_posix()}",
        defaults,
    )


def demo_teacher(given: str) -> Path:
    """The folder of the demo teacher that makes a video from an `"image"` or a `"text"`."""
    return I2V_TEACHER if given == "image" else T2V_TEACHER
