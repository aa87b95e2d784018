"""Weights from before safetensors. Reading a pickle can run code, so it needs the user's consent.

Even then only PyTorch's restricted unpickler is used, which admits tensors and plain containers.
"""

import zipfile
from pathlib import Path

import safetensors.torch
import torch

from vdmini_diffusers.serialization.safetensors_reader import CheckpointError, StoredTensor, read_header, read_json


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
    if not isinstance(shard_of, dict) or not shard_of:
        raise CheckpointError(f"{index}: `weight_map` must map each tensor to the name of a shard.")
    names = {str(name) for name in shard_of.values()}
    for name in sorted(names):
        if Path(name).name != name or not name.endswith(".bin"):
            raise CheckpointError(f"{index} names the shard {name!r}: shards are files beside their index.")
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
        try:
            # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except Exception as error:  # the unpickler, zip reader and tensor rebuilding each raise their own
            raise CheckpointError(f"{file} cannot be read as pickled weights: {error}") from error
        if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
            raise CheckpointError(f"{file} holds other things than tensors by name.")
        safetensors.torch.save_file({str(k): v.detach().clone().contiguous() for k, v in state.items()}, rewritten)
        header = read_header(rewritten)
        if twice := tensors.keys() & header:
            raise CheckpointError(f"{file}: tensor {min(twice)!r} is in another file as well.")
        tensors |= header
    return tensors
