"""What a copy has written so far, on the disk, so that one that was interrupted goes on from there."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from vdmini_diffusers.serialization.atomic import KEPT_ON, PROGRESS, write_file


SYNC_BYTES = 2**28  # noted at a time: what a killed process does again is no more than twice that


class Journal:
    """Notes pieces of files that are complete. A piece is noted when it is on the disk, and not only in memory.

    Args:
        folder: that is being written. Files without a noted piece are removed from it, and if it was begun with
            another `identity`, all of them: what is copied whole, as configs are, the teacher may no longer have.
        identity: of all that decides what is written.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.file = folder, folder / PROGRESS
        noted = self.file.read_text(encoding="utf-8").split("\n")[:-1] if self.file.exists() else []
        # Without a line that was cut as it was written.
        pieces = [line.rsplit(" ", 2) for line in noted[1:]] if noted[:1] == [identity] else []
        self.done = {(name, int(start), int(stop)) for name, start, stop in pieces if self._is_there(name, int(stop))}
        self._remove_the_rest()
        self._head = "".join(f"{line}\n" for line in (identity, *(f"{n} {i} {j}" for n, i, j in sorted(self.done))))
        self._new: list[tuple[str, int, int]] = []
        self._syncing: Future | None = None
        self._thread = ThreadPoolExecutor(max_workers=1)

    @property
    def num_bytes(self) -> int:
        return sum(stop - start for _, start, stop in self.done)

    def has(self, file: Path, start: int, stop: int) -> bool:
        return (self._name(file), start, stop) in self.done

    def add(self, file: Path, start: int, stop: int) -> None:
        """Note that `file[start:stop]` is written."""
        self._new.append((self._name(file), start, stop))
        if sum(stop - start for _, start, stop in self._new) >= SYNC_BYTES:
            self._wait()
            self._syncing = self._thread.submit(self._sync, self._new)
            self._new = []

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Note what is not yet noted if the folder is kept."""
        if kind is not None and issubclass(kind, KEPT_ON):
            self._wait()
            self._sync(self._new)
        self._thread.shutdown()

    def _name(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()

    def _remove_the_rest(self) -> None:
        kept = {self.folder / name for name, _, _ in self.done}
        kept |= {self.file} if kept else set()
        for path in sorted(self.folder.rglob("*"), reverse=True):  # what is in a folder before the folder
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
            elif not path.is_dir() and path not in kept:
                path.unlink()

    def _is_there(self, name: str, stop: int) -> bool:
        return (self.folder / name).is_file() and (self.folder / name).stat().st_size >= stop

    def _wait(self) -> None:
        if self._syncing is not None:
            self._syncing.result()

    def _sync(self, pieces: list[tuple[str, int, int]]) -> None:
        for name in dict.fromkeys(name for name, _, _ in pieces):
            with (self.folder / name).open("r+b") as file:
                os.fsync(file.fileno())
        if not pieces:
            return
        if self._head:
            write_file(self.file, self._head.encode())
            self._head = ""
        with self.file.open("a", encoding="utf-8") as file:
            file.writelines(f"{name} {start} {stop}\n" for name, start, stop in pieces)
            file.flush()
            os.fsync(file.fileno())
