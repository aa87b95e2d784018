"""What a plan makes of a VAE, and the tensors of one, under the names that they have today."""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

from vdmini_diffusers.pruning.channels import STUDENTS
from vdmini_diffusers.pruning.components import FORMER_NAMES
from vdmini_diffusers.pruning.depth import MiddleRule
from vdmini_diffusers.pruning.plans import PruningPlan
from vdmini_diffusers.pruning.survey import Survey, survey_network
from vdmini_diffusers.serialization.safetensors_copy import FLOATS
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError, StoredTensor
from vdmini_diffusers.serialization.sources import read_bytes


TEACHERS = {cls.__name__: cls for cls in (AutoencoderKL, AutoencoderKLTemporalDecoder)}


def survey_vae(folder: Path, plan: PruningPlan | MiddleRule) -> Survey:
    """Read `folder/config.json` and work out what `plan` keeps of that VAE. Only its decoder is pruned and counted.

    Raises:
        CheckpointError: if the config is not that of a stock VAE.
        PruningPlanError: if the plan is not for VAE decoders, or does not fit.
    """
    return survey_network(folder / "config.json", plan, "vae_decoder", TEACHERS, STUDENTS.__getitem__, "decoder.")


def with_present_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of a VAE by the names that diffusers gives them today."""
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
    content = bytearray(read_bytes(tensor.file, tensor.start, tensor.stop))
    if len(content) != tensor.num_bytes:
        raise CheckpointError(f"{tensor.file} ended within tensor {tensor.name!r}: it was cut while it was read.")
    value = torch.frombuffer(content, dtype=FLOATS[tensor.dtype])
    if not value.isfinite().all():
        first = int(value.isfinite().logical_not().nonzero()[0])
        raise CheckpointError(f"{tensor.file}: tensor {tensor.name!r} holds {value[first].item()} at element {first}.")
    return value.view(tensor.shape)
