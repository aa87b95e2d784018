"""Weights from before safetensors. Reading a pickle can run code, so it needs the user's consent.

Even then only PyTorch's restricted unpickler is used, which admits tensors and plain containers.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from vdmini_diffusers.serialization.checkpoint_error import short_message
from vdmini_diffusers.serialization.safetensors_reader import (
    CheckpointError,
    StoredTensor,
    read_header,
    read_json,
    short_repr,
)


def find_pickles(folder: Path, stem: str, variant: str | None = None) -> list[Path]:
    """`<stem>[.<variant>].bin`, or the shards that `<stem>.bin.index[.<variant>].json` names; `[]` if neither exists.

    Raises:
        CheckpointError: if the index is malformed, or names a file that is missing or elsewhere.
    """
    dotted = f".{variant}" if variant else ""
    index = folder / f"{stem}.bin.index{dotted}.json"
    if not index.exists():
        single = folder / f"{stem}{dotted}.bin"
        return [single] if single.exists() else []
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(name, str) for name in shard_of.values()):
        raise CheckpointError(f"{index}: `weight_map` must map each tensor to the name of a shard.")
    names = set(shard_of.values())
    for name in sorted(names):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.bin", name):
            raise CheckpointError(f"{index} names the shard {short_repr(name)}: shards are files beside their index.")
        if not (folder / name).is_file():
            raise CheckpointError(f"{index} names the shard {name}, which is missing.")
    return [folder / name for name in sorted(names)]


def unpickle(files: list[Path], scratch: Path) -> dict[str, StoredTensor]:
    """Rewrite `files` as safetensors in `scratch`, one at a time, and return where their tensors are then.

    A file is held in memory while it is rewritten.

    Raises:
        CheckpointError: if a file holds anything but tensors by name, or two files hold a tensor of the same name.
    """
    scratch.mkdir(parents=True)
    tensors: dict[str, StoredTensor] = {}
    for number, file in enumerate(files):
        rewritten = scratch / f"{number}.safetensors"
        state = named_tensors(load_pickle(file), file)
        safetensors.torch.save_file({k: v.detach().clone().contiguous() for k, v in state.items()}, rewritten)
        header = read_header(rewritten)
        if twice := tensors.keys() & header:
            raise CheckpointError(f"{file}: tensor {min(twice)!r} is in another file as well.")
        tensors |= header
    return tensors


def load_pickle(file: Path) -> Any:
    """What an untrusted file of `torch.save` holds, tensors and plain containers; mapped, not read, where possible.

    Raises:
        CheckpointError: if PyTorch's restricted unpickler does not read it, or it is compressed: a few kilobytes can
            unpack to gigabytes.
        OSError: if the file cannot be read.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file.")
    try:
        # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
        is_archive = zipfile.is_zipfile(file)
        if is_archive:
            _check_archive(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)
    except OSError:
        raise
    except Exception as error:  # the unpickler, zip reader and tensor rebuilding each raise their own
        raise CheckpointError(f"{file} cannot be read as pickled weights: {short_message(error)}") from error


def named_tensors(state: Any, file: Path) -> dict[str, Tensor]:
    """`state`, loaded from `file`, if it is a dict of dense tensors by name.

    Raises:
        CheckpointError: if it is something else, or a tensor is sparse, quantised or on the meta device, or the
            tensors are larger than the file. A tensor may be there under two names.
    """
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(f"{file} holds other things than tensors by name.")
    check_dense(state, file)
    return state


def check_dense(tensors: Mapping[Any, Tensor], file: Path) -> None:
    """As `named_tensors`, for tensors by any key."""
    total, size = 0, file.stat().st_size
    for key, tensor in tensors.items():
        kind = (
            "sparse"
            if tensor.layout is not torch.strided
            else "quantised"
            if tensor.is_quantized
            else "without data"
            if tensor.is_meta
            else None
        )
        if kind:
            raise CheckpointError(f"{file}: tensor {key!r} is {kind}; weights are dense tensors.")
        # Elements may share memory (a stride of 0), so that a small file can describe a tensor of any size.
        num_bytes = tensor.numel() * tensor.element_size()
        total += num_bytes
        if num_bytes > size or total > 2 * size:
            raise CheckpointError(
                f"{file}: the tensors up to {key!r} take {total} bytes, and the file has {size}: it repeats elements,"
                " which weights do not."
            )


def _check_archive(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError("its members are compressed, as `torch.save` never does.")
    if sum(member.file_size for member in members) > file.stat().st_size:
        raise CheckpointError("its members overlap.")
