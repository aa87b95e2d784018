"""Clips out of Hugging Face datasets: folders of videos, parquet, WebDataset tars, CSV files; map-style or streaming.

What a sample gives depends on the seed, the epoch and the sample's name only, not on ranks, workers or order.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.listed_files import inside_roots, leads_into
from vdmini_diffusers.data.local_folder import open_local_data
from vdmini_diffusers.data.skipped_videos import SkipLog, SkippedVideo
from vdmini_diffusers.data.tables import Table, choose_columns, reading
from vdmini_diffusers.data.video_decoding import UnusableVideo, decode_clip


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
        self.source = str(args.dataset_name or args.train_data_dir)  # for messages
        self.data_dir = data_dir and os.path.abspath(data_dir)
        self.roots = inside_roots(data_dir) if data_dir else [os.path.realpath(cache) for cache in _caches(args)]
        subfolders = [path for entry in os.scandir(data_dir) if os.path.isdir(path := entry.path)] if data_dir else []
        self.search = [self.roots[0], *sorted(subfolders)]
        self.seed = seed

    def __call__(self, row: dict[str, Any], epoch: int = 0) -> dict[str, Any]:
        """
        Returns:
            `pixel_values` (float32 `(frames, 3, height, width)`, -1 to 1), `fps`, `motion_bucket_id`, `caption`
            (empty if there is none), `name`.

        Raises:
            UnusableVideo: if the video gives no clip, or has no caption where it needs one.
            ValueError: if the row names a file outside of the data folder, or a column holds something else.
        """
        args, name = self.args, self.name(row)
        caption = row[self.caption_column] if self.caption_column else None
        if not isinstance(caption, str | None):
            raise ValueError(f"Column {self.caption_column!r} should hold text; for {name} it holds {type(caption)}.")
        if args.needs_captions and not (caption and caption.strip()):
            raise UnusableVideo("no caption")
        clip = decode_clip(
            self._source(row),
            num_frames=args.num_frames,
            fps=args.fps,
            height=args.height,
            width=args.width,
            rng=np.random.default_rng(seed_of(self.seed, epoch, name)),
            center_crop=args.center_crop,
        )
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
        """Whether a row's path leads to a file. Links are not followed.

        Raises:
            ValueError: if it leads out of the data folder.
        """
        if self._is_own_address(path):
            return True
        self._check_inside(path, os.path.abspath(os.path.join(self.roots[0], path)))
        return any(os.path.isfile(os.path.join(folder, path)) for folder in self.search)

    def _source(self, row: dict[str, Any]) -> bytes | str:
        content, path = self._content_and_path(row)
        if content is not None:
            return content
        if path is None:
            raise UnusableVideo("no video")
        if self._is_own_address(path):
            from huggingface_hub import HfFileSystem

            try:
                return HfFileSystem().read_bytes(path)
            except FileNotFoundError as error:
                raise UnusableVideo("file missing") from error
        files = [os.path.join(folder, path) for folder in self.search]
        file = next(filter(os.path.lexists, files), files[0])
        self._check_inside(path, os.path.abspath(file) if "\0" in file else os.path.realpath(file))
        if not os.path.isfile(file):
            raise UnusableVideo("file missing")
        return file

    def _is_own_address(self, path: str) -> bool:
        """Whether a path is an address in the repository on the Hub that the row came from.

        Raises:
            ValueError: if it is any other address. Anyone can write one into a table, and it would be fetched with the
                user's token.
        """
        if "://" not in path:
            return False
        repository = f"hf://datasets/{self.args.dataset_name}"
        if (
            _is_from_hub(self.args)
            and path.startswith((f"{repository}/", f"{repository}@"))
            and ".." not in path.split("/")
        ):
            return True
        raise ValueError(
            f"Column {self.video_column!r} of {self.source} names {path!r}, an address. Nothing is fetched for it: "
            "download the videos, and name the files."
        )

    def _check_inside(self, path: str, file: str) -> None:
        if not leads_into(file, self.roots):
            raise ValueError(
                f"Column {self.video_column!r} names {path!r}, which leads out of the data folder {self.roots[0]} "
                "(links are followed). Only files in it are read: move them there, and name them relative to it."
            )

    def _content_and_path(self, row: dict[str, Any]) -> tuple[bytes | None, str | None]:
        video = row[self.video_column]
        content, path = video, None
        if isinstance(video, dict):
            content, path = video.get("bytes"), video.get("path")
        elif isinstance(video, str):
            content, path = None, video
        # Text in `bytes` must not become a path.
        if not isinstance(content, bytes | None) or not isinstance(path, str | None):
            raise ValueError(
                f"Column {self.video_column!r} of {self.source} should hold videos: bytes, paths, or `bytes` and "
                f"`path` of each; it holds {str(video)[:200]}."
            )
        return content, path


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

    def read_row(self, index: int) -> dict[str, Any]:
        """The row of which a sample is made. Raises `ValueError` if the data files are malformed."""
        with reading(self.reader.source):
            return self.rows[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises `TooFewUsableVideos` if all, or nearly all of the first ones, are unusable."""
        for offset in range(len(self)):
            row = self.read_row((index + offset) % len(self))
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

    def read_rows(self) -> Iterator[dict[str, Any]]:
        """This rank's rows, of which samples are made. Raises `ValueError` if a data file is malformed."""
        rows = iter(self.rows)
        while True:
            with reading(self.reader.source):
                row = next(rows, None)
            if row is None:
                return
            yield row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self.read_rows():
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
        shuffle, process_index, num_processes: for streaming. A map-style dataset is shuffled and divided by its
            DataLoader.

    Raises:
        ValueError: if there is no such data, a file is malformed, its columns are not clear, paths lead out of the
            data folder, or there are no captions where they are needed.
        TooFewUsableVideos: if the dataset names files, and none of them is there.
        ImportError: without the packages of the extra `train`.
    """
    try:
        import datasets
        from datasets.distributed import split_dataset_by_node
    except ImportError as error:
        raise ImportError("Training data is read by `datasets`: `pip install -e '.[train]'`.") from error
    table = _open_data(args, skip_log)
    video_column, caption_column = table.video_column, table.caption_column
    rows, features = table.rows, table.rows.features or {}
    rows = rows.select_columns([column for column in (video_column, caption_column) if column is not None])
    if isinstance(features.get(video_column), datasets.Video):
        rows = rows.cast_column(video_column, datasets.Video(decode=False))  # decoding would need torchcodec
    reader = ClipReader(args, video_column, caption_column, table.folder, seed)

    if args.streaming:
        if table.holds_paths:
            there = partial(_is_there, reader=reader, skip_log=skip_log)
            rows = rows.filter(there, input_columns=[video_column])
        rows = rows.take(args.max_train_samples) if args.max_train_samples else rows
        rows = split_dataset_by_node(rows, rank=process_index, world_size=num_processes)
        rows = rows.shuffle(seed=seed, buffer_size=args.shuffle_buffer_size) if shuffle else rows
        return VideoStream(rows, reader, skip_log)
    if table.holds_paths:
        rows = _select_existing(rows, reader, skip_log)
    if args.max_train_samples:
        rows = rows.select(range(min(args.max_train_samples, len(rows))))
    if not len(rows):
        raise ValueError(f"The dataset {reader.source} has no rows.")
    if args.needs_captions:
        with reading(reader.source):
            is_any = any(caption and caption.strip() for caption in rows[caption_column])
        if not is_any:
            raise ValueError(f"Text to video is trained on captions, and those of {reader.source} are all empty.")
    return VideoDataset(rows, reader, skip_log)


def _open_data(args: VideoDataArguments, skip_log: SkipLog) -> Table:
    from datasets import load_dataset

    folder = Path(args.train_data_dir) if args.train_data_dir else None
    if folder is not None and not folder.exists():
        raise ValueError(f"--train_data_dir {folder} does not exist.")
    if folder is None and not _is_from_hub(args):
        folder = Path(args.dataset_name or "")
    if folder is not None and (not args.dataset_name or (not args.train_data_dir and not args.dataset_config_name)):
        return open_local_data(args, folder, skip_log)
    name = args.dataset_name or ""  # `VideoDataArguments` refuses to have neither source
    with reading(f"--dataset_name {name}"):
        options: dict[str, Any] = {"streaming": args.streaming, "cache_dir": args.cache_dir}
        rows = load_dataset(name, args.dataset_config_name, split="train", **options)
    return Table(rows, folder, *choose_columns(args, rows, name))


def _is_from_hub(args: VideoDataArguments) -> bool:
    return args.dataset_name is not None and not os.path.exists(args.dataset_name)


def _select_existing(rows: Any, reader: ClipReader, skip_log: SkipLog) -> Any:
    """Leaves out the rows whose file is not there, as few have all parts of a dataset such as OpenVid-1M."""
    with reading(reader.source):
        there = [index for index, path in enumerate(rows[reader.video_column]) if _is_there(path, reader, skip_log)]
    if not there and len(rows):
        skip_log.raise_too_few()
    return rows.select(there)


def _is_there(path: str | None, reader: ClipReader, skip_log: SkipLog) -> bool:
    """Whether a row's path leads to a file; if not, the video is listed."""
    if path and reader.exists(path):
        return True
    skip_log.add([SkippedVideo(path or "(no video)", "file missing", "")])
    return False
