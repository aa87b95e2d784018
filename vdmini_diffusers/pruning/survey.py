"""What a plan makes of a teacher's network, known from its config alone: nothing is loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from vdmini_diffusers.families import Denoiser
from vdmini_diffusers.pruning.depth import MiddleRule
from vdmini_diffusers.pruning.plans import PruningPlan, PruningPlanError
from vdmini_diffusers.serialization.checkpoint_error import short_message
from vdmini_diffusers.serialization.safetensors_copy import FLOATS
from vdmini_diffusers.serialization.safetensors_reader import (
    CheckpointError,
    StoredTensor,
    read_json,
    short_repr,
)


MAX_CONFIG_NUMBER = 2**20
MAX_DEPTH = 64
MAX_TORCH_CALLS = 100_000  # to build a network: SVD's U-Net takes 7,000, HunyuanVideo's transformer 6,000


class _Budget(TorchFunctionMode):
    """Stops the construction of a network that is larger than any: a few bytes of config can ask for 64^3 layers."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_calls += 1
        restores = function is torch._C._set_grad_enabled  # else the end of a `no_grad` on the way out would not
        if self.num_calls > MAX_TORCH_CALLS and not restores:
            raise ValueError("it has far more layers than any such network")
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Survey:
    """What a plan makes of one network.

    Args:
        config: the teacher's, with the defaults of its class.
        class_name: the teacher's.
        teacher: on the meta device.
        student: on the meta device.
        weights: `{student tensor: teacher tensor}`. The tensors of a narrower student are slices of the teacher's.
        part: prefix of the tensors that are pruned and counted; empty for all.
    """

    plan: PruningPlan
    config: Mapping[str, Any]
    class_name: str
    teacher: Any
    student: Any
    weights: Mapping[str, str]
    part: str = ""

    @property
    def teacher_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of the teacher."""
        return {key: tuple(tensor.shape) for key, tensor in self.teacher.state_dict().items()}

    @property
    def num_teacher_parameters(self) -> int:
        return sum(self._teacher_sizes.values())

    @property
    def num_student_parameters(self) -> int:
        student = self.student.state_dict()
        return sum(tensor.numel() for name, tensor in student.items() if name.startswith(self.part))

    @property
    def dropped_blocks(self) -> dict[str, int]:
        """The number of parameters of each removed block, by the names that `PruningPlan.block_names` gives."""
        return self.plan.dropped_blocks(self._teacher_sizes, self.weights.values())

    @property
    def _teacher_sizes(self) -> dict[str, int]:
        shapes = self.teacher_shapes.items()
        return {name: torch.Size(shape).numel() for name, shape in shapes if name.startswith(self.part)}


def survey_denoiser(folder: Path, plan: PruningPlan | MiddleRule, denoiser: Denoiser) -> Survey:
    """Read `folder/config.json` and work out what `plan` keeps of that network.

    Raises:
        CheckpointError: if the config is not that of one of the denoiser's teacher classes.
        PruningPlanError: if the plan is for other networks, or does not fit.
    """
    classes = {cls.__name__: cls for cls in denoiser.teachers}
    return survey_network(
        folder / "config.json", plan, denoiser.plan_kind, classes, lambda class_name: denoiser.student
    )


def survey_network(
    config_file: Path,
    plan: PruningPlan | MiddleRule,
    plan_kind: str,
    teachers: Mapping[str, type[Any]],
    student_of: Callable[[str], type[Any]],
    part: str = "",
) -> Survey:
    """As `survey_denoiser`, for any network.

    Args:
        plan_kind: the kind of plan that prunes such networks.
        teachers: the classes that the teacher may have, by name.
        student_of: the student's class, given the teacher's name.
        part: as for `Survey`.
    """
    if plan.kind != plan_kind:
        raise PruningPlanError(
            f"{plan.name!r} is a {plan.kind} plan, for a {plan.network}; this network is pruned by a {plan_kind} plan."
        )
    config = read_json(config_file)
    class_name = config.get("_class_name")
    if not isinstance(class_name, str) or class_name not in teachers:
        raise CheckpointError(
            f"{config_file} describes a {short_repr(class_name)}; a teacher is"
            f" {' or '.join(map(with_article, teachers))}."
        )
    check_numbers(config_file, config)
    teacher = build_empty(lambda: teachers[class_name].from_config(config), config_file, plan.network)
    complete = {key: value for key, value in teacher.config.items() if not key.startswith("_")}
    plan = plan.for_teacher(class_name, complete)
    student_config = plan.student_config({"_class_name": class_name, **complete})
    # `from_config`, as a teacher's may have fields of another version of diffusers.
    student = build_empty(lambda: student_of(class_name).from_config(student_config), config_file, plan.network)
    weights = plan.weight_map(student.state_dict())
    if unknown := set(weights.values()) - teacher.state_dict().keys():
        raise PruningPlanError(f"The plan {plan.name!r} keeps {min(unknown)!r}, which the teacher does not have.")
    return Survey(plan, complete, class_name, teacher, student, weights, part)


def with_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIO' else 'a'} {name}"  # a U-Net


def check_numbers(config_file: Path, config: Mapping[str, Any]) -> None:
    """A million layers would be built, on the meta device as well, before anything could be found wrong with them.

    Raises:
        CheckpointError: if a number in the config is beyond what any such network has.
    """
    for key, value in config.items():
        if key == "rope_theta":  # the base of a rotary embedding counts nothing, and may be a whole number of millions
            continue
        limit = MAX_DEPTH if "layers" in key else MAX_CONFIG_NUMBER
        values = value if isinstance(value, list) else [value]
        counts = [n for v in values for n in (v if isinstance(v, list) else [v]) if isinstance(n, int)]
        # Floating point numbers count nothing: the statistics of a VAE's latents are long lists of them.
        too_long = len(values) > MAX_DEPTH and not all(isinstance(v, float) for v in values)
        if too_long or not all(abs(n) <= limit for n in counts):
            raise CheckpointError(f"{config_file}: `{key}` is out of bounds: {short_repr(value)}.")


def build_empty(build: Callable[[], Any], config_file: Path, network: str) -> Any:
    """What `build` makes of the untrusted `config_file`, on the meta device and within bounds of time.

    Raises:
        CheckpointError: if the config does not describe such a network.
    """
    try:
        with torch.device("meta"), _Budget():
            return build()
    except PruningPlanError:
        raise
    except Exception as error:  # whatever the config provokes in the constructors of all layers
        raise CheckpointError(f"{config_file} does not describe a {network}: {short_message(error)}") from error


def check_teacher_tensors(
    teacher_shapes: Mapping[str, Sequence[int]],
    tensors: Mapping[str, StoredTensor],
    folder: Path,
    network: str,
) -> None:
    """Check that the checkpoint in `folder` holds the tensors of its config, with their shapes, and no others.

    Raises:
        CheckpointError: naming the file and the first tensor that is wrong.
    """
    for key, shape in teacher_shapes.items():
        if key not in tensors:
            raise CheckpointError(f"{folder}: the weights lack tensor {key!r} of the {network} in config.json.")
        check_tensor(key, shape, tensors[key])
    if unknown := tensors.keys() - teacher_shapes.keys():
        key = min(unknown)
        raise CheckpointError(
            f"{tensors[key].file}: tensor {short_repr(key)} is not one of the {network} in config.json."
        )


def check_tensor(key: str, shape: Sequence[int], tensor: StoredTensor) -> None:
    """Raises `CheckpointError` if a weight has another shape than its config says, or is quantised."""
    if tensor.dtype not in FLOATS:
        raise CheckpointError(
            f"{tensor.file}: tensor {key!r} is {tensor.dtype}; weights are {', '.join(FLOATS)}. Quantised ones (fp8,"
            " int8) have scales beside them and are not pruned: give the weights that they were made from."
        )
    if tensor.shape != tuple(shape):
        raise CheckpointError(
            f"{tensor.file}: tensor {key!r} has the shape {list(tensor.shape)}; the config wants {list(shape)}."
        )
