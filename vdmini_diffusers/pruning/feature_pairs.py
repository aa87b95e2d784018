"""Plan -> the pairs of features that Individual Content Distillation compares (Eq. 4)."""

from collections.abc import Mapping
from typing import Any

from vdmini_diffusers.pruning.plan import UNetPruningPlan
from vdmini_diffusers.pruning.student_config import check_plan_fits
from vdmini_diffusers.pruning.weight_map import weight_map


def feature_pairs(plan: UNetPruningPlan, teacher_config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """`((student module, teacher module), ...)`: the output of every kept stage, of equal shape in both models.

    A down stage is compared after its downsampler. The student's last one has none; where the teacher's has, the pair
    is the output of the last kept layer instead: for the paper's plan `down_blocks.2.attentions.1`, six pairs in all.

    Raises:
        PruningPlanError: if the plan does not fit the teacher.
    """
    check_plan_fits(plan, teacher_config)
    students = [f"down_blocks.{stage}" for stage in plan.down]
    if len(plan.down) < len(teacher_config["block_out_channels"]):
        last = len(plan.down) - 1
        layers = "attentions" if "CrossAttn" in teacher_config["down_block_types"][last] else "resnets"
        students[-1] = f"down_blocks.{last}.{layers}.{len(plan.down[last]) - 1}"
    elif plan.keep_mid:  # with fewer stages, the student's works at another resolution than the teacher's
        students.append("mid_block")
    students += [f"up_blocks.{i}" for i in range(len(plan.up))]
    return tuple(weight_map(plan, students).items())
