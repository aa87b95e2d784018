"""A local folder of training data: videos, parquet files, WebDataset tars, or a CSV file.

The folder is listed here, since `datasets` decides by words in file names (`steam_train.mp4`, `crash_test.mp4`) which
files it uses, and knows few endings. Each file is used, or it is listed with the reason why not. Nothing outside the
folder is read, and nothing is fetched.
"""

import os
import posixpath
from pathlib import Path

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.listed_files import (
    ARCHIVE_ENDINGS,
    VIDEO_ENDINGS,
    ending_of,
    inside_roots,
    leads_into,
    list_files,
    of_train_split,
)
from vdmini_diffusers.data.skipped_videos import SkipLog, SkippedVideo
from vdmini_diffusers.data.tables import Table, open_csv, open_parquet
from vdmini_diffusers.data.video_folder import METADATA_NAMES, open_videos
from vdmini_diffusers.data.webdataset_tars import open_tars


def open_local_data(args: VideoDataArguments, source: Path, skip_log: SkipLog) -> Table:
    """What a folder or a CSV file holds. What is left out is listed in `skip_log`.

    Raises:
        ValueError: if it holds no training data, or a file in it is malformed or leads out of it.
        OSError: if a folder cannot be listed.
    """
    if csv_file := _csv_file(source):
        return open_csv(args, csv_file)
    if not source.is_dir():
        raise ValueError(f"--train_data_dir is a folder, or a CSV file; {source} is neither.")
    files, skipped = list_files(source)
    for ending, open_tables in (("parquet", open_parquet), ("tar", open_tars)):
        tables = [
            file for file in files if ending_of(file) == ending and posixpath.basename(file) not in METADATA_NAMES
        ]
        if tables:
            train = of_train_split(source, tables)
            table = open_tables(args, source, train)
            skipped += [SkippedVideo(file, "another split", "") for file in sorted(set(tables) - set(train))]
            if not table.holds_paths:
                skipped += [
                    SkippedVideo(file, f"beside .{ending} files", "which are read instead")
                    for file in files
                    if ending_of(file) in (VIDEO_ENDINGS | ARCHIVE_ENDINGS) - {ending}
                ]
            skip_log.add(skipped)
            return table
    table, more_skipped = open_videos(args, source, files)
    skip_log.add(skipped + more_skipped)
    return table


def _csv_file(source: Path) -> Path | None:
    if source.is_file():
        return source if source.suffix.lower() == ".csv" else None
    files = [file for file in sorted(source.glob("*")) if file.suffix.lower() == ".csv" and file.is_file()]
    files = [file for file in files if file.name not in METADATA_NAMES and not file.name.startswith(".")]
    if len(files) > 1:
        raise ValueError(f"{source} holds several CSV files: give one of them as --train_data_dir, e.g. {files[0]}.")
    if files and not leads_into(os.path.realpath(files[0]), inside_roots(source)):
        raise ValueError(f"{files[0]} is a link that leads out of the data folder: give the file it leads to.")
    return files[0] if files else None
