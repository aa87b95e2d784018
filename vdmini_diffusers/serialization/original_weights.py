"""A transformer's weights as its authors published them, by diffusers' names and without being loaded.

diffusers converts such files in memory. Its converter is run here on labels in place of the tensors' rows, which shows
of which rows of the original each of diffusers' tensors consists. Rows are runs of bytes in the file, so that these
tensors are copied like those of a safetensors file.
"""

import bisect
import itertools
import math
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from torch import Tensor

from vdmini_diffusers.serialization.checkpoint_error import CheckpointError, short_message
from vdmini_diffusers.serialization.pickled_weights import check_dense, load_pickle, named_tensors
from vdmini_diffusers.serialization.safetensors_reader import DTYPE_BYTES, StoredTensor, read_header


# The label of a row: its number, scrambled by a bijection that no arithmetic respects. A converter that does more than
# move rows makes labels of rows that do not exist.
NUM_LABELS = 2**31
MULTIPLIER, MASK = 1_103_515_245, 0x55AA33CC
MAX_ROWS = 2**26  # HunyuanVideo has a tenth of that, and a label takes 16 bytes while it is made
# safetensors' names of dtypes, by PyTorch's.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def read_original_weights(file: Path, class_name: str) -> dict[str, StoredTensor]:
    """The tensors of a file by the names that diffusers gives them; only headers are read.

    Args:
        file: safetensors, or what `torch.save` wrote: tensors by name, or these under the key `module`.
        class_name: of the transformer in diffusers.

    Raises:
        CheckpointError: if the file is something else, or its conversion takes more than moving rows.
        OSError: if it cannot be read.
        ValueError: if diffusers has no converter for this class.
    """
    if class_name not in SINGLE_FILE_LOADABLE_CLASSES:
        raise ValueError(
            f"The installed diffusers converts no original checkpoint to a {class_name}: convert {file} to diffusers'"
            " layout first."
        )
    stored = read_header(file) if file.suffix == ".safetensors" else _read_archive(file)
    originals = list(stored.values())
    firsts, labels, first = [], {}, 0
    for tensor in originals:
        num_rows = tensor.shape[0] if tensor.shape else 1
        if not tensor.num_bytes or first + num_rows > MAX_ROWS:  # rows without bytes can be any number
            raise CheckpointError(
                f"{file}: tensor {tensor.name!r} has the shape {list(tensor.shape)}: weights are not empty, and have"
                f" at most {MAX_ROWS} rows in all."
            )
        firsts.append(first)
        labels[tensor.name] = _label(torch.arange(first, first + num_rows)).view(_row_shape(tensor.shape, num_rows))
        first += num_rows + 1  # so that no run of rows goes from one tensor into the next
    convert: Any = SINGLE_FILE_LOADABLE_CLASSES[class_name]["checkpoint_mapping_fn"]
    try:
        converted = convert(checkpoint=labels)
    except Exception as error:  # whatever an unknown file provokes in the converter
        raise CheckpointError(
            f"{file} is not an original checkpoint of a {class_name}, or one of another width: diffusers' converter"
            f" ends with {short_message(error)!r}."
        ) from error
    return {name: _tensor_of_rows(file, name, rows, originals, firsts) for name, rows in converted.items()}


def _label(rows: Tensor) -> Tensor:
    return (rows * MULTIPLIER % NUM_LABELS ^ MASK).int()


def _runs(labels: Tensor) -> list[tuple[int, int]]:
    """The rows with these labels as runs of rising numbers, `[(first, number of rows), ...]`."""
    inverse = pow(MULTIPLIER, -1, NUM_LABELS)
    rows = (labels.flatten().long() ^ MASK) * inverse % NUM_LABELS
    breaks = ((rows.diff() != 1).nonzero().flatten() + 1).tolist()
    return [(int(rows[start]), stop - start) for start, stop in itertools.pairwise([0, *breaks, len(rows)])]


def _row_shape(shape: Sequence[int], num_rows: int) -> tuple[int, ...]:
    return (num_rows, *(1 for _ in shape[1:])) if shape else ()


def _tensor_of_rows(
    file: Path, name: str, labels: Any, originals: Sequence[StoredTensor], firsts: Sequence[int]
) -> StoredTensor:
    """The tensor that consists of the labelled rows of `originals`, whose first rows have the numbers `firsts`."""
    refusal = CheckpointError(
        f"{file}: diffusers' converter makes {name!r} by more than moving rows: convert the file to diffusers' layout"
        " first."
    )
    if not isinstance(labels, Tensor) or labels.dtype != torch.int32 or not labels.numel():
        raise refusal
    ranges: list[tuple[int, int]] = []
    kinds = set()
    for row, num_rows in _runs(labels):
        index = bisect.bisect_right(firsts, row) - 1
        tensor = originals[index]
        row_bytes = math.prod(tensor.shape[1:]) * DTYPE_BYTES[tensor.dtype]
        start = tensor.start + (row - firsts[index]) * row_bytes
        stop = start + num_rows * row_bytes
        if stop > tensor.stop:
            raise refusal
        ranges.append((start, stop))
        kinds.add((tensor.dtype, tensor.shape[1:], _row_shape(tensor.shape, labels.shape[0] if labels.ndim else 1)))
    if len(kinds) != 1 or (kind := kinds.pop())[2] != tuple(labels.shape):
        raise refusal
    shape = (labels.shape[0], *kind[1]) if labels.ndim else ()
    return StoredTensor(file, name, kind[0], shape, tuple(ranges))


def _read_archive(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a file of `torch.save`, each with the place of its bytes in the file."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file.")
    if not zipfile.is_zipfile(file):
        raise CheckpointError(
            f"{file} is neither safetensors nor an archive of `torch.save`. If it is from before PyTorch 1.6, load it"
            " and save it again."
        )
    content = load_pickle(file)
    check_dense(dict(enumerate(_tensors(content))), file)
    offset = _file_offset(file, content)
    state = content["module"] if isinstance(content, dict) and "module" in content else content
    stored = {}
    for name, tensor in named_tensors(state, file).items():
        if tensor.dtype not in DTYPES or not tensor.is_contiguous():
            raise CheckpointError(f"{file}: tensor {name!r} is {tensor.dtype}, or not contiguous.")
        start = tensor.data_ptr() - offset
        stop = start + tensor.numel() * tensor.element_size()
        stored[name] = StoredTensor(file, name, DTYPES[tensor.dtype], tuple(tensor.shape), ((start, stop),))
    return stored


def _file_offset(file: Path, content: Any) -> int:
    """What addresses of the mapped tensors in `content` are beyond their places in the file."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(content) if t.numel()}
    records = {}
    with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
        for member in archive.infolist():
            if member.filename.endswith("/byteorder") and archive.read(member) != sys.byteorder.encode():
                raise CheckpointError(f"{file} was written on a machine of another byte order: save it again on one.")
            if member.file_size and re.search(r"/data/\d+$", member.filename):
                stream.seek(member.header_offset + 26)  # the lengths of two fields before the member's bytes
                lengths = [int.from_bytes(stream.read(2), "little") for _ in range(2)]
                records[member.header_offset + 30 + sum(lengths)] = member.file_size
    offset = min(storages, default=0) - min(records, default=0)
    if {address - offset: num_bytes for address, num_bytes in storages.items()} != records:
        raise CheckpointError(f"{file} holds other things than tensors, or was not written by `torch.save`.")
    return offset


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, (dict, list, tuple)):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _tensors(value)
