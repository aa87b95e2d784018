"""Latents and embeddings computed once and kept in safetensors shards.

A folder of shards holds `manifest.json` (settings, shards, skipped videos), `latents-00000.safetensors` with the
tensors of some samples, stacked, and `latents-00000.json` with the names and captions of those.
"""

import json
import os
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import default_collate

from vdmini_diffusers.data.skipped_videos import SkipLog, SkippedVideo
from vdmini_diffusers.data.video_dataset import ClipReader
from vdmini_diffusers.data.video_decoding import UnusableVideo


MANIFEST = "manifest.json"


class LatentShards:
    """A folder of shards being written. Shards are independent: several processes write different ones at once.

    What is there is complete: each file is written aside and renamed. A process that was killed is started again with
    the same settings and writes the shards that are missing.

    Args:
        settings: everything that the tensors depend on; what JSON can hold.

    Raises:
        ValueError: if the folder holds something else, or shards made with other settings.
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
            _write_aside(manifest, _to_json({"settings": settings, "complete": False}))
            return
        old = json.loads(manifest.read_text("utf-8"))["settings"]
        keys = [key for key in {**old, **settings} if old.get(key) != settings.get(key)]
        if keys:
            differences = ", ".join(f"{key} was {old.get(key)!r} and is {settings.get(key)!r}" for key in keys)
            raise ValueError(
                f"{self.folder} was begun with other settings: {differences}. Go on with those, or choose another "
                "folder."
            )

    def is_finished(self, shard: int) -> bool:
        return self._path(shard, "json").exists()

    def write(self, shard: int, samples: list[dict[str, Tensor]], infos: list[dict[str, str]]) -> None:
        """
        Args:
            samples: tensors by name, of equal names and shapes. May be none, if no video of a shard can be used.
            infos: of each sample, its `name` and `caption`.
        """
        names = samples[0] if samples else {}
        tensors = {name: torch.stack([sample[name] for sample in samples]).cpu().contiguous() for name in names}
        content = safetensors.torch.save(tensors)
        _write_aside(self._path(shard, "safetensors"), content)
        _write_aside(self._path(shard, "json"), _to_json({"num_bytes": len(content), "samples": infos}))

    def finish(self, skipped: list[SkippedVideo]) -> int:
        """To be called by one process, when all have written their shards. Returns the number of samples."""
        shards = []
        for path in sorted(self.folder.glob("latents-*.json")):
            info = json.loads(path.read_text("utf-8"))
            file = {"file": f"{path.stem}.safetensors", "num_bytes": info["num_bytes"]}
            shards.append({**file, "num_samples": len(info["samples"])})
        manifest = json.loads((self.folder / MANIFEST).read_text("utf-8"))
        manifest |= {"complete": True, "shards": shards, "skipped": [video._asdict() for video in skipped]}
        _write_aside(self.folder / MANIFEST, _to_json(manifest))
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
        ValueError: if the folder holds no finished set of shards, or a file is missing or was cut short.
    """

    def __init__(self, folder: str | os.PathLike, captions: bool = False):
        self.folder, self.captions = Path(folder), captions
        if not (self.folder / MANIFEST).is_file():
            raise ValueError(f"{self.folder} has no {MANIFEST}: make it with training/precompute_latents.py.")
        manifest = json.loads((self.folder / MANIFEST).read_text("utf-8"))
        if not manifest["complete"]:
            raise ValueError(f"{self.folder} is not finished: run the command that made it again, and it goes on.")
        self.settings: dict[str, Any] = manifest["settings"]
        self.files: list[Path] = []
        self._ends: list[int] = []  # index after the last sample of each file
        for shard in manifest["shards"]:
            path = self.folder / shard["file"]
            num_bytes = path.stat().st_size if path.is_file() else 0
            if num_bytes != shard["num_bytes"]:
                raise ValueError(
                    f"{path} should have {shard['num_bytes']:,} bytes and has {num_bytes:,}: copy it again."
                )
            if shard["num_samples"]:
                self.files.append(path)
                self._ends.append(len(self) + shard["num_samples"])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, row = self._locate(index)
        with safe_open(path, "pt") as file:
            sample = {name: file.get_slice(name)[row] for name in file.keys()}  # noqa: SIM118 - not a mapping
        return sample | {"caption": self.info(index)["caption"]} if self.captions else sample

    def info(self, index: int) -> dict[str, str]:
        """`name` and `caption` of a sample."""
        path, row = self._locate(index)
        return json.loads(path.with_suffix(".json").read_text("utf-8"))["samples"][row]

    def _locate(self, index: int) -> tuple[Path, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"Sample {index} of {len(self)}.")
        shard = bisect_right(self._ends, index)
        return self.files[shard], index - (self._ends[shard - 1] if shard else 0)


def _to_json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def _write_aside(path: Path, content: bytes) -> None:
    """Under its name the file appears whole, also after a power cut."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
