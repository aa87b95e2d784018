"""Plan -> the pairs of features that Individual Content Distillation compares (Eq. 4)."""

from collections.abc import Mapping
from typing import Any

from vdmini_diffusers.pruning.plan import UNetPruningPlan
from vdmini_diffusers.pruning.student_config import check_plan_fits
from vdmini_diffusers.pruning.weight_map import LAYER_LISTS, weight_map


def feature_pairs(plan: UNetPruningPlan, teacher_config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """`((student module, teacher module), ...)`: the output of every kept stage, of equal shape in both models.

    A down stage is compared after its downsampler. The student's last one has none; where the teacher's has, the pair
    is the output of the last kept layer instead: for the paper's plan `down_blocks.2.attentions.1`, for text-to-video
    `down_blocks.2.temp_attentions.1`, six pairs in all.

    Raises:
        PruningPlanError: if the plan does not fit the teacher.
    """
    check_plan_fits(plan, teacher_config)
    students = [f"down_blocks.{stage}" for stage in plan.down]
    if len(plan.down) < len(teacher_config["block_out_channels"]):
        last = len(plan.down) - 1
        block_type = teacher_config["down_block_types"][last]
        parts = LAYER_LISTS if block_type.endswith("3D") else ("resnets", "attentions")
        layers = [part for part in parts if "attentions" not in part or "CrossAttn" in block_type]
        students[-1] = f"down_blocks.{last}.{layers[-1]}.{len(plan.down[last]) - 1}"
    elif plan.keep_mid:  # with fewer stages, the student's works at another resolution than the teacher's
        students.append("mid_block")
    students += [f"up_blocks.{i}" for i in range(len(plan.up))]
    return tuple(weight_map(plan, students).items())
