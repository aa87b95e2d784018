"""Clips out of Hugging Face datasets: folders of videos, parquet, WebDataset tars, CSV files; map-style or streaming.

What a sample gives depends on the seed, the epoch and the sample's name only, not on ranks, workers or order.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.skipped_videos import SkipLog, SkippedVideo
from vdmini_diffusers.data.video_decoding import UnusableVideo, decode_clip


CAPTION_COLUMNS = ("caption", "text", "txt")
MAX_WORKERS = 1024  # of one DataLoader


def seed_of(*parts: int | str) -> int:
    """A seed for a random generator (63 bits), the same in every process."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") >> 1


class ClipReader:
    """Turns a row of a dataset into a sample.

    Args:
        data_dir: the folder that paths in the rows lead into; a relative path is looked for there and in its direct
            subfolders. `None` for data from the Hub: paths then lead into the caches of `datasets`.
    """

    def __init__(
        self,
        args: VideoDataArguments,
        video_column: str,
        caption_column: str | None,
        data_dir: str | os.PathLike | None,
        seed: int,
    ):
        self.args = args
        self.video_column, self.caption_column = video_column, caption_column
        self.data_dir = data_dir and os.path.abspath(data_dir)
        self.roots = [os.path.realpath(root) for root in ([data_dir] if data_dir else _caches(args))]
        subfolders = [entry.path for entry in os.scandir(data_dir) if entry.is_dir()] if data_dir else []
        self.search = [self.roots[0], *sorted(subfolders)]
        self.seed = seed

    def __call__(self, row: dict[str, Any], epoch: int = 0) -> dict[str, Any]:
        """
        Returns:
            `pixel_values` (float32 `(frames, 3, height, width)`, -1 to 1), `fps`, `motion_bucket_id`, `caption`
            (empty if there is none), `name`.

        Raises:
            UnusableVideo: if the video gives no clip.
            ValueError: if the row names a file outside of the data folder, or a column holds something else.
        """
        args, name = self.args, self.name(row)
        clip = decode_clip(
            self._source(row),
            num_frames=args.num_frames,
            fps=args.fps,
            height=args.height,
            width=args.width,
            rng=np.random.default_rng(seed_of(self.seed, epoch, name)),
            center_crop=args.center_crop,
        )
        caption = row[self.caption_column] if self.caption_column else None
        if not isinstance(caption, str | None):
            raise ValueError(f"Column {self.caption_column!r} should hold text; for {name} it holds {type(caption)}.")
        return {
            "pixel_values": 2 * (clip.float() / 255) - 1,  # as diffusers' VideoProcessor, to the last bit
            "fps": args.fps,
            "motion_bucket_id": args.motion_bucket_id,
            "caption": caption or "",
            "name": name,
        }

    def name(self, row: dict[str, Any]) -> str:
        """Path in the data folder, or hash of the bytes: the same on every machine, map-style and streaming."""
        content, path = self._content_and_path(row)
        if path is None:
            return "(no video)" if content is None else hashlib.sha256(content).hexdigest()[:16]
        for root in filter(None, (self.data_dir, self.data_dir and self.roots[0])):
            if os.path.isabs(path) and Path(path).is_relative_to(root):
                return Path(path).relative_to(root).as_posix()
        return os.path.basename(path) if os.path.isabs(path) or "://" in path else path

    def exists(self, path: str) -> bool:
        """Whether a row's path leads to a file. Raises `ValueError` if it leads outside (links are not followed)."""
        self._check_inside(path, os.path.abspath(os.path.join(self.roots[0], path)))
        return any(os.path.isfile(os.path.join(folder, path)) for folder in self.search)

    def _source(self, row: dict[str, Any]) -> bytes | str:
        content, path = self._content_and_path(row)
        if content is not None:
            return content
        if path is None:
            raise UnusableVideo("no video")
        if path.startswith("hf://"):
            from huggingface_hub import HfFileSystem

            return HfFileSystem().read_bytes(path)
        files = [os.path.join(folder, path) for folder in self.search]
        file = next(filter(os.path.lexists, files), files[0])
        self._check_inside(path, os.path.realpath(file))
        if not os.path.isfile(file):
            raise UnusableVideo("file missing")
        return file

    def _check_inside(self, path: str, file: str) -> None:
        if not any(Path(file).is_relative_to(root) for root in self.roots):
            raise ValueError(
                f"Column {self.video_column!r} names {path!r}, which leads out of the data folder {self.roots[0]} "
                "(links are followed). Only files in it are read: move them there, and name them relative to it."
            )

    def _content_and_path(self, row: dict[str, Any]) -> tuple[bytes | None, str | None]:
        video = row[self.video_column]
        if isinstance(video, dict):
            return video["bytes"], video["path"]
        if isinstance(video, str):
            return None, video
        if isinstance(video, bytes | None):
            return video, None
        raise ValueError(f"Column {self.video_column!r} should hold videos (bytes or paths); it holds {type(video)}.")


