"""What a plan makes of a teacher's U-Net, known from its config alone: nothing is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vdmini_diffusers.pruning.checkpoint_reader import CheckpointError, StoredTensor, read_json
from vdmini_diffusers.pruning.checkpoint_writer import FLOATS
from vdmini_diffusers.pruning.paper_names import paper_name
from vdmini_diffusers.pruning.pipeline_kinds import PipelineKind
from vdmini_diffusers.pruning.plan import PruningPlan, PruningPlanError, UNetPruningPlan
from vdmini_diffusers.pruning.student_config import student_config
from vdmini_diffusers.pruning.weight_map import weight_map


MAX_CONFIG_NUMBER = 2**20
MAX_DEPTH = 64


@dataclass(frozen=True)
class UNetSurvey:
    """A pruning in outline.

    Args:
        student: on the meta device.
        teacher_shapes: of every tensor of the teacher.
        weights: `{student tensor: teacher tensor}`.
    """

    plan: UNetPruningPlan
    student: Any
    teacher_shapes: Mapping[str, tuple[int, ...]]
    weights: Mapping[str, str]

    @property
    def num_teacher_parameters(self) -> int:
        return sum(map(_count, self.teacher_shapes.values()))

    @property
    def num_student_parameters(self) -> int:
        return sum(_count(self.teacher_shapes[key]) for key in self.weights.values())

    @property
    def dropped_blocks(self) -> dict[str, int]:
        """Parameters of what is removed, by the paper's names: a stage where nothing of it stays, else a layer."""
        kept = set(self.weights.values())
        kept_stages = {_stage(paper_name(key)) for key in kept}
        dropped: dict[str, int] = {}
        for key in self.teacher_shapes.keys() - kept:
            name = paper_name(key)
            block = ".".join(name.split(".")[:4]) if _stage(name) in kept_stages else _stage(name)
            dropped[block] = dropped.get(block, 0) + _count(self.teacher_shapes[key])
        return dict(sorted(dropped.items()))


def _stage(name: str) -> str:
    return "M" if name.startswith("M") else ".".join(name.split(".")[:2])


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def survey_unet(folder: Path, plan: PruningPlan, kind: PipelineKind) -> UNetSurvey:
    """Read `folder/config.json` and work out what `plan` keeps of that U-Net.

    Raises:
        CheckpointError: if the config is not that of a teacher of that kind.
        PruningPlanError: if the plan is not for U-Nets, or does not fit.
    """
    if not isinstance(plan, UNetPruningPlan):
        raise PruningPlanError(f"A U-Net is pruned by a U-Net plan; {plan.name!r} is a {plan.kind} plan.")
    config_file = folder / "config.json"
    config = read_json(config_file)
    class_name = config.get("_class_name")
    classes = {cls.__name__: cls for cls in kind.teacher_unets}
    if not isinstance(class_name, str) or class_name not in classes:
        raise CheckpointError(f"{config_file} describes a {class_name!r}; a teacher is a {' or a '.join(classes)}.")
    check_numbers(config_file, config)
    try:
        with torch.device("meta"):
            teacher = classes[class_name].from_config(config)
    except Exception as error:  # whatever the config provokes in the constructors of all layers
        raise CheckpointError(f"{config_file} does not describe a U-Net: {error}") from error
    with torch.device("meta"):  # `from_config`, as a teacher's may have fields of another version of diffusers
        student = kind.student_unet.from_config(student_config(plan, teacher.config))
    shapes = {key: tuple(tensor.shape) for key, tensor in teacher.state_dict().items()}
    weights = weight_map(plan, student.state_dict())
    for key, tensor in student.state_dict().items():
        assert shapes.get(weights[key]) == tuple(tensor.shape), f"{key} <- {weights[key]}"  # else the plan did not fit
    return UNetSurvey(plan, student, shapes, weights)


def check_numbers(config_file: Path, config: Mapping[str, Any]) -> None:
    """A million layers would be built, on the meta device as well, before anything could be found wrong with them.

    Raises:
        CheckpointError: if a number in the config is beyond what any such network has.
    """
    for key, value in config.items():
        limit = MAX_DEPTH if "layers" in key else MAX_CONFIG_NUMBER
        values = value if isinstance(value, list) else [value]
        numbers = [n for v in values for n in (v if isinstance(v, list) else [v]) if isinstance(n, (int, float))]
        if len(values) > MAX_DEPTH or not all(0 <= n <= limit for n in numbers):
            raise CheckpointError(f"{config_file}: `{key}` is out of bounds: {str(value)[:100]}.")


def check_teacher_tensors(
    teacher_shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, StoredTensor],
    folder: Path,
    network: str = "U-Net",
) -> None:
    """The checkpoint in `folder` must hold the tensors of its config, with their shapes, and no other.

    Raises:
        CheckpointError: naming the file and the first tensor that is wrong.
    """
    for key, shape in teacher_shapes.items():
        if key not in tensors:
            raise CheckpointError(f"{folder}: the weights lack tensor {key!r} of the {network} in config.json.")
        tensor = tensors[key]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {key!r} has the shape {list(tensor.shape)}; the config wants {list(shape)}."
            )
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{tensor.file}: tensor {key!r} is {tensor.dtype}; weights are {', '.join(FLOATS)}.")
    for key in tensors.keys() - teacher_shapes.keys():
        raise CheckpointError(f"{tensors[key].file}: tensor {key!r} is not one of the {network} in config.json.")
