"""The plan that travels with a student, read back and held against the two networks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub

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
