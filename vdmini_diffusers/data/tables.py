"""Tables of videos and captions: CSV and parquet files, and which of their columns are used."""

import csv
import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vdmini_diffusers.data.arguments import VideoDataArguments


CAPTION_COLUMNS = ("caption", "text", "txt", "prompt", "description")


class Table(NamedTuple):
    """Rows of videos, as `datasets` has them.

    `folder`: the one that paths in the rows lead into; `None` if there is none, for data from the Hub.
    `caption_column`: `None` if the videos have no captions.
    """

    rows: Any
    folder: Path | None
    video_column: str
    caption_column: str | None

    @property
    def holds_paths(self) -> bool:
        """Whether the rows name their videos by path only."""
        return _is_value((self.rows.features or {}).get(self.video_column), "string")


@contextmanager
def reading(what: str | os.PathLike) -> Iterator[None]:
    """Turns any error in the block into a `ValueError` that names `what`: parsers of data files raise all kinds."""
    try:
        yield
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # `datasets` wraps errors in one that says nothing
            if isinstance(cause, ValueError) and str(what) in str(cause):
                break
            cause = cause.__cause__
        if isinstance(cause, ValueError) and str(what) in str(cause):
            raise ValueError(str(cause)) from error
        raise ValueError(f"{what} cannot be read: {str(cause) or type(cause).__name__}") from error


def dataset_of(
    args: VideoDataArguments,
    rows: Callable[..., Iterator[dict[str, Any]]],
    features: Any,
    files: list[Path],
    **options: Any,
) -> Any:
    """A dataset of what `rows(files, **options)` gives, streaming or in the cache."""
    from datasets import Dataset, IterableDataset

    # Size and time tell a changed file from the one that is in the cache.
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    options = {"files": stats, **options}
    if args.streaming:
        return IterableDataset.from_generator(rows, features, gen_kwargs=options)
    with reading(files[0].parent):
        cache: Any = args.cache_dir  # `None`, its default, is not in its annotation
        return Dataset.from_generator(rows, features, cache_dir=cache, gen_kwargs=options)


def open_csv(args: VideoDataArguments, csv_file: Path) -> Table:
    """The two columns, as text: names and captions may look like numbers or like missing values.

    They are not read by `datasets`, whose reader drops surplus fields of a row without a word, such as the rest of a
    caption whose comma is not quoted.
    """
    from datasets import Features, Value

    with reading(csv_file), open(csv_file, newline="", encoding="utf-8-sig") as file:
        header = next(csv.reader(file), [])
    video = choose_column(header, args.video_column, ("video",), "video")
    if video is None:
        raise ValueError(f"{csv_file} has no column `video`; it has {header}. Name one with --video_column.")
    caption = choose_caption_column(args, header, csv_file)
    columns = [column for column in header if column in (video, caption)]
    features = Features({column: Value("string") for column in columns})
    return Table(
        dataset_of(args, _csv_rows, features, [csv_file], columns=tuple(columns)), csv_file.parent, video, caption
    )


def _csv_rows(files: list[tuple[str, int, int]], columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    for path, _, _ in files:
        with reading(path), open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            for row in rows:
                if None in row or None in row.values():
                    raise ValueError(f"line {rows.line_num} has more or fewer fields than the first one.")
                yield {column: row[column] for column in columns}


def open_parquet(args: VideoDataArguments, source: Path, files: list[str]) -> Table:
    from datasets import load_dataset
    from pyarrow import parquet

    for file in files:
        with reading(source / file):  # the error of `datasets` does not say which file
            parquet.read_schema(source / file)
    with reading(source):
        rows = load_dataset(
            "parquet",
            data_files=_data_files([source / file for file in files]),
            split="train",
            streaming=args.streaming,
            cache_dir=args.cache_dir,
        )
    return Table(rows, source, *choose_columns(args, rows, source))


def choose_columns(args: VideoDataArguments, rows: Any, source: str | os.PathLike) -> tuple[str, str | None]:
    """The columns of videos and of captions of a dataset.

    Raises:
        ValueError: if there is no such column, or it holds something else.
    """
    import datasets

    features = rows.features or {}
    with reading(source):
        columns = rows.column_names or list(next(iter(rows), {}))
    videos = [column for column, feature in features.items() if isinstance(feature, datasets.Video)] or ["video"]
    video_column = choose_column(columns, args.video_column, videos, "video")
    if video_column is None:
        raise ValueError(f"No column of {source} holds videos; there are {columns}. Name one with --video_column.")
    caption_column = choose_caption_column(args, columns, source)
    feature = features.get(video_column)
    if feature is not None and not _can_hold_videos(feature):
        raise ValueError(
            f"Column {video_column!r} of {source} should hold videos: bytes, paths, or `bytes` and `path` of each; it "
            f"holds {feature}."
        )
    feature = features.get(caption_column)
    if feature is not None and not _is_value(feature, "string", "null"):
        raise ValueError(f"Column {caption_column!r} of {source} should hold text; it holds {feature}.")
    return video_column, caption_column


def choose_column(columns: list[str], asked: str | None, usual: tuple[str, ...] | list[str], kind: str) -> str | None:
    """The column asked for, or the first there is of the usual ones. Raises `ValueError` if that one is not there."""
    if asked is not None and asked not in columns:
        raise ValueError(f"--{kind}_column {asked!r} is not in the dataset; it has {columns}.")
    return asked or next((column for column in usual if column in columns), None)


def choose_caption_column(args: VideoDataArguments, columns: list[str], source: str | os.PathLike) -> str | None:
    """The column of captions; `None` if there is none, and none is needed.

    Raises:
        ValueError: if the one asked for is not there, or captions are needed and there are none.
    """
    column = choose_column(columns, args.caption_column, CAPTION_COLUMNS, "caption")
    if column is None and args.needs_captions:
        raise ValueError(
            f"Text to video is trained on captions, and {source} has none: of its columns {columns} none is called "
            f"{', '.join(CAPTION_COLUMNS)}. Name the one to use with --caption_column, or put captions in "
            "metadata.jsonl, or in clip.txt beside clip.mp4."
        )
    return column


def is_text(value: str) -> bool:
    """False for what has no UTF-8, such as names of other encodings or half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_value(feature: Any, *types: str) -> bool:
    return any(kind in getattr(feature, "dtype", "") for kind in types) and type(feature).__name__ == "Value"


def _can_hold_videos(feature: Any) -> bool:
    import datasets

    if isinstance(feature, dict):
        # Text in `bytes` would be taken for a path.
        return (
            {"bytes", "path"} >= set(feature)
            and _is_value(feature.get("bytes", datasets.Value("null")), "binary", "null")
            and _is_value(feature.get("path", datasets.Value("null")), "string", "null")
        )
    return isinstance(feature, datasets.Video) or _is_value(feature, "binary", "string", "null")


def _data_files(files: list[Path]) -> dict[str, list[str]]:
    """Local files for `load_dataset`, which takes patterns and addresses as well."""
    paths = [str(file.absolute()) for file in files]
    if chained := next((path for path in paths if "::" in path or "://" in path), None):
        raise ValueError(f"{chained!r} cannot be read, since `datasets` takes it for an address: rename it.")
    return {"train": [glob.escape(path) for path in paths]}
