"""What a plan makes of a VAE, known from its config alone: nothing is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

from vdmini_diffusers.pruning.channels import STUDENTS
from vdmini_diffusers.pruning.checkpoint_reader import CheckpointError, StoredTensor, read_json
from vdmini_diffusers.pruning.checkpoint_writer import FLOATS
from vdmini_diffusers.pruning.decoder_config import decoder_config
from vdmini_diffusers.pruning.plan import DecoderPruningPlan, PruningPlan, PruningPlanError
from vdmini_diffusers.pruning.unet_survey import check_numbers
from vdmini_diffusers.pruning.weight_map import weight_map


TEACHERS = {cls.__name__: cls for cls in (AutoencoderKL, AutoencoderKLTemporalDecoder)}
# How diffusers named an attention's layers before 2023; it renames them when it loads.
FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class DecoderSurvey:
    """A pruning in outline. Parameters are those of the decoder, which alone is pruned.

    Args:
        config: the VAE's, complete.
        student: on the meta device.
        teacher_shapes: of every tensor of the VAE.
        weights: `{student tensor: tensor of the VAE}`; the decoder's are slices of them.
    """

    plan: DecoderPruningPlan
    config: Mapping[str, Any]
    class_name: str
    student: Any
    teacher_shapes: Mapping[str, tuple[int, ...]]
    weights: Mapping[str, str]

    @property
    def num_teacher_parameters(self) -> int:
        return sum(torch.Size(shape).numel() for key, shape in self.teacher_shapes.items() if _in_decoder(key))

    @property
    def num_student_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.student.decoder.parameters())

    @property
    def dropped_blocks(self) -> dict[str, int]:
        """Parameters of the layers that are removed as a whole, by their names in the decoder."""
        kept = set(self.weights.values())
        dropped: dict[str, int] = {}
        for key in self.teacher_shapes.keys() - kept:
            parts = key.removeprefix("decoder.").split(".")
            # `mid_block.attentions.0` or `up_blocks.3.resnets.1`; of a layer that stays, its shortcut.
            block = ".".join(parts[: 3 if parts[0] == "mid_block" else 4])
            if any(name.startswith(f"decoder.{block}.") for name in kept):
                block = ".".join(parts[:-1])
            dropped[block] = dropped.get(block, 0) + torch.Size(self.teacher_shapes[key]).numel()
        return dict(sorted(dropped.items()))


def _in_decoder(key: str) -> bool:
    return key.startswith("decoder.")


def survey_vae(folder: Path, plan: PruningPlan) -> DecoderSurvey:
    """Read `folder/config.json` and work out what `plan` keeps of that VAE.

    Raises:
        CheckpointError: if the config is not that of a stock VAE.
        PruningPlanError: if the plan is not for VAE decoders, or does not fit.
    """
    if not isinstance(plan, DecoderPruningPlan):
        raise PruningPlanError(f"A VAE is pruned by a decoder plan; {plan.name!r} is a {plan.kind} plan.")
    config_file = folder / "config.json"
    config = read_json(config_file)
    class_name = config.get("_class_name")
    if not isinstance(class_name, str) or class_name not in TEACHERS:
        raise CheckpointError(f"{config_file} describes a {class_name!r}; a teacher is an {' or an '.join(TEACHERS)}.")
    check_numbers(config_file, config)
    try:
        with torch.device("meta"):
            teacher = TEACHERS[class_name].from_config(config)
    except Exception as error:  # whatever the config provokes in the constructors of all layers
        raise CheckpointError(f"{config_file} does not describe a VAE: {error}") from error
    complete = {key: value for key, value in teacher.config.items() if not key.startswith("_")}
    student_config = decoder_config(plan, complete)
    try:
        with torch.device("meta"):
            student = STUDENTS[class_name].from_config(student_config)
    except ValueError as error:
        raise CheckpointError(f"{config_file}: {error}") from error
    shapes = {key: tuple(tensor.shape) for key, tensor in teacher.state_dict().items()}
    weights = weight_map(plan, student.state_dict())
    assert set(weights.values()) <= shapes.keys()
    return DecoderSurvey(plan, complete, class_name, student, shapes, weights)


def with_present_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors by the names that diffusers gives them today."""
    renamed = {}
    for key, tensor in tensors.items():
        block, _, last = key.rpartition(".")
        parent, _, layer = block.rpartition(".")
        if ".attentions." in key and layer in FORMER_NAMES:
            key = f"{parent}.{FORMER_NAMES[layer]}.{last}"
        if key in renamed:
            raise CheckpointError(f"{tensor.file}: tensor {tensor.name!r} is there under its present name as well.")
        renamed[key] = tensor
    return renamed


def load_tensor(tensor: StoredTensor) -> torch.Tensor:
    """Raises `CheckpointError` if it holds NaN or infinity, or its file was cut; `OSError` if that cannot be read."""
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        content = bytearray(file.read(tensor.num_bytes))
    if len(content) != tensor.num_bytes:
        raise CheckpointError(f"{tensor.file} ended within tensor {tensor.name!r}: it was cut while it was read.")
    value = torch.frombuffer(content, dtype=FLOATS[tensor.dtype])
    if not value.isfinite().all():
        first = int(value.isfinite().logical_not().nonzero()[0])
        raise CheckpointError(f"{tensor.file}: tensor {tensor.name!r} holds {value[first].item()} at element {first}.")
    return value.view(tensor.shape)
