"""Tensors go from the files of one checkpoint to those of another without being held in memory.

Every source file is read once, in order: the chosen tensors are checked for NaN and infinity and written to their
place. A file whose hash is wanted is read and hashed as a whole: hashing costs more than the rest together. Chunks of
a megabyte are checked, hashed and written beside each other; the sizes of the tensors do not matter.
"""

import hashlib
import itertools
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from huggingface_hub import split_state_dict_into_shards_factory

from vdmini_diffusers.serialization.journal import Journal
from vdmini_diffusers.serialization.safetensors_reader import (
    DTYPE_BYTES,
    CheckpointError,
    StoredTensor,
    index_name,
    weights_name,
)
from vdmini_diffusers.serialization.sources import Source, open_source, size_of


PIECE_BYTES = 2**26  # what is done again, at most, of a tensor that a copy was stopped in
MAX_IN_USE = 16  # chunks that wait to be hashed and written
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


NO_HASHES: Mapping[Source, str | None] = MappingProxyType({})


@dataclass(frozen=True)
class FileHash:
    """Size and hash of a file; the hash is `None` where nobody computed it."""

    size: int
    sha256: str | None


@dataclass(frozen=True)
class Target:
    """Where the bytes of a tensor go: `file[start:]`."""

    file: Path
    start: int


class Piece(NamedTuple):
    """Part of a tensor, the source file's bytes `[start:stop]`, that begins at byte `offset` of the tensor."""

    tensor: StoredTensor
    offset: int
    start: int
    stop: int
    target: Target | None  # of these bytes; None where they are only hashed


def copy_checkpoint(
    source: Mapping[str, StoredTensor],
    names: Mapping[str, str],
    folder: Path,
    stem: str,
    variant: str | None = None,
    max_shard_size: int | str = "10GB",
    known_sha256: Mapping[Source, str | None] = NO_HASHES,
    journal: Journal | None = None,
) -> dict[Source, FileHash]:
    """Write tensors of the checkpoint `source` to `folder`, and return size and hash of every file of `source`.

    The files are, byte for byte, what `save_pretrained` writes for a model with these tensors in this order.

    Args:
        names: `{new name: name in source}`.
        known_sha256: hashes of files that are not computed: of these, only what is copied is read.
        journal: notes what has been copied of such files. What it has noted already is not copied again.

    Raises:
        CheckpointError: if a tensor holds NaN or infinity, or a file is not what its header said.
        ConnectionError: if a file on the Hub cannot be read.
        OSError: if a file cannot be read or written.
    """
    targets = _write_headers({new: source[old] for new, old in names.items()}, folder, stem, variant, max_shard_size)
    by_file: dict[Source, list[StoredTensor]] = {}
    for tensor in source.values():
        by_file.setdefault(tensor.file, []).append(tensor)
    return {file: _stream(file, of_file, targets, known_sha256, journal) for file, of_file in by_file.items()}


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
        with (folder / filename).open("ab") as file:
            if file.tell() < len(header):  # else it is of a copy that was interrupted
                file.truncate(0)
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
    file: Source,
    tensors: Sequence[StoredTensor],
    targets: Mapping[str, Target],
    known_sha256: Mapping[Source, str | None],
    journal: Journal | None,
) -> FileHash:
    """Copy the tensors that have a target and are not yet copied; where the file's hash is wanted, read all of it."""
    size, digest = size_of(file), None if file in known_sha256 else hashlib.sha256()
    pieces = [piece for tensor in tensors if tensor.name in targets for piece in _pieces(tensor, targets[tensor.name])]
    pieces.sort(key=lambda piece: (piece.start, piece.stop))
    if digest:
        pieces = _with_rest(file, pieces, size)
    elif journal:
        pieces = [piece for piece in pieces if not journal.has(*_place(piece))]
    in_use: deque[tuple[list[Future], Piece | None]] = deque()  # for each chunk; with the piece that ends in it
    with ExitStack() as stack:
        source = stack.enter_context(closing(open_source(file, _joined(pieces))))
        paths = dict.fromkeys(piece.target.file for piece in pieces if piece.target)
        opened = {path: stack.enter_context(path.open("r+b", buffering=0)) for path in paths}
        hasher, writer = (stack.enter_context(ThreadPoolExecutor(max_workers=1)) for _ in range(2))
        for piece in pieces:
            done = 0
            for chunk in source.chunks(piece.start, piece.stop):
                futures = [hasher.submit(digest.update, chunk)] if digest else []
                if piece.target:
                    _check_finite(chunk, piece.tensor, piece.offset + done)
                    place = opened[piece.target.file], chunk, piece.tensor, piece.target.start + done
                    futures.append(writer.submit(_write, *place))
                done += len(chunk)
                is_last = piece.start + done == piece.stop
                in_use.append((futures, piece if is_last and piece.target and not digest else None))
                if len(in_use) > MAX_IN_USE:
                    _finish(*in_use.popleft(), journal)
            if piece.start + done < piece.stop:
                raise CheckpointError(
                    f"{file} ended within tensor {piece.tensor.name!r}: it was cut while it was read."
                )
        while in_use:
            _finish(*in_use.popleft(), journal)
    if size_of(file) != size:
        raise CheckpointError(f"{file} changed its size while it was read.")
    return FileHash(size, digest.hexdigest() if digest else known_sha256[file])


