"""Where each tensor of a checkpoint lies on disk, read from untrusted safetensors files.

Only headers are read here. They are parsed by us and not by `safetensors`, because the streaming copy
(`safetensors_copy.py`) needs the offsets, and because an error message has to name the file and the tensor.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from vdmini_diffusers.serialization.checkpoint_error import CheckpointError, short_repr
from vdmini_diffusers.serialization.sources import RemoteFile, Source, read_bytes, size_of


# Bytes per element, in the order in which safetensors sorts tensors of a file (largest first).
DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}
# The header of SVD's U-Net takes 0.2 MB. Larger ones are not read: Python objects take many times the memory.
MAX_JSON_BYTES = 16 * 2**20

NO_FILES: Mapping[str, RemoteFile] = MappingProxyType({})

JSONValue = TypeVar("JSONValue", dict[str, Any], list[Any])


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of one file.

    Args:
        ranges: of the file's bytes, which one after the other are the tensor's: `((start, stop),)`, unless it is put
            together from rows of others.
    """

    file: Source
    name: str
    dtype: str
    shape: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]

    @property
    def start(self) -> int:
        return self.ranges[0][0]

    @property
    def stop(self) -> int:
        return self.ranges[-1][1]

    @property
    def num_bytes(self) -> int:
        return sum(stop - start for start, stop in self.ranges)


def read_checkpoint(
    folder: Path, stem: str, variant: str | None = None, remote: Mapping[str, RemoteFile] = NO_FILES
) -> dict[str, StoredTensor]:
    """All tensors of `<stem>[.<variant>].safetensors`, or of the shards that its index names, by name.

    Args:
        remote: files that the folder has on the Hub, by name. Those that are in `folder` as well are read there.

    Raises:
        CheckpointError: if the files are missing, ambiguous, malformed, truncated, or disagree with the index.
        OSError: if a file cannot be read.
    """
    single, index = weights_name(stem, variant), index_name(stem, variant)
    file = _find(folder, single, remote)
    if file and (folder / index).exists():
        raise CheckpointError(f"{folder} holds both {single} and {index}: remove the one that is stale.")
    if file:
        return read_header(file)
    if (folder / index).exists():
        return _read_shards(folder / index, remote)
    there = {path.name for path in folder.glob(f"{stem}*")} if folder.is_dir() else set()
    found = sorted(there | {name for name in remote if name.startswith(stem)})
    raise CheckpointError(
        f"{folder} has neither {single} nor {index}. Weight files there: {', '.join(found) or 'none'}."
    )


def _find(folder: Path, name: str, remote: Mapping[str, RemoteFile]) -> Source | None:
    return folder / name if (folder / name).exists() else remote.get(name)


def weights_name(stem: str, variant: str | None, suffix: str = "") -> str:
    """As diffusers and transformers spell it: `diffusion_pytorch_model.fp16-00001-of-00002.safetensors`."""
    return f"{stem}{_dotted(variant)}{suffix}.safetensors"


def index_name(stem: str, variant: str | None) -> str:
    """As diffusers and transformers spell it: `diffusion_pytorch_model.safetensors.index.fp16.json`."""
    return f"{stem}.safetensors.index{_dotted(variant)}.json"


def _dotted(variant: str | None) -> str:
    if variant is None:
        return ""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", variant):
        raise ValueError(f"`variant` is a word such as 'fp16', not {variant!r}.")
    return f".{variant}"


def _read_shards(index: Path, remote: Mapping[str, RemoteFile]) -> dict[str, StoredTensor]:
    content = read_json(index)
    shard_of = content.get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(name, str) for name in shard_of.values()):
        raise CheckpointError(f"{index}: `weight_map` must map each tensor to the name of a shard.")
    listed: dict[str, set[str]] = {}
    for tensor, shard_name in shard_of.items():
        listed.setdefault(shard_name, set()).add(tensor)
    for shard_name in sorted(listed):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors", shard_name):
            raise CheckpointError(
                f"{index} names the shard {short_repr(shard_name)}: shards are safetensors files beside their index,"
                " and nothing else is opened."
            )
    tensors = {}
    for shard_name, names in sorted(listed.items()):
        shard = _find(index.parent, shard_name, remote)
        if shard is None:
            raise CheckpointError(f"{index} names the shard {shard_name}, which is missing.")
        header = read_header(shard)
        if wrong := names ^ header.keys():
            tensor = min(wrong)
            where = "is not in the shard" if tensor in names else "is in the shard, and not listed there"
            raise CheckpointError(f"{shard}: tensor {short_repr(tensor)} {where}, against {index.name}.")
        tensors |= header
    metadata = content.get("metadata")
    said = metadata.get("total_size") if isinstance(metadata, dict) else None
    num_bytes = sum(tensor.num_bytes for tensor in tensors.values())
    if isinstance(said, int) and said != num_bytes:
        raise CheckpointError(
            f"{index}: `total_size` says {said} bytes, and the tensors of the shards have {num_bytes}: the index and"
            " the shards are not of one checkpoint."
        )
    return tensors