def _caches(args: VideoDataArguments) -> list[str]:
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    return [*([args.cache_dir] if args.cache_dir else []), str(datasets.config.HF_DATASETS_CACHE), HF_HUB_CACHE]


def read_or_skip(reader: ClipReader, row: Any, epoch: int, skip_log: SkipLog) -> dict[str, Any] | None:
    """The sample, counted; or None, and the video is listed. Raises `TooFewUsableVideos` as `SkipLog` does."""
    try:
        sample = reader(row, epoch)
    except UnusableVideo as why:
        skip_log.skip(reader.name(row), why)
        return None
    skip_log.count_usable()
    return sample


class VideoDataset(torch.utils.data.Dataset):
    """Map-style: for any DataLoader, with accelerate's own division among ranks. Samples are those of `ClipReader`.

    An unusable video is listed in `skip_log`, and the next usable one of the dataset takes its place.
    """

    def __init__(self, rows: Any, reader: ClipReader, skip_log: SkipLog):
        self.rows, self.reader, self.skip_log = rows, reader, skip_log
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()  # also seen by workers that live on

    def set_epoch(self, epoch: int) -> None:
        """Other moments and crops of the same videos. Call it before iterating."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises `TooFewUsableVideos` if all, or nearly all of the first ones, are unusable."""
        for offset in range(len(self)):
            row = self.rows[(index + offset) % len(self)]
            sample = read_or_skip(self.reader, row, int(self._epoch), self.skip_log)
            if sample is not None:
                return sample
        self.skip_log.raise_too_few()


class VideoStream(torch.utils.data.IterableDataset):
    """Streaming, divided among ranks already: do not give its DataLoader to `accelerator.prepare`.

    DataLoader workers divide the data files among them. Unusable videos are listed in `skip_log` and left out; if it
    is all of a rank, or nearly all of the first ones, iterating raises `TooFewUsableVideos`.
    """

    def __init__(self, rows: Any, reader: ClipReader, skip_log: SkipLog):
        self.rows, self.reader, self.skip_log = rows, reader, skip_log
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()
        self._num_usable = torch.full((MAX_WORKERS,), -1).share_memory_()  # by each worker that has finished

    def set_epoch(self, epoch: int) -> None:
        """Another order, other moments and crops. Call it before iterating."""
        self._epoch.fill_(epoch)
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            sample = read_or_skip(self.reader, row, int(self._epoch), self.skip_log)
            if sample is not None:
                yield sample
        worker = torch.utils.data.get_worker_info()
        self._num_usable[worker.id if worker else 0] = self.skip_log.num_usable
        if not self._num_usable[: worker.num_workers if worker else 1].any():
            self.skip_log.raise_too_few()


def load_video_dataset(
    args: VideoDataArguments,
    skip_log: SkipLog,
    *,
    seed: int = 0,
    shuffle: bool = True,
    process_index: int = 0,
    num_processes: int = 1,
) -> VideoDataset | VideoStream:
    """The training videos that `args` names, from the Hub or from a folder. Nothing is decoded yet.

    Args:
        shuffle, process_index, num_processes: for streaming; for a map-style dataset they are its DataLoader's matter.

    Raises:
        ValueError: if there is no such data, its columns cannot be told, or paths lead out of the data folder.
        TooFewUsableVideos: if the dataset names files, and none of them is there.
        ImportError: without the packages of the extra `train`.
    """
    try:
        import datasets
        from datasets.distributed import split_dataset_by_node
    except ImportError as error:
        raise ImportError("Training data is read by `datasets`: `pip install vdmini_diffusers[train]`.") from error
    rows, data_dir = _load_rows(args)
    columns = rows.column_names or list(next(iter(rows)))
    features = rows.features or {}
    videos = [column for column, feature in features.items() if isinstance(feature, datasets.Video)] or ["video"]
    video_column = _column(columns, args.video_column, videos, "video")
    if video_column is None:
        raise ValueError(f"No column holds videos; there are {columns}. Name one with --video_column.")
    caption_column = _column(columns, args.caption_column, CAPTION_COLUMNS, "caption")
    rows = rows.select_columns([column for column in columns if column in (video_column, caption_column)])
    if isinstance(features.get(video_column), datasets.Video):
        rows = rows.cast_column(video_column, datasets.Video(decode=False))  # decoding would need torchcodec
    reader = ClipReader(args, video_column, caption_column, data_dir, seed)

    if args.streaming:
        rows = rows.take(args.max_train_samples) if args.max_train_samples else rows
        rows = split_dataset_by_node(rows, rank=process_index, world_size=num_processes)
        rows = rows.shuffle(seed=seed, buffer_size=args.shuffle_buffer_size) if shuffle else rows
        return VideoStream(rows, reader, skip_log)
    if isinstance(features.get(video_column), datasets.Value) and features[video_column].dtype == "string":
        rows = _select_existing(rows, reader, skip_log)
    if args.max_train_samples:
        rows = rows.select(range(min(args.max_train_samples, len(rows))))
    if not len(rows):
        raise ValueError(f"The dataset {args.dataset_name or args.train_data_dir} has no rows.")
    return VideoDataset(rows, reader, skip_log)


