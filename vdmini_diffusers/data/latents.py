"""Latents and embeddings computed once and kept in safetensors shards.

A folder of shards holds `manifest.json` (settings, shards, skipped videos), `latents-00000.safetensors` with the
tensors of some samples, stacked, and `latents-00000.json` with the names and captions of those.
"""

import json
import os
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import default_collate

from vdmini_diffusers.data.skipped_videos import SkipLog, SkippedVideo
from vdmini_diffusers.data.video_dataset import ClipReader
from vdmini_diffusers.data.video_decoding import UnusableVideo
from vdmini_diffusers.serialization.atomic import write_file


MANIFEST = "manifest.json"
LOCK_NAME = ".lock"
MAX_COUNT = 2**53  # of bytes and samples: larger numbers in a manifest are no counts
SHARD_NAME = re.compile(r"latents-\d{5,}\.safetensors")


@contextmanager
def lock_for_writing(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps other runs from writing shards into a folder. Of several processes of one run, one takes the lock.

    It ends with the process, however that ends. Files that a stopped run left half written are removed.

    Raises:
        ValueError: if another run is writing into the folder.
        OSError: if the folder cannot be made.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_NAME, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"Another run is writing into {folder}: wait until it has finished, or choose another folder."
        ) from error
    try:
        for partial in folder.glob(".*.tmp-*"):  # as `write_file` names them
            partial.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


class LatentShards:
    """A folder of shards being written. Shards are independent: several processes of a run write different ones.

    Each file is written aside and renamed, so that it is there as a whole or not at all. A run that was stopped is
    started again with the same settings, and writes the shards that are missing or were damaged since. Two runs must
    not write into one folder: see `lock_for_writing`.

    Args:
        settings: everything that the tensors depend on; what JSON can hold.

    Raises:
        ValueError: if the folder holds something else, a malformed manifest, or shards made with other settings.
    """

    def __init__(self, folder: str | os.PathLike, settings: dict[str, Any]):
        self.folder = Path(folder)
        settings = json.loads(json.dumps(settings))
        manifest = self.folder / MANIFEST
        if not manifest.exists():
            foreign = sorted(p.name for p in self.folder.glob("*.safetensors"))
            if foreign:
                raise ValueError(f"{self.folder} has no {MANIFEST} but holds {foreign[0]}: choose another folder.")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(manifest, _to_json({"settings": settings, "complete": False}))
            return
        begun = _checked(manifest, _read_json(manifest), settings=dict, complete=bool)
        old = begun["settings"]
        keys = [key for key in {**old, **settings} if old.get(key) != settings.get(key)]
        if keys and not begun["complete"] and not any(self.folder.glob("latents-*")):  # it failed before its first
            write_file(manifest, _to_json({"settings": settings, "complete": False}))
        elif keys:
            differences = ", ".join(f"{key} was {old.get(key)!r} and is {settings.get(key)!r}" for key in keys)
            raise ValueError(
                f"{self.folder} was begun with other settings: {differences}. Go on with those, or choose another "
                "folder."
            )

    def is_finished(self, shard: int) -> bool:
        """Whether a shard is there, whole. If not, it is to be written (again)."""
        tensors = self._path(shard, "safetensors")
        try:
            info = _read_shard_info(tensors)
        except (OSError, ValueError):
            return False
        return tensors.is_file() and tensors.stat().st_size == info["num_bytes"]

    def write(self, shard: int, samples: list[dict[str, Tensor]], infos: list[dict[str, str]]) -> None:
        """
        Args:
            samples: tensors by name, of equal names and shapes. May be none, if no video of a shard can be used.
            infos: of each sample, its `name` and `caption`.
        """
        names = samples[0] if samples else {}
        tensors = {name: torch.stack([sample[name] for sample in samples]).cpu().contiguous() for name in names}
        content = safetensors.torch.save(tensors)
        write_file(self._path(shard, "safetensors"), content)
        write_file(self._path(shard, "json"), _to_json({"num_bytes": len(content), "samples": infos}))

    def finish(self, skipped: list[SkippedVideo]) -> int:
        """To be called by one process, when all have written their shards. Returns the number of samples."""
        shards = []
        for path in sorted(self.folder.glob("latents-*.json")):
            info = _read_shard_info(path)
            file = {"file": f"{path.stem}.safetensors", "num_bytes": info["num_bytes"]}
            shards.append({**file, "num_samples": len(info["samples"])})
        manifest = _read_json(self.folder / MANIFEST)
        manifest |= {"complete": True, "shards": shards, "skipped": [video._asdict() for video in skipped]}
        write_file(self.folder / MANIFEST, _to_json(manifest))
        return sum(shard["num_samples"] for shard in shards)

    def _path(self, shard: int, suffix: str) -> Path:
        return self.folder / f"latents-{shard:05d}.{suffix}"


