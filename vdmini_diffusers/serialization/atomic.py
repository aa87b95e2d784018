"""Folders and files that appear under their name when they are complete, or not at all."""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


LOCK_NAME = ".lock"
SPARE_BYTES = 16 * 2**20  # for configs and code, beyond the weights
MIN_STALE_SECONDS = 60  # a younger folder may be one whose lock is about to be taken


@contextmanager
def new_folder(
    output_dir: str | os.PathLike, overwrite: bool = False, kind: str = "pipeline", marker: str = "model_index.json"
) -> Iterator[Path]:
    """Yield an empty folder beside `output_dir`, which takes that name when the block ends without an exception.

    An exception, KeyboardInterrupt included, removes it, and the parents that were made for it. A killed process
    leaves it behind as `.<name>.tmp-<random>`; the next call for the same name removes what no living process has
    locked.

    Args:
        overwrite: replace a pipeline folder (one with a `model_index.json`) or an empty folder. The old one is moved
            aside, and removed when the new one is in place.
        kind, marker: what is replaced instead of a pipeline folder, and the file by which it is known.

    Raises:
        FileExistsError: if there is something under that name that may not be replaced.
        OSError: if the folder cannot be made or moved.
    """
    target = Path(os.path.abspath(output_dir))
    _check_replaceable(target, overwrite, kind, marker)
    new_parents = [parent for parent in target.parents if not parent.exists()]
    partial = target.parent / f".{target.name}.tmp-{uuid.uuid4().hex}"
    lock = FileLock(partial / LOCK_NAME)
    try:
        partial.mkdir(parents=True)
        lock.acquire()
        _remove_stale(target)
        yield partial
        lock.release()
        (partial / LOCK_NAME).unlink(missing_ok=True)
        _check_replaceable(target, overwrite, kind, marker)
        _move_into_place(partial, target)
    except BaseException:
        lock.release()
        shutil.rmtree(partial, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # someone else's by now
                parent.rmdir()
        raise


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears under its name when it is complete, and replaces what has that name.

    It is written under a temporary name beside it, which no other process uses. The umask decides on its permissions,
    as for any new file, where `tempfile` would let nobody else read it.

    Raises:
        OSError: if it cannot be written. What had that name is then untouched, and the temporary file is removed.
    """
    partial = path.parent / f".{path.name}.tmp-{uuid.uuid4().hex}"
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_free_space(folder: Path, num_bytes: int) -> None:
    """Raises `OSError` (`ENOSPC`) if the disk of `folder` has not that much left."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes + SPARE_BYTES:
        message = f"{num_bytes / 1e9:.3f} GB are needed and {free / 1e9:.3f} GB are free on the disk"
        raise OSError(errno.ENOSPC, message, str(folder.parent))


def _check_replaceable(target: Path, overwrite: bool, kind: str, marker: str) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise FileExistsError(f"{target} exists, and is replaced only with `overwrite=True` (--overwrite).")
    is_folder = target.is_dir() and not target.is_symlink()
    if not is_folder or not ((target / marker).exists() or not any(target.iterdir())):
        raise FileExistsError(f"{target} is not a {kind} folder (with a {marker}): it is not replaced.")


def _remove_stale(target: Path) -> None:
    prefix = f".{target.name}.tmp-"
    for folder in target.parent.iterdir():
        lock_file = folder / LOCK_NAME
        if not folder.name.startswith(prefix) or not lock_file.exists():
            continue
        with suppress(Timeout, OSError):
            if time.time() - lock_file.stat().st_mtime > MIN_STALE_SECONDS:
                with FileLock(lock_file, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)


def _move_into_place(partial: Path, target: Path) -> None:
    if not os.path.lexists(target):
        os.rename(partial, target)
        return
    aside = target.parent / f".{target.name}.old-{uuid.uuid4().hex}"
    try:
        os.rename(target, aside)
        os.rename(partial, target)
    finally:
        if not target.exists() and aside.exists():
            os.rename(aside, target)
        shutil.rmtree(aside, ignore_errors=True)