def _load_rows(args: VideoDataArguments) -> tuple[Any, Path | None]:
    """The dataset, and the local folder that its paths lead into, if it is local."""
    from datasets import load_dataset

    options: dict[str, Any] = {"split": "train", "streaming": args.streaming, "cache_dir": args.cache_dir}
    source = Path(args.train_data_dir) if args.train_data_dir else None
    if source is not None and not source.exists():
        raise ValueError(f"--train_data_dir {source} does not exist.")
    if args.dataset_name:
        if source is None and os.path.isdir(args.dataset_name):
            source = Path(args.dataset_name)
        return load_dataset(args.dataset_name, args.dataset_config_name, **options), source
    assert source is not None
    if csv_file := _csv_file(source):
        return load_dataset("csv", **_csv_options(csv_file, args), **options), csv_file.parent
    if not source.is_dir():
        raise ValueError(f"--train_data_dir is a folder, or a CSV file; {source} is neither.")
    for builder, pattern in (("parquet", "*.parquet"), ("webdataset", "*.tar")):
        if files := sorted(map(str, source.rglob(pattern))):
            return load_dataset(builder, data_files={"train": files}, **options), source
    try:
        return load_dataset("videofolder", data_dir=str(source), **options), source
    except FileNotFoundError as error:  # datasets.exceptions.EmptyDatasetError and DataFilesNotFoundError are such
        raise ValueError(
            f"--train_data_dir {source} holds no training data: a CSV file, parquet files, tars or videos."
        ) from error


def _csv_file(source: Path) -> Path | None:
    if source.is_file():
        return source if source.suffix == ".csv" else None
    files = sorted(file for file in source.glob("*.csv") if file.name != "metadata.csv")  # that one is videofolder's
    if len(files) > 1:
        raise ValueError(f"{source} holds several CSV files: give one of them as --train_data_dir, e.g. {files[0]}.")
    return files[0] if files else None


def _csv_options(csv_file: Path, args: VideoDataArguments) -> dict[str, Any]:
    """Reads two columns, both as text: names and captions may look like numbers or like missing values."""
    from datasets import Features, Value

    with open(csv_file, newline="", encoding="utf-8-sig") as file:
        header = next(csv.reader(file), [])
    video = _column(header, args.video_column, ("video",), "video")
    if video is None:
        raise ValueError(f"{csv_file} has no column `video`; it has {header}. Name one with --video_column.")
    caption = _column(header, args.caption_column, CAPTION_COLUMNS, "caption")
    columns = [column for column in header if column in (video, caption)]
    features = Features({column: Value("string") for column in columns})
    return {
        "data_files": {"train": [str(csv_file)]},
        "usecols": columns,
        "features": features,
        "keep_default_na": False,
        "encoding": "utf-8-sig",
    }


def _column(columns: list[str], asked: str | None, usual: list[str] | tuple[str, ...], kind: str) -> str | None:
    if asked is not None and asked not in columns:
        raise ValueError(f"--{kind}_column {asked!r} is not in the dataset; it has {columns}.")
    return asked or next((column for column in usual if column in columns), None)


def _select_existing(rows: Any, reader: ClipReader, skip_log: SkipLog) -> Any:
    """Leaves out the rows whose file is not there, as few have all parts of a dataset such as OpenVid-1M."""
    paths = rows[reader.video_column]
    there = [index for index, path in enumerate(paths) if path and reader.exists(path)]
    found = set(there)
    missing = [path or "(no video)" for index, path in enumerate(paths) if index not in found]
    skip_log.add([SkippedVideo(path, "file missing", "") for path in missing])
    if not there and missing:
        skip_log.raise_too_few()
    return rows.select(there)
