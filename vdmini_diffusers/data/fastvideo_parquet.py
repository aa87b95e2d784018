"""Latents and text embeddings as FastVideo stores them: parquet files, with bytes, shape and dtype of each tensor."""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdmini_diffusers.data.tables import reading


TENSORS = ("vae_latent", "text_embedding")
COLUMNS = (*(f"{name}_{part}" for name in TENSORS for part in ("bytes", "shape", "dtype")), "fps")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ROWS_IN_MEMORY = 100  # at least, of whole groups: neighbours in a file are often of one video
Convert = Callable[[Tensor, Tensor], dict[str, Tensor]]


def holds_parquet(folder: str | os.PathLike) -> bool:
    """Whether a folder, or one in it, has parquet files."""
    return next(Path(folder).rglob("*.parquet"), None) is not None


class FastVideoParquet(torch.utils.data.Dataset):
    """Reads what FastVideo's preprocessing for text to video wrote: map-style.

    A row cannot be read without its group. The last few groups, of `ROWS_IN_MEMORY` rows and less than one group more,
    are kept: in the order of `sampler`, each is read once an epoch.

    Args:
        folder: with parquet files, in any subfolders.
        convert: from a row's latents `(channels, frames, h, w)`, as the VAE gave them, and its text embedding
            `(tokens, width)`, both float32, to the tensors of a sample, all of whose shapes are those of other rows.

    Raises:
        ValueError: if the folder holds no such file, one cannot be read or lacks a column, or there is no row.
    """

    def __init__(self, folder: str | os.PathLike, convert: Convert):
        from pyarrow import parquet

        self.convert = convert
        self.groups: list[tuple[Path, int]] = []  # file and number of each group of rows
        self._ends: list[int] = []  # index after the last row of each group
        for file in sorted(Path(folder).rglob("*.parquet")):
            with reading(file):
                opened = parquet.ParquetFile(file)
            if missing := sorted(set(COLUMNS) - set(opened.schema_arrow.names)):
                raise ValueError(
                    f"{file} has no column {missing[0]}: it was not made by FastVideo's preprocessing for text to"
                    " video."
                )
            for number in range(opened.num_row_groups):
                rows = opened.metadata.row_group(number).num_rows
                if rows:
                    self.groups.append((file, number))
                    self._ends.append(len(self) + rows)
        if not self.groups:
            raise ValueError(f"{folder} has no parquet file with a row in it.")
        largest = max(end - start for start, end in self._ranges())
        self._num_tables = -(-ROWS_IN_MEMORY // largest)
        self._tables: dict[int, Any] = {}  # groups that were read, the last one at the end

    def _ranges(self) -> list[tuple[int, int]]:
        """Index of the first row of each group, and after its last."""
        return list(zip([0, *self._ends], self._ends, strict=False))

    def sampler(self, num_samples: int, seed: int) -> "GroupSampler":
        """A random order of the first `num_samples` samples, that reads each group once."""
        ranges = [(start, min(end, num_samples)) for start, end in self._ranges() if start < num_samples]
        return GroupSampler(ranges, self._num_tables, seed)

    def latent_shapes(self) -> set[tuple[int, ...]]:
        """The shapes of all clips' latents. Batches of several clips need one shape."""
        from pyarrow import parquet

        shapes: set[tuple[int, ...]] = set()
        for file in dict.fromkeys(file for file, _ in self.groups):
            with reading(file):
                column = parquet.read_table(file, columns=["vae_latent_shape"]).column(0)
            shapes |= {tuple(shape or ()) for shape in column.to_pylist()}
        return shapes

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"Sample {index} of {len(self)}.")
        group = bisect_right(self._ends, index)
        file, number = self.groups[group]
        row = index - (self._ends[group - 1] if group else 0)
        with reading(file):
            values = self._table(group).slice(row, 1).to_pylist()[0]
        latents, text = (_tensor(values, name, f"{file}, row {row} of group {number}") for name in TENSORS)
        return self.convert(latents, text) | {"fps": torch.tensor(float(values["fps"] or 0))}

    def _table(self, group: int) -> Any:
        """The rows of a group, which is read if it is not among the last ones."""
        from pyarrow import parquet

        if group in self._tables:
            self._tables[group] = self._tables.pop(group)
            return self._tables[group]
        while len(self._tables) >= self._num_tables:  # before the next is read, so that there are never more
            del self._tables[next(iter(self._tables))]
        file, number = self.groups[group]
        self._tables[group] = parquet.ParquetFile(file).read_row_group(number, columns=list(COLUMNS))
        return self._tables[group]


class GroupSampler(torch.utils.data.Sampler[int]):
    """Rows in random order, a few groups at a time: the groups are shuffled, and then the rows of each few together.

    The order depends on the seed and on the epoch alone, so that all processes divide the same one.

    Args:
        ranges: of each group, the index of its first row, and after its last.
        num_groups: whose rows are shuffled together.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]], num_groups: int, seed: int):
        self.ranges, self.num_groups, self.seed, self.epoch = ranges, num_groups, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(end - start for start, end in self.ranges)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        for groups in torch.randperm(len(self.ranges), generator=generator).split(self.num_groups):
            rows = torch.cat([torch.arange(*self.ranges[group]) for group in groups.tolist()])
            yield from rows[torch.randperm(len(rows), generator=generator)].tolist()


def _tensor(row: Mapping[str, Any], name: str, where: str) -> Tensor:
    """A tensor of a row, in float32. FastVideo itself reads float32 whatever the dtype says."""
    content, shape, dtype = (row[f"{name}_{part}"] for part in ("bytes", "shape", "dtype"))
    size = torch.Size(shape or ())
    kind = DTYPES.get(str(dtype).removeprefix("torch."), torch.float32)
    kind = torch.float32 if content and len(content) == 4 * size.numel() else kind
    if not content or not shape or len(content) != kind.itemsize * size.numel():
        raise ValueError(
            f"{where}: {name} has {len(content or b'')} bytes, which are not those of the shape {shape} in {dtype}."
        )
    return torch.frombuffer(bytearray(content), dtype=kind).view(size).float()
