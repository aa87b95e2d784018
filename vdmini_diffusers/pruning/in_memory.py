"""Students that share their teacher's tensors, to try a plan without writing anything."""

from typing import Any

from accelerate import init_empty_weights
from torch import nn

from vdmini_diffusers.pruning.plans import PruningPlan


def student_of(denoiser: Any, plan: PruningPlan, student_class: type[Any]) -> nn.Module:
    """The student that a plan of layers or blocks makes of a teacher in memory. It takes no memory of its own.

    Args:
        denoiser: the teacher, with its weights where they are to stay.
        student_class: `Denoiser.student` of its family.

    Raises:
        PruningPlanError: if the plan does not fit the teacher.
    """
    class_name = type(denoiser).__name__
    config = {name: value for name, value in denoiser.config.items() if not name.startswith("_")}
    plan = plan.for_teacher(class_name, config)
    with init_empty_weights(include_buffers=False):
        student = student_class.from_config(plan.student_config({"_class_name": class_name, **config}))
    own = denoiser.state_dict()
    weights = plan.weight_map(student.state_dict())
    student.load_state_dict({name: own[teachers] for name, teachers in weights.items()}, assign=True)
    return student.eval().requires_grad_(False)
