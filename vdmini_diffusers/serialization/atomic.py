"""Folders and files that appear under their name when they are complete, or not at all."""

import errno
import glob
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


LOCK_SUFFIX = ".lock"
SPARE_BYTES = 16 * 2**20  # for configs and code, beyond the weights
MIN_STALE_SECONDS = 60  # a younger lock file may be one that another process is about to lock
PROGRESS = ".progress"  # in a folder that is not complete: what has been written (`journal.py`)
KEPT_ON = (KeyboardInterrupt, ConnectionError)  # after which such a folder is kept for the next call

logger = logging.getLogger(__name__)


@contextmanager
def new_folder(
    output_dir: str | os.PathLike,
    overwrite: bool = False,
    kind: str = "pipeline",
    marker: str = "model_index.json",
    resume: bool = False,
) -> Iterator[Path]:
    """Yield an empty folder beside `output_dir`, which takes that name when the block ends without an exception.

    An exception, KeyboardInterrupt included, removes it, and the parents that were made for it. A killed process
    leaves it behind as `.<name>.tmp-<random>`, with a lock file beside it; the next call for the same name removes
    both, unless a living process holds the lock.

    Args:
        overwrite: replace a pipeline folder (one with a `model_index.json`) or an empty folder. The old one is moved
            aside, and removed when the new one is in place.
        kind, marker: what is replaced instead of a pipeline folder, and the file by which it is recognised.
        resume: the block goes on with a folder that has a `.progress`. `KEPT_ON` are the exceptions that leave such a
            folder behind; the next call for the same name yields it, with what is in it.

    Raises:
        FileExistsError: if there is something under that name that may not be replaced.
        OSError: if the folder cannot be made or moved.
        ValueError: if `output_dir` cannot be the name of a folder.
    """
    if "\0" in os.fspath(output_dir):
        raise ValueError(f"{os.fspath(output_dir)!r} cannot be the name of a folder: it contains a NUL character.")
    target = Path(os.path.abspath(output_dir))
    check_replaceable(target, overwrite, kind, marker)
    new_parents = [parent for parent in target.parents if not parent.exists()]
    partial, lock = (_begun(target) if resume else None) or _unbegun(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The lock is held for as long as the folder has its temporary name: whoever gets the lock may remove it.
        if not lock.is_locked:
            lock.acquire()
        partial.mkdir(exist_ok=True)
        _remove_stale(target)
        yield partial
        _set_permissions(partial)
        check_replaceable(target, overwrite, kind, marker)
        _move_into_place(partial, target)
        (target / PROGRESS).unlink(missing_ok=True)  # only now: a process can be killed before it has moved the folder
        _remove_lock(lock)
    except BaseException as error:
        if isinstance(error, KEPT_ON) and (partial / PROGRESS).exists():
            logger.warning("What is written so far is kept in %s: the same command goes on from there.", partial)
            lock.release()
            raise
        shutil.rmtree(partial, ignore_errors=True)
        _remove_lock(lock)
        for parent in new_parents:
            with suppress(OSError):  # another process has put something there
                parent.rmdir()
        raise


def check_replaceable(
    target: str | os.PathLike, overwrite: bool, kind: str = "pipeline", marker: str = "model_index.json"
) -> None:
    """Raises `FileExistsError` if there is something that `new_folder` with these arguments would not replace."""
    target = Path(target)
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise FileExistsError(f"{target} exists, and is replaced only with `overwrite=True` (--overwrite).")
    is_folder = target.is_dir() and not target.is_symlink()
    if not is_folder or not ((target / marker).exists() or not any(target.iterdir())):
        raise FileExistsError(f"{target} is not a {kind} folder (with a {marker}): it is not replaced.")


def check_apart(
    output_dir: str | os.PathLike, inputs: Mapping[str, str | os.PathLike | None], flag: str = "--output_dir"
) -> None:
    """Refuse an output folder that is, holds, or lies in something that is read to make it.

    Args:
        inputs: folders, files or Hub ids, by what they are. None, and names under which there is nothing on this
            machine, are fine.
        flag: by which a user names the output folder.

    Raises:
        ValueError: naming the input.
    """
    target = Path(os.path.realpath(output_dir))
    for what, name in inputs.items():
        if name is None or not os.path.exists(name):
            continue
        source = Path(os.path.realpath(name))
        if source == target:
            relation = "is"
        elif source in target.parents:
            relation = "lies in"
        elif target in source.parents:
            relation = "holds"
        else:
            continue
        raise ValueError(f"`{flag}` {output_dir} {relation} {what}, {name}: choose another folder.")


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
    """Raises `OSError` (`ENOSPC`) if the disk of `folder` has less than that left."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes + SPARE_BYTES:
        message = f"{num_bytes / 1e9:.3f} GB are needed and {free / 1e9:.3f} GB are free on the disk"
        raise OSError(errno.ENOSPC, message, str(folder.parent))


def _unbegun(target: Path) -> tuple[Path, FileLock]:
    partial = target.parent / f".{target.name}.tmp-{uuid.uuid4().hex}"
    return partial, FileLock(f"{partial}{LOCK_SUFFIX}")


def _begun(target: Path) -> tuple[Path, FileLock] | None:
    """A folder with progress that a process which is gone has left for the same target, and its lock, acquired."""
    for progress in sorted(target.parent.glob(f".{glob.escape(target.name)}.tmp-*/{PROGRESS}")):
        lock = FileLock(f"{progress.parent}{LOCK_SUFFIX}")
        with suppress(Timeout):
            lock.acquire(timeout=0)
            if progress.exists():  # else its process has just finished
                return progress.parent, lock
            _remove_lock(lock)
    return None


def _remove_stale(target: Path) -> None:
    """Remove what killed processes have left for the same target."""
    prefix = f".{target.name}.tmp-"
    for lock_file in target.parent.iterdir():
        if not lock_file.name.startswith(prefix) or lock_file.suffix != LOCK_SUFFIX:
            continue
        with suppress(Timeout, OSError):
            if time.time() - lock_file.stat().st_mtime > MIN_STALE_SECONDS:
                lock = FileLock(lock_file, timeout=0)
                lock.acquire()
                shutil.rmtree(lock_file.with_suffix(""), ignore_errors=True)
                _remove_lock(lock)


def _remove_lock(lock: FileLock) -> None:
    lock.release()
    with suppress(OSError):
        os.unlink(lock.lock_file)


def _set_permissions(folder: Path) -> None:
    """Give every file the permissions of a new one under the umask: safetensors lets nobody else read its files."""
    mode = folder.stat().st_mode & 0o666  # the folder itself was made under the umask
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


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
