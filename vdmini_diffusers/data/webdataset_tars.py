"""WebDataset tars: members of the same name up to the first dot belong together.

`datasets` has a reader too, but it knows five endings, needs the same one for all videos, and reads sparse members,
which may be of any size.
"""

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.listed_files import VIDEO_ENDINGS
from vdmini_diffusers.data.tables import Table, choose_caption_column, choose_column, dataset_of, is_text, reading


NUM_SAMPLES_FOR_COLUMNS = 100  # of a tar, read to know its columns


class TarMember(NamedTuple):
    name: str
    ending: str  # in lower case: all after the first dot
    content: bytes  # empty if it was not to be read


def open_tars(args: VideoDataArguments, source: Path, files: list[str]) -> Table:
    """The videos of tars. The columns are those of the first tar that holds anything."""
    from datasets import Features, Value, Video

    columns: dict[str, None] = {}
    for file in files:  # up to the first that holds anything
        with reading(source / file):
            samples = _tar_samples(source / file, lambda ending: ending == "json")
            for _, members in islice(samples, NUM_SAMPLES_FOR_COLUMNS):
                columns |= dict.fromkeys(member.ending for member in members if member.ending != "json")
                columns |= dict.fromkeys(key for fields in _json_members(members) for key in fields)
        if columns:
            break
    video_ending = choose_column([*columns, "video"], args.video_column, (), "video")
    caption_column = choose_caption_column(args, list(columns), source)
    features = Features(video=Video(decode=False), caption=Value("string"))
    rows = dataset_of(
        args,
        _tar_rows,
        features,
        [source / file for file in files],
        video_ending=None if video_ending == "video" else video_ending,
        caption_column=caption_column,
    )
    return Table(rows, source, "video", caption_column and "caption")


def _tar_rows(
    files: list[tuple[str, int, int]], video_ending: str | None, caption_column: str | None
) -> Iterator[dict[str, Any]]:
    """A row for each video, and one without a video for each sample that has none."""

    def is_video(ending: str) -> bool:
        return ending == video_ending if video_ending else ending.rpartition(".")[2] in VIDEO_ENDINGS

    def is_read(ending: str) -> bool:
        return is_video(ending) or (caption_column is not None and ending in (caption_column, "json"))

    for path, _, _ in files:
        with reading(path):
            for key, members in _tar_samples(Path(path), is_read):
                captions: list[Any] = []
                if caption_column:
                    captions += [m.content.decode("utf-8-sig") for m in members if m.ending == caption_column]
                    captions += [fields.get(caption_column) for fields in _json_members(members)]
                caption = next(filter(None, captions), None)
                if not isinstance(caption, str | None) or not is_text(caption or ""):
                    raise ValueError(f"sample {key!r} holds no text under {caption_column!r}.")
                videos = [{"bytes": m.content, "path": m.name} for m in members if is_video(m.ending)]
                for video in videos or [None]:
                    yield {"video": video, "caption": caption}


def _tar_samples(tar_file: Path, is_read: Callable[[str], bool]) -> Iterator[tuple[str, list[TarMember]]]:
    """Name and members of each sample. `is_read`: of which endings the content is wanted."""
    key, members = "", []
    with tarfile.open(tar_file, "r|") as tar:
        for entry in tar:
            found = re.fullmatch(r"((?:.*/|)[^./]+)\.([^/]*)", entry.name, re.DOTALL)
            if not entry.isfile() or entry.issparse() or not found or not is_text(entry.name):
                continue
            if found[1] != key and members:
                yield key, members
                members = []
            key, ending = found[1], found[2].lower()
            file = tar.extractfile(entry) if is_read(ending) else None
            members.append(TarMember(entry.name, ending, file.read() if file else b""))
    if members:
        yield key, members


def _json_members(members: list[TarMember]) -> list[dict[str, Any]]:
    parsed = [json.loads(member.content) for member in members if member.ending == "json"]
    for fields in parsed:
        if not isinstance(fields, dict):
            raise ValueError(f"a .json member holds a {type(fields).__name__}, not named fields.")
    return parsed