def _finish(futures: Iterable[Future], piece: Piece | None, journal: Journal | None) -> None:
    """Wait until a chunk is hashed and written, and note the piece that is complete then."""
    for future in futures:
        future.result()
    if journal and piece:
        journal.add(*_place(piece))


def _pieces(tensor: StoredTensor, target: Target) -> Iterator[Piece]:
    offset = 0
    for start, stop in tensor.ranges:
        for at in range(start, stop, PIECE_BYTES):
            size = min(PIECE_BYTES, stop - at)
            yield Piece(tensor, offset, at, at + size, Target(target.file, target.start + offset))
            offset += size


def _with_rest(file: Source, pieces: Iterable[Piece], size: int) -> list[Piece]:
    """The pieces of a file, rising, and all that lies between them.

    Raises:
        CheckpointError: if two pieces overlap.
    """
    rest = StoredTensor(file, "header", "U8", (size,), ((0, size),))
    whole, position = [], 0
    for piece in pieces:
        if piece.start < position:
            raise CheckpointError(f"{file}: tensor {piece.tensor.name!r} has bytes of another one.")
        whole += [Piece(rest, 0, position, piece.start, None), piece]
        position = piece.stop
    return [*whole, Piece(rest, 0, position, max(position, size), None)]


def _place(piece: Piece) -> tuple[Path, int, int]:
    assert piece.target is not None
    return piece.target.file, piece.target.start, piece.target.start + piece.stop - piece.start


def _joined(pieces: Iterable[Piece]) -> list[tuple[int, int]]:
    """The ranges of pieces that rise, where one may begin as another ends."""
    ranges: list[tuple[int, int]] = []
    for piece in pieces:
        if ranges and ranges[-1][1] == piece.start:
            ranges[-1] = ranges[-1][0], piece.stop
        else:
            ranges.append((piece.start, piece.stop))
    return ranges


def _check_finite(chunk: memoryview, tensor: StoredTensor, offset: int) -> None:
    if tensor.dtype not in FLOATS:
        return
    infinity = INFINITY[tensor.dtype]
    bits = np.frombuffer(chunk, infinity.dtype)
    sign = ~(infinity | (infinity - 1))
    if bits.max() >= infinity | sign or bits.view(f"i{bits.itemsize}").max() >= infinity:
        values = torch.frombuffer(bytearray(chunk), dtype=FLOATS[tensor.dtype])
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
