"""Tensors go from the files of one checkpoint to those of another without being held in memory.

Every source file is read once, in order: the chosen tensors are checked for NaN and infinity and written to their
place. All bytes of the file are hashed on the way, unless the Hub has given its hash: hashing costs more than the rest
together. A few small buffers take turns, so that hashing runs beside reading and writing; the sizes of the tensors do
not matter.
"""

import hashlib
import itertools
import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import split_state_dict_into_shards_factory

from vdmini_diffusers.serialization.safetensors_reader import (
    DTYPE_BYTES,
    CheckpointError,
    StoredTensor,
    index_name,
    weights_name,
)


BUFFER_BYTES = 2**18  # a multiple of every element's size; stays in a core's cache from the read to the write
NUM_BUFFERS = 16
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
# Infinity's bits. What is as large or larger, sign aside, is no number: read as signed integers, positive ones are the
# largest of all, and read as unsigned ones, negative ones are. NumPy and not torch, which would share this out to as
# many threads as there are cores, and they wait for the one that hashes.
INFINITY = {
    "F16": np.uint16(0x7C00),
    "BF16": np.uint16(0x7F80),
    "F32": np.uint32(0x7F800000),
    "F64": np.uint64(0x7FF0000000000000),
}


@dataclass(frozen=True)
class FileHash:
    size: int
    sha256: str


@dataclass(frozen=True)
class Target:
    """Where the bytes of a tensor go: `file[start:]`."""

    file: Path
    start: int


def copy_checkpoint(
    source: Mapping[str, StoredTensor],
    names: Mapping[str, str],
    folder: Path,
    stem: str,
    variant: str | None = None,
    max_shard_size: int | str = "10GB",
    known_sha256: Mapping[Path, str | None] | None = None,
) -> dict[Path, FileHash]:
    """Write tensors of the checkpoint `source` to `folder`, and return size and hash of every file of `source`.

    The files are, byte for byte, what `save_pretrained` writes for a model with these tensors in this order.

    Args:
        names: `{new name: name in source}`.
        known_sha256: hashes of files that need not be computed.

    Raises:
        CheckpointError: if a tensor holds NaN or infinity, or a file is not what its header said.
        OSError: if a file cannot be read or written.
    """
    targets = _write_headers({new: source[old] for new, old in names.items()}, folder, stem, variant, max_shard_size)
    by_file: dict[Path, list[StoredTensor]] = {}
    for tensor in source.values():
        by_file.setdefault(tensor.file, []).append(tensor)
    known = known_sha256 or {}
    return {file: _stream(file, tensors, targets, known.get(file)) for file, tensors in by_file.items()}


def _write_headers(
    tensors: Mapping[str, StoredTensor], folder: Path, stem: str, variant: str | None, max_shard_size: int | str
) -> dict[str, Target]:
    """Make the new files with their headers, and return the target of each tensor by its old name."""
    shards = split_state_dict_into_shards_factory(
        {name: tensor.num_bytes for name, tensor in tensors.items()},
        get_storage_size=lambda num_bytes: num_bytes,
        filename_pattern=weights_name(stem, variant, "{suffix}"),
        max_shard_size=max_shard_size,
    )
    folder.mkdir(parents=True, exist_ok=True)
    targets = {}
    for filename, shard in shards.filename_to_tensors.items():
        order = sorted(shard, key=lambda name: (-list(DTYPE_BYTES).index(tensors[name].dtype), name))
        stops = list(itertools.accumulate((tensors[name].num_bytes for name in order), initial=0))
        header = _header(tensors, order, stops)
        with (folder / filename).open("xb") as file:
            file.write(header)
        for name, start in zip(order, stops[:-1], strict=True):
            targets[tensors[name].name] = Target(folder / filename, len(header) + start)
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / index_name(stem, variant)).write_text(text, encoding="utf-8")
    return targets


