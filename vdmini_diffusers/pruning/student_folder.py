"""The plan that travels with a student, read back and held against the two networks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from diffusers import UNet3DConditionModel

from vdmini_diffusers.pruning.plan import PruningPlan, PruningPlanError
from vdmini_diffusers.pruning.student_config import student_config


def read_plan(student_name: str) -> PruningPlan:
    """Of a pipeline that `prune_pipeline.py` wrote, a folder or a Hub id.

    Raises:
        ValueError: if there is none.
    """
    return PruningPlan.from_json_string(student_file(student_name, "unet/pruning_plan.json").read_text("utf-8"))


def student_file(student_name: str, file: str) -> Path:
    """A file of a folder, or of a repository on the Hub.

    Raises:
        ValueError: if the folder does not have it.
    """
    local = Path(student_name) / file
    if local.is_file():
        return local
    if Path(student_name).is_dir():
        raise ValueError(
            f"{local} is missing: a student comes with its plan, from which ICD's pairs follow, and its card."
            " `convert_svd_to_vdmini.py` and `convert_t2v_to_vdmini.py`, in `conversion/`, write them."
        )
    return Path(huggingface_hub.hf_hub_download(student_name, file))


def check_family(name: str, task: str) -> None:
    """Raises `ValueError` if a pipeline, a folder or a Hub id, is of another task than `"i2v"` or `"t2v"`.

    Only its U-Net's config is read.
    """
    config = UNet3DConditionModel.load_config(name, subfolder="unet")
    (block, *_) = config.get("down_block_types") or [""]
    families = {"i2v": "SpatioTemporal", "t2v": "3D"}
    found = next((family for family, ending in families.items() if block.endswith(ending)), None)
    if found != task:
        what = {"i2v": "image to video", "t2v": "text to video"}
        is_for = (
            what.get(found, "something else") if found else f"something else (its U-Net has {block or 'no blocks'})"
        )
        raise ValueError(
            f"{name} is for {is_for}, and this run is for {what[task]} (`--task {task}`): teacher, student and ODE"
            " teacher are of one task."
        )


def check_student(
    plan: PruningPlan, teacher_config: Mapping[str, Any], config: Mapping[str, Any], student_name: str
) -> None:
    """Raises `PruningPlanError` if the plan does not lead from this teacher to this student."""
    check_config(plan, student_config(plan, teacher_config), config, student_name, "U-Net")


def check_config(
    plan: PruningPlan, expected: Mapping[str, Any], config: Mapping[str, Any], student_name: str, kind: str = "VAE"
) -> None:
    """Raises `PruningPlanError` if a student's config is not the one that its plan makes of the teacher."""
    for name, value in expected.items():
        found = config.get(name)
        if _as_list(found) != _as_list(value):
            raise PruningPlanError(
                f"The plan {plan.name!r} of the student {student_name} makes a {kind} with `{name}` {value} of this"
                f" teacher; the student has {found}. Use the teacher that it was pruned from."
            )


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
