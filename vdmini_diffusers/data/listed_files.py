"""The files of a data folder: which ones there are, of what kind, and of which split."""

import os
import posixpath
import re
from pathlib import Path

from vdmini_diffusers.data.skipped_videos import SkippedVideo
from vdmini_diffusers.data.tables import is_text


# Endings of files that PyAV decodes. A file that is named in a table may have any ending.
# fmt: off
VIDEO_ENDINGS = frozenset({
    "3g2", "3gp", "3gpp", "asf", "avi", "divx", "dv", "f4v", "flv", "h264", "hevc", "m1v", "m2ts", "m2v", "m4v", "mj2",
    "mkv", "mov", "mp4", "mpe", "mpeg", "mpg", "mts", "mxf", "nut", "ogm", "ogv", "qt", "rm", "rmvb", "ts", "vob",
    "webm", "wmv", "wtv", "y4m",
})
# fmt: on
ARCHIVE_ENDINGS = frozenset({"7z", "bz2", "gz", "rar", "tar", "tgz", "xz", "zip", "zst"})

SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(
    ("validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"), "held-out"
)
SPLIT_WORD = re.compile(rf"({'|'.join(sorted(SPLITS, key=len, reverse=True))})(?![a-z])")
SHARD_OF_SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}")  # what `push_to_hub` calls its files


def list_files(source: Path) -> tuple[list[str], list[SkippedVideo]]:
    """Paths relative to the folder, with slashes, in order; and what is no regular, visible file with a proper name.

    Raises:
        ValueError: if a link leads out of the folder.
        OSError: if a folder cannot be listed.
    """
    files, skipped, roots = [], [], inside_roots(source)

    def fail(error: OSError) -> None:
        raise error

    for folder, subfolders, names in os.walk(source, onerror=fail):
        links = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
        for name in [*names, *links, *(name for name in subfolders if name.startswith(".") and name not in links)]:
            path = os.path.join(folder, name)
            shown = Path(os.path.relpath(path, source)).as_posix()
            if not is_text(shown):
                shown = os.fsencode(shown).decode("utf-8", "backslashreplace")
                skipped.append(SkippedVideo(shown, "name is not UTF-8", "rename it"))
            elif name.startswith("."):
                skipped.append(SkippedVideo(shown, "hidden", ""))
            elif os.path.islink(path) and not leads_into(os.path.realpath(path), roots):
                raise ValueError(
                    f"{path} is a link that leads out of the data folder {source}. Only files in it are read: move "
                    f"the file there, or remove the link."
                )
            elif name in links:
                skipped.append(SkippedVideo(shown, "link to a folder", "whose videos are read where they are"))
            elif not os.path.isfile(path):
                skipped.append(SkippedVideo(shown, "no regular file", ""))
            else:
                files.append(shown)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
    return sorted(files), skipped


def inside_roots(data_dir: str | os.PathLike) -> list[str]:
    """The folders that files of a data folder may lie in, with links followed: itself, and the Hub cache's blobs."""
    root = os.path.realpath(data_dir)
    repository = os.path.dirname(os.path.dirname(root))
    blobs = os.path.join(repository, "blobs")
    is_snapshot = os.path.basename(os.path.dirname(root)) == "snapshots" and os.path.realpath(blobs) == blobs
    return [root, blobs] if is_snapshot else [root]


def leads_into(file: str | os.PathLike, roots: list[str]) -> bool:
    """Whether a file lies in one of the folders. It and they are absolute, without links."""
    return any(Path(file).is_relative_to(root) for root in roots)


def ending_of(file: str) -> str:
    return posixpath.splitext(file)[1].lower().removeprefix(".")


def of_train_split(source: Path, files: list[str]) -> list[str]:
    """Those tables that are training data: all, unless their names or folders' say that they are of several splits.

    Raises:
        ValueError: if they are laid out in splits, without one for training or with files in none.
    """
    splits = {file: _split_of(file) for file in files}
    if "train" in splits.values():  # then a name given to `push_to_hub` is a split's
        splits |= {f: "held-out" for f in files if splits[f] is None and SHARD_OF_SPLIT.match(posixpath.basename(f))}
    if "held-out" not in splits.values():
        return files
    held_out = next(file for file in files if splits[file] == "held-out")
    if "train" not in splits.values() and None not in splits.values():
        raise ValueError(
            f"{source} has no split for training: {held_out} and the others are of other splits by their names. Give "
            "the folder of the training data, or rename its files."
        )
    if None in splits.values():
        unclear = next(file for file in files if splits[file] is None)
        raise ValueError(
            f"{source} does not say which files are for training: {held_out} is not by its name, and {unclear} is of "
            "no split. Call the files of the training split train-*, or keep only them in the folder."
        )
    return [file for file in files if splits[file] == "train"]


def _split_of(file: str) -> str | None:
    """`train`, `held-out` or, where neither its name nor a folder's says so, `None`."""
    *folders, name = file.lower().split("/")
    if word := SPLIT_WORD.match(name):
        return SPLITS[word[1]]
    return next((SPLITS[folder] for folder in reversed(folders) if folder in SPLITS), None)
