"""Files that weights are read from: on the disk, or on the Hub, of which only the wanted bytes are fetched."""

import mmap
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff, httpx

from vdmini_diffusers.serialization.checkpoint_error import CheckpointError, short_message


MAX_FAILURES = 5  # in a row, without a byte in between
CHUNK_BYTES = 2**20  # a multiple of every element's size
WINDOW_BYTES = 2**23  # what is mapped of a local file at a time
# Linux can map all pages of a window at once, which costs half of what it takes to map them one by one.
READ_ONLY = (
    {"flags": mmap.MAP_SHARED | mmap.MAP_POPULATE, "prot": mmap.PROT_READ}
    if hasattr(mmap, "MAP_POPULATE")
    else {"access": mmap.ACCESS_READ}
)
FIRST_WAIT_SECONDS = 1.0  # before a connection that broke is opened again; doubles with each further failure

Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository on the Hub that is not in the cache.

    Args:
        path: within the repository.
        url: of the file at one commit, so that it never changes.
        size: in bytes, as the Hub lists it.
        sha256: as the Hub lists it; `None` for a file outside large file storage.
        headers: of all requests; the token is among them.
    """

    repository: str
    path: str
    url: str
    size: int
    sha256: str | None
    headers: Mapping[str, str] = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.repository}/{self.path}"


Source = Path | RemoteFile


def size_of(file: Source) -> int:
    return file.size if isinstance(file, RemoteFile) else file.stat().st_size


def fingerprint(file: Source) -> tuple[str, int, str]:
    """What tells whether a file is the one that an interrupted copy read."""
    if isinstance(file, RemoteFile):
        return file.url, file.size, file.sha256 or ""
    state = file.stat()
    return str(file.absolute()), state.st_size, str(state.st_mtime_ns)


class Reader(Protocol):
    """An open file."""

    def chunks(self, start: int, stop: int) -> Iterator[memoryview]:
        """`file[start:stop]` in chunks of `CHUNK_BYTES`; fewer if the file ends before."""
        ...

    def close(self) -> None: ...


def open_source(file: Source, ranges: Ranges) -> Reader:
    """A file opened for reading.

    Args:
        ranges: the bytes that will be read, `[(start, stop), ...]`, rising. Of a remote file, no others can be.
    """
    return RangeReader(file, ranges) if isinstance(file, RemoteFile) else MappedReader(file)


def read_bytes(file: Source, start: int, stop: int) -> bytes:
    """`file[start:stop]`, or less if the file ends before."""
    with closing(open_source(file, [(start, stop)])) as reader:
        return b"".join(reader.chunks(start, stop))


class MappedReader:
    """A local file, mapped and not read: that saves a copy, which takes as long as writing does.

    A file that is cut within the milliseconds in which a window of it is mapped ends the process, as it would with
    safetensors' own reader.
    """

    def __init__(self, file: Path) -> None:
        self.file = file.open("rb", buffering=0)

    def chunks(self, start: int, stop: int) -> Iterator[memoryview]:
        stop = min(stop, os.fstat(self.file.fileno()).st_size)
        for at in range(start, stop, WINDOW_BYTES):
            end = min(at + WINDOW_BYTES, stop)
            self._read_ahead(end)
            offset = at - at % mmap.ALLOCATIONGRANULARITY
            if os.fstat(self.file.fileno()).st_size < end:
                return
            window = mmap.mmap(self.file.fileno(), end - offset, offset=offset, **READ_ONLY)
            # Unmapped with the last of its chunks.
            for position in range(at, end, CHUNK_BYTES):
                yield memoryview(window)[position - offset : min(position + CHUNK_BYTES, end) - offset]

    def close(self) -> None:
        self.file.close()

    def _read_ahead(self, start: int) -> None:
        """Let the disk read the next window while this one is written."""
        if hasattr(os, "posix_fadvise"):
            for at in range(start, start + WINDOW_BYTES, CHUNK_BYTES):  # the kernel cuts larger requests short
                os.posix_fadvise(self.file.fileno(), at, CHUNK_BYTES, os.POSIX_FADV_WILLNEED)


class RangeReader:
    """A file on the Hub, read as if it were open.

    Each of the ranges takes one request, after whose end, or failure, the next one is sent. A server that ignores
    ranges sends the file from its beginning, of which the unwanted bytes are thrown away.

    Args:
        ranges: rising, none touching another.
    """

    def __init__(self, file: RemoteFile, ranges: Ranges) -> None:
        self.file, self.ranges = file, ranges
        self.position = 0
        self._response = ExitStack()
        self._chunks: Iterator[bytes] = iter(())
        self._chunk = memoryview(b"")  # the last one that was received
        self._start = self._stop = 0  # of that chunk, and of the whole response

    def chunks(self, start: int, stop: int) -> Iterator[memoryview]:
        """Raises `ConnectionError` if the Hub cannot be reached, `CheckpointError` if it sends something else."""
        self.position, stop = start, min(stop, self.file.size)
        while self.position < stop:
            chunk = memoryview(bytearray(min(CHUNK_BYTES, stop - self.position)))
            filled = 0
            while filled < len(chunk):
                filled += self._read_persistently(chunk[filled:])
            yield chunk

    def close(self) -> None:
        self._hang_up()

    def _read_persistently(self, buffer: memoryview) -> int:
        failures = 0
        while True:
            try:
                return self._read(buffer)
            except httpx.TransportError as error:
                self._hang_up()
                failures += 1
                if failures == MAX_FAILURES:
                    raise self._unreachable(error) from error
                time.sleep(FIRST_WAIT_SECONDS * 2 ** (failures - 1))

    def _read(self, buffer: memoryview) -> int:
        if not self._start <= self.position < self._stop:
            self._hang_up()
            self._request()
        while self._start + len(self._chunk) <= self.position:
            self._start += len(self._chunk)
            if (chunk := next(self._chunks, None)) is None:
                raise httpx.RemoteProtocolError("the response ended early")
            self._chunk = memoryview(chunk)
        offset = self.position - self._start
        num_bytes = min(len(buffer), len(self._chunk) - offset)
        buffer[:num_bytes] = self._chunk[offset : offset + num_bytes]
        self.position += num_bytes
        if self.position == self._stop:
            next(self._chunks, None)  # the end of the body, after which the connection can be used again
        return num_bytes

    def _request(self) -> None:
        stop = next(stop for start, stop in self.ranges if start <= self.position < stop)
        wanted = f"bytes={self.position}-{stop - 1}"
        headers = {**self.file.headers, "Range": wanted, "Accept-Encoding": "identity"}
        try:
            response = self._response.enter_context(
                http_stream_backoff("GET", self.file.url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            )
            hf_raise_for_status(response)
        except HfHubHTTPError as error:
            if error.response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise CheckpointError(
                    f"{self.file}: the Hub lists {self.file.size} bytes, and the server has no {wanted}."
                ) from error
            raise self._unreachable(error) from error
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.status_code == HTTPStatus.PARTIAL_CONTENT:
            self._start, self._stop = self.position, stop
            found = response.headers.get("Content-Range", "nothing").replace("/*", f"/{self.file.size}")
            expected = f"bytes {self.position}-{stop - 1}/{self.file.size}"
        else:
            self._start, self._stop = 0, self.file.size
            found = response.headers.get("Content-Length", str(self.file.size))
            expected = str(self.file.size)
        if found != expected:
            raise CheckpointError(
                f"{self.file}: the Hub lists {self.file.size} bytes; asked for {wanted}, the server sends {found!r}"
                f" instead of {expected!r}."
            )
        self._chunks = response.iter_raw()

    def _hang_up(self) -> None:
        self._response.close()
        self._chunks, self._chunk, self._start, self._stop = iter(()), memoryview(b""), 0, 0

    def _unreachable(self, error: Exception) -> ConnectionError:
        return ConnectionError(
            f"{self.file} cannot be read on from byte {self.position} of {self.file.size}: {short_message(error)}."
        )