def _header(tensors: Mapping[str, StoredTensor], order: Sequence[str], stops: Sequence[int]) -> bytes:
    entries = {
        name: {"dtype": tensors[name].dtype, "shape": tensors[name].shape, "data_offsets": offsets}
        for name, offsets in zip(order, itertools.pairwise(stops), strict=True)
    }
    text = json.dumps(
        {"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":"), ensure_ascii=False
    ).encode()
    text += b" " * (-len(text) % 8)  # safetensors aligns the data so
    return len(text).to_bytes(8, "little") + text


def _stream(
    file: Path, tensors: Iterable[StoredTensor], targets: Mapping[str, Target], known_sha256: str | None
) -> FileHash:
    """Copy the tensors that have a target, and hash all of the file where its hash is not known."""
    tensors = sorted(tensors, key=lambda tensor: (tensor.start, tensor.stop))
    header = StoredTensor(file, "header", "U8", (tensors[0].start,), 0, tensors[0].start)
    digest = hashlib.sha256()
    buffers = itertools.cycle([memoryview(bytearray(BUFFER_BYTES)) for _ in range(NUM_BUFFERS)])
    hashed: deque[Future] = deque()  # of the buffers in use, oldest first
    with ExitStack() as stack:
        source = stack.enter_context(file.open("rb", buffering=0))
        opened = {path: stack.enter_context(path.open("r+b", buffering=0)) for path in _files_of(tensors, targets)}
        hasher = stack.enter_context(ThreadPoolExecutor(max_workers=1))
        for tensor in (header, *tensors):
            target = targets.get(tensor.name) if tensor is not header else None
            if target is None and known_sha256:
                continue
            source.seek(tensor.start)
            for start in range(tensor.start, tensor.stop, BUFFER_BYTES):
                if len(hashed) == NUM_BUFFERS:
                    hashed.popleft().result()
                chunk = next(buffers)[: min(BUFFER_BYTES, tensor.stop - start)]
                _read(source, chunk, tensor)
                if not known_sha256:
                    hashed.append(hasher.submit(digest.update, chunk))
                if target is not None:
                    _check_finite(chunk, tensor, start - tensor.start)
                    _write(opened[target.file], chunk, tensor, target.start + start - tensor.start)
        if source.seek(0, 2) != tensors[-1].stop:
            raise CheckpointError(f"{file} changed its size while it was read.")
    return FileHash(tensors[-1].stop, known_sha256 or digest.hexdigest())


def _files_of(tensors: Iterable[StoredTensor], targets: Mapping[str, Target]) -> set[Path]:
    return {targets[tensor.name].file for tensor in tensors if tensor.name in targets}


def _read(source: FileIO, chunk: memoryview, tensor: StoredTensor) -> None:
    filled = 0
    while filled < len(chunk):
        count = source.readinto(chunk[filled:])
        if not count:
            raise CheckpointError(f"{tensor.file} ended within tensor {tensor.name!r}: it was cut while it was read.")
        filled += count


def _check_finite(chunk: memoryview, tensor: StoredTensor, offset: int) -> None:
    if tensor.dtype not in FLOATS:
        return
    infinity = INFINITY[tensor.dtype]
    bits = np.frombuffer(chunk, infinity.dtype)
    sign = ~(infinity | (infinity - 1))
    if bits.max() >= infinity | sign or bits.view(f"i{bits.itemsize}").max() >= infinity:
        values = torch.frombuffer(chunk, dtype=FLOATS[tensor.dtype])
        first = int(values.isfinite().logical_not().nonzero()[0])
        element = offset // DTYPE_BYTES[tensor.dtype] + first
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name!r} holds {values[first].item()} at element {element}."
        )


def _write(file: FileIO, chunk: memoryview, tensor: StoredTensor, position: int) -> None:
    try:
        file.seek(position)
        written = 0
        while written < len(chunk):
            written += file.write(chunk[written:])
    except OSError as error:
        message = f"{error.strerror}, while writing tensor {tensor.name!r} of {tensor.file}"
        raise OSError(error.errno, message, str(file.name)) from error
