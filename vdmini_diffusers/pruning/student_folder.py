"""The plan that travels with a student, read back and compared with the two networks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdmini_diffusers.pruning.plans import PruningPlan, PruningPlanError
from vdmini_diffusers.pruning.presets import read_plan_file
from vdmini_diffusers.serialization.repository import fetch_file


def read_plan(student_name: str, subfolder: str) -> PruningPlan:
    """The plan of a pipeline that `prune_pipeline` wrote, a folder or a Hub id.

    Args:
        subfolder: the denoiser's.

    Raises:
        ValueError: if there is none.
    """
    return read_plan_file(student_file(student_name, f"{subfolder}/pruning_plan.json"))


def student_file(student_name: str, file: str) -> Path:
    """A file of a student, a folder or a Hub id.

    Raises:
        ValueError: if the folder does not have it.
    """
    try:
        return fetch_file(student_name, file)
    except FileNotFoundError as error:
        raise ValueError(
            f"{error} A student comes with its plan, from which ICD's pairs follow, and its card."
            " `convert_svd_to_vdmini.py` and `convert_t2v_to_vdmini.py`, in `conversion/`, write them."
        ) from error


def check_student(
    plan: PruningPlan, teacher_config: Mapping[str, Any], student_config: Mapping[str, Any], student_name: str
) -> None:
    """Raises `PruningPlanError` if the plan does not lead from this teacher to this student."""
    for name, value in plan.student_config(teacher_config).items():
        found = student_config.get(name)
        if _as_list(found) != _as_list(value):
            raise PruningPlanError(
                f"The plan {plan.name!r} of the student {student_name} makes a {plan.network} with `{name}` {value} of"
                f" this teacher; the student has {found}. Use the teacher that it was pruned from."
            )


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
