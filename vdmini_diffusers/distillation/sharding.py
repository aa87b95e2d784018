"""Networks that are divided over processes by FSDP2, from the file to the file: none ever holds a whole one."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator, init_empty_weights
from accelerate.utils import DistributedType
from safetensors import safe_open
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from vdmini_diffusers.serialization.safetensors_reader import StoredTensor, read_checkpoint


STEM = "diffusion_pytorch_model"


def shard_blocks(model: nn.Module, policy: MixedPrecisionPolicy | None = None) -> None:
    """Divide a model's weights over all processes; those of each block in a list are gathered while it runs.

    Raises:
        ValueError: if there is one process only.
    """
    if not torch.distributed.is_initialized():
        raise ValueError("Weights are divided over several processes, and there is one.")
    policy = policy or MixedPrecisionPolicy()
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            for block in child:
                fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)


def training_policy(dtype: torch.dtype) -> MixedPrecisionPolicy:
    """Weights are gathered in `dtype`, gradients are summed up in float32.

    Inputs are left as they are, for autocast: in half precision, timesteps from 0 to 1000 would be others.
    """
    gathered = None if dtype == torch.float32 else dtype
    return MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)


def load_sharded(
    model_class: type[Any],
    folder: Path,
    variant: str | None,
    dtype: torch.dtype,
    device: torch.device,
    policy: MixedPrecisionPolicy | None = None,
) -> Any:
    """A model of diffusers from `folder`, divided: every process reads its own rows of each tensor.

    Raises:
        CheckpointError: a `ValueError`; if the weights are missing, malformed, or not those of the config.
        OSError: if they cannot be read.
        ValueError: if there is one process only.
    """
    tensors = read_checkpoint(folder, STEM, variant)
    with init_empty_weights():
        model = model_class.from_config(model_class.load_config(folder))
    cast(model, dtype)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if found := {name for name in expected.keys() | tensors.keys() if shape_of(tensors, name) != expected.get(name)}:
        raise ValueError(f"{folder}: the tensor {min(found)!r} of the weights is not that of config.json.")
    buffers = dict(model.named_buffers())
    shard_blocks(model, policy)
    model.to_empty(device=device)
    with torch.no_grad():
        for name, buffer in model.named_buffers():  # those that are computed and not saved
            if not buffers[name].is_meta:
                buffer.copy_(buffers[name])
        for name, tensor in model.state_dict().items():
            copy_rows(tensors[name], tensor)
    return model


def cast(model: Any, dtype: torch.dtype) -> None:
    """Give an empty model's weights a dtype, as `from_pretrained` does: some of some classes stay in float32."""
    float32 = set(model._keep_in_fp32_modules or ())
    for name, parameter in model.named_parameters():
        if not float32.intersection(name.split(".")):
            parameter.data = parameter.data.to(dtype)


def shape_of(tensors: Mapping[str, StoredTensor], name: str) -> tuple[int, ...] | None:
    return tensors[name].shape if name in tensors else None


def copy_rows(stored: StoredTensor, target: torch.Tensor) -> None:
    """Read a stored tensor, or of one that is divided this process's rows of it."""
    local, start = target, 0
    if isinstance(target, DTensor):
        assert target.placements == (Shard(0),), target.placements
        local, count = target.to_local(), target.device_mesh.size()
        start = target.device_mesh.get_local_rank() * -(-target.shape[0] // count)
    if local.numel() == 0:
        return
    with safe_open(stored.file, "pt") as file:
        if local.ndim == 0:
            local.copy_(file.get_tensor(stored.name))
        else:
            local.copy_(file.get_slice(stored.name)[start : start + local.shape[0]])


def whole_tensors(model: nn.Module, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Named tensors of a model on the CPU, one after the other. All processes take part where they are divided."""
    state_dict = model.state_dict()
    for name in names:
        tensor = state_dict[name].detach()
        yield name, (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def is_sharding(accelerator: Accelerator) -> bool:
    """Whether the accelerator divides what is trained.

    Raises:
        ValueError: if it does so in a way that would gather it.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return False
    plugin: Any = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2 or "SHARDED" not in str(plugin.state_dict_type):
        raise ValueError(
            "Large transformers are trained by FSDP2 with sharded checkpoints: `--fsdp_version 2"
            " --fsdp_state_dict_type SHARDED_STATE_DICT`."
        )
    return True