def read_header(file: Source) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, in the order of their bytes.

    The tensors must cover the bytes after the header without gap or overlap, to the end of the file.

    Raises:
        CheckpointError: if it is no safetensors file, or a damaged one.
        OSError: if it cannot be read.
    """
    if isinstance(file, Path) and not file.is_file():  # a pipe, say, whose reading would never end
        raise CheckpointError(f"{file} is not a regular file.")
    size = size_of(file)
    length = int.from_bytes(read_bytes(file, 0, 8), "little")
    if size < 8 or length > min(size - 8, MAX_JSON_BYTES):
        raise CheckpointError(
            f"{file}: {size} bytes with a header of {length} bytes (at most {MAX_JSON_BYTES}): truncated, or not"
            " safetensors."
        )
    header = _parse_json(read_bytes(file, 8, 8 + length), file, dict)
    header.pop("__metadata__", None)
    if not header:
        raise CheckpointError(f"{file} holds no tensor.")
    tensors = [_stored_tensor(file, name, entry, 8 + length) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    position = 8 + length
    for tensor in tensors:
        if tensor.start != position:
            kind = "overlaps the tensor before it" if tensor.start < position else "leaves a gap before it"
            raise CheckpointError(f"{file}: tensor {tensor.name!r} {kind}.")
        position = tensor.stop
    if position != size:
        last = f" up to the last tensor, {tensors[-1].name!r}"
        raise CheckpointError(
            f"{file} has {size} bytes, and its header describes {position}{last}: truncated or corrupt."
        )
    return {tensor.name: tensor for tensor in tensors}


def _stored_tensor(file: Source, name: str, entry: Any, data_start: int) -> StoredTensor:
    def refuse(what: str) -> CheckpointError:
        return CheckpointError(f"{file}: tensor {short_repr(name) if len(name) > 200 else repr(name)} {what}.")

    if not name.isprintable():
        raise refuse("has a name that cannot be printed")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refuse("is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise refuse(f"has the unknown dtype {short_repr(dtype)}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise refuse("has a shape or offsets that are not counts")
    if len(offsets) != 2 or len(shape) > 32 or offsets[1] - offsets[0] != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise refuse(f"of dtype {dtype} and shape {short_repr(shape)} does not fit its offsets {short_repr(offsets)}")
    return StoredTensor(file, name, dtype, tuple(shape), ((data_start + offsets[0], data_start + offsets[1]),))


def read_json(file: Path, kind: type[JSONValue] = dict) -> JSONValue:
    """What a small JSON file holds.

    Args:
        kind: `dict` or `list`.

    Raises:
        CheckpointError: if the file is missing, too large, or holds anything else.
        OSError: if it cannot be read.
    """
    check_small_file(file)
    return _parse_json(file.read_bytes(), file, kind)


def check_small_file(file: Path, max_bytes: int = MAX_JSON_BYTES) -> None:
    """Raises `CheckpointError` if a file is missing, is none that can be read to its end, or is too large."""
    if not file.is_file():
        what = "is not a regular file" if file.exists() else "is missing"
        raise CheckpointError(f"{file} {what}.")
    if file.stat().st_size > max_bytes:
        raise CheckpointError(f"{file} is larger than {max_bytes} bytes.")


def _parse_json(text: bytes, file: Source, kind: type[JSONValue]) -> JSONValue:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise CheckpointError(f"{file}: {short_repr(twice)} is described twice.")
        return found

    try:
        parsed = json.loads(text.decode(), object_pairs_hook=refuse_duplicates)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} should hold JSON here, and does not: {error}.") from error
    if not isinstance(parsed, kind):
        what = {dict: "object", list: "list"}[kind]
        raise CheckpointError(f"{file} should hold a JSON {what} here, not {type(parsed).__name__}.")
    return parsed