def write_shard(
    shards: LatentShards,
    shard: int,
    rows: Iterable[Any],
    reader: ClipReader,
    encode: Callable[[dict[str, Any]], dict[str, Tensor]],
    skip_log: SkipLog,
    *,
    batch_size: int,
    num_threads: int = 0,
) -> None:
    """Reads rows, encodes the clips in batches and writes them as one shard. Unusable videos are left out and listed.

    Args:
        rows: what the shard is to hold. The same rows in the same order give the same shard, to the byte.
        encode: a batch of samples (collated as a DataLoader does) to tensors with the same batch dimension.
        num_threads: that decode ahead while others are encoded. 0: none.

    Raises:
        TooFewUsableVideos: if nearly all of the first videos are unusable.
    """

    def try_read(row: Any) -> tuple[str, dict[str, Any] | UnusableVideo]:
        try:
            return reader.name(row), reader(row)
        except UnusableVideo as why:
            return reader.name(row), why

    encoded, infos, waiting = [], [], []

    def encode_waiting() -> None:
        if waiting:
            tensors = encode(default_collate(waiting))
            encoded.extend({name: tensor[i] for name, tensor in tensors.items()} for i in range(len(waiting)))
            waiting.clear()

    for name, sample in _in_order(try_read, rows, num_threads):
        if isinstance(sample, UnusableVideo):
            skip_log.skip(name, sample)
            continue
        skip_log.count_usable()
        infos.append({"name": name, "caption": sample["caption"]})
        waiting.append(sample)
        if len(waiting) == batch_size:
            encode_waiting()
    encode_waiting()
    shards.write(shard, encoded, infos)


def _in_order(function: Callable[[Any], Any], items: Iterable[Any], num_threads: int) -> Iterator[Any]:
    """`function` of each item, in order, some computed ahead."""
    if num_threads == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        pending = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class PrecomputedLatents(torch.utils.data.Dataset):
    """Reads what `LatentShards` wrote: map-style, one sample's bytes at a time.

    A sample is what `encode` gave, without the batch dimension. `settings` are those it was made with.

    Args:
        captions: whether a sample holds its `caption` as well.

    Raises:
        ValueError: if the folder holds no finished set of shards, its manifest is malformed, or a file is missing, was
            cut short, or lies outside the folder.
    """

    def __init__(self, folder: str | os.PathLike, captions: bool = False):
        self.folder, self.captions = Path(folder), captions
        path = self.folder / MANIFEST
        if not path.is_file():
            raise ValueError(f"{self.folder} has no {MANIFEST}: make it with training/precompute_latents.py.")
        manifest = _checked(path, _read_json(path), complete=bool, settings=dict)
        if not manifest["complete"]:
            raise ValueError(f"{self.folder} is not finished: run the command that made it again, and it goes on.")
        self.settings: dict[str, Any] = manifest["settings"]
        self.files: list[Path] = []
        self._ends: list[int] = []  # index after the last sample of each file
        for shard in _checked(path, manifest, shards=list)["shards"]:
            self._add(_checked(path, shard, file=str, num_bytes=int, num_samples=int))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, row = self._locate(index)
        try:
            with safe_open(path, "pt") as file:
                sample = {name: file.get_slice(name)[row] for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError, IndexError) as error:
            raise ValueError(f"{path} does not hold the samples that {MANIFEST} counts: {error}") from error
        return sample | {"caption": self.info(index)["caption"]} if self.captions else sample

    def info(self, index: int) -> dict[str, str]:
        """`name` and `caption` of a sample. Raises `ValueError` if the file of names is missing or malformed."""
        path, row = self._locate(index)
        samples = _read_shard_info(path)["samples"]
        if row >= len(samples):
            raise ValueError(f"{path.with_suffix('.json')} names {len(samples)} samples, fewer than {MANIFEST}.")
        return _checked(path.with_suffix(".json"), samples[row], name=str, caption=str)

    def _add(self, shard: dict[str, Any]) -> None:
        """A shard of the manifest, with fields of the right types. Anyone may have written it."""
        path = self.folder / shard["file"]
        if not SHARD_NAME.fullmatch(shard["file"]):
            raise ValueError(f"{self.folder / MANIFEST} names {shard['file']!r}, which is not the name of a shard.")
        for file in (path, path.with_suffix(".json")):
            if os.path.realpath(file.parent) != os.path.dirname(os.path.realpath(file)):
                raise ValueError(f"{file} is a link that leads out of {self.folder}: copy the file there.")
        num_bytes = path.stat().st_size if path.is_file() else 0
        if num_bytes != shard["num_bytes"]:
            raise ValueError(
                f"{path} should have {shard['num_bytes']:,} bytes and has {num_bytes:,}: copy it again, or run the "
                "command that made it again."
            )
        if shard["num_samples"]:
            self.files.append(path)
            self._ends.append(len(self) + shard["num_samples"])

    def _locate(self, index: int) -> tuple[Path, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"Sample {index} of {len(self)}.")
        shard = bisect_right(self._ends, index)
        return self.files[shard], index - (self._ends[shard - 1] if shard else 0)


def _read_shard_info(tensors: Path) -> dict[str, Any]:
    """`num_bytes` of a shard, and `samples`, a list. Raises `ValueError` if its JSON file is missing or malformed."""
    path = tensors.with_suffix(".json")
    return _checked(path, _read_json(path), num_bytes=int, samples=list)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error


def _checked(path: Path, content: Any, **types: type) -> dict[str, Any]:
    """The content, an object. Raises `ValueError` if it lacks one of the fields, or one is of another type."""
    if not isinstance(content, dict):
        raise ValueError(f"{path} is malformed: it holds a {type(content).__name__} in the place of named fields.")
    for name, kind in types.items():
        value: Any = content.get(name)
        if type(value) is not kind or (kind is int and not 0 <= value <= MAX_COUNT):
            raise ValueError(f"{path} is malformed: {name!r} should be a {kind.__name__}; got {str(value)[:100]}.")
    return content


def _to_json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()
