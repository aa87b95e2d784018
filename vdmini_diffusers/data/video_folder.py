"""A folder of video files, with captions in metadata files or in text files beside the videos."""

import csv
import json
import posixpath
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.listed_files import ARCHIVE_ENDINGS, SPLITS, VIDEO_ENDINGS, ending_of
from vdmini_diffusers.data.skipped_videos import SkippedVideo
from vdmini_diffusers.data.tables import Table, choose_caption_column, is_text, reading


METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
PATH_COLUMNS = ("file_name", "video_file_name", "video")  # of metadata files; the first two as `datasets` has them
MAX_STREAM_SHARDS = 1024  # among which ranks and DataLoader workers divide a stream of video files


def open_videos(args: VideoDataArguments, source: Path, files: list[str]) -> tuple[Table, list[SkippedVideo]]:
    """A folder of videos, in order of their paths, and the files that are left out."""
    from datasets import Dataset, Features, Value

    described: dict[str, list[dict[str, Any]]] = {}
    tables = [file for file in files if posixpath.basename(file) in METADATA_NAMES]
    for table in tables:
        for path, fields in _read_metadata(source, table):
            described.setdefault(path, []).append(fields)
    there = set(files)
    videos = [file for file in files if ending_of(file) in VIDEO_ENDINGS or file in described]
    texts = {video: text for video in videos if (text := posixpath.splitext(video)[0] + ".txt") in there}
    used = {*videos, *tables, *texts.values()}
    skipped = [SkippedVideo(path, "file missing", "") for path in described if path not in there]
    for file in files:
        if file not in used:
            archive = ending_of(file) in ARCHIVE_ENDINGS
            skipped.append(
                SkippedVideo(file, "an archive", "unpack it")
                if archive
                else SkippedVideo(file, "no video by name", "")
            )
    if not videos:
        endings = Counter(f".{ending_of(file)}" if ending_of(file) else "no ending" for file in files)
        found = ", ".join(f"{number} {ending}" for ending, number in endings.most_common(5)) or "nothing"
        raise ValueError(
            f"{source} holds no training data: a CSV file, parquet files, tars or videos. It holds "
            f"{found}{' (archives are to be unpacked first)' if ARCHIVE_ENDINGS & set(map(ending_of, files)) else ''}."
        )
    if all(video.partition("/")[0].lower() in SPLITS and "/" in video for video in videos):
        # One folder alone, or held-out ones alone, are what was asked for.
        train = [video for video in videos if SPLITS[video.partition("/")[0].lower()] == "train"] or videos
        skipped += [SkippedVideo(video, "another split", "") for video in videos if video not in set(train)]
        videos = train

    keys = dict.fromkeys(key for several in described.values() for fields in several for key in fields)
    columns = [*keys, *(["txt"] if texts and "txt" not in keys else [])]
    caption_column = choose_caption_column(args, columns, source)
    may_be_beside = caption_column is not None and args.caption_column in (None, "txt")
    rows: dict[tuple[str, str | None], None] = {}
    for video in videos:
        beside = _read_text(source / texts[video]) if may_be_beside and video in texts else None
        for fields in described.get(video, [{}]):
            caption = fields.get(caption_column) if caption_column else None
            if not isinstance(caption, str | None) or not is_text(caption or ""):
                raise ValueError(
                    f"The metadata of {source / video} holds no text under {caption_column!r}: {caption!r}."
                )
            rows[video, caption or beside] = None
    features = Features(video=Value("string"), caption=Value("string"))
    dataset = Dataset.from_dict(
        {"video": [video for video, _ in rows], "caption": [caption for _, caption in rows]}, features
    )
    if args.streaming:
        dataset = dataset.to_iterable_dataset(min(len(dataset), MAX_STREAM_SHARDS))
    return Table(dataset, source, "video", caption_column and "caption"), skipped


def _read_text(file: Path) -> str:
    with reading(file):
        return file.read_text("utf-8-sig").strip()


def _read_metadata(source: Path, table: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path relative to the data folder, and the other fields, of each row of a metadata file.

    Raises:
        ValueError: if the file is malformed, or a row names no file or one outside the data folder.
    """
    file = source / table
    with reading(file):
        if table.endswith(".parquet"):
            from pyarrow import parquet

            rows = parquet.read_table(file).to_pylist()
        else:
            with open(file, newline="", encoding="utf-8-sig") as text:
                if table.endswith(".csv"):
                    rows = list(csv.DictReader(text))
                else:
                    rows = [json.loads(line) for line in text if line.strip()]
    for number, fields in enumerate(rows, start=1):
        if not isinstance(fields, dict) or None in fields:
            raise ValueError(f"{file}: row {number} is no set of named fields: {str(fields)[:200]!r}.")
        key = next((key for key in PATH_COLUMNS if key in fields), None)
        if key is None:
            raise ValueError(f"{file}: row {number} has no `file_name`; it has {list(fields)}.")
        name = fields[key]
        if not isinstance(name, str) or not name or "\0" in name or not is_text(name):
            raise ValueError(f"{file}: row {number} names no file: `{key}` is {name!r}.")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(table), name))
        if path.startswith(("/", "../")) or path == ".." or "://" in name:
            raise ValueError(
                f"{file}: row {number} names {name!r}, which leads out of the data folder. Only files in it are read."
            )
        yield path, {other: value for other, value in fields.items() if other != key}
