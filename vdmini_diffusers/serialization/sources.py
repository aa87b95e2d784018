"""Files that weights are read from: on the disk, or on the Hub, of which only the wanted bytes are fetched."""

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff, httpx

from vdmini_diffusers.serialization.checkpoint_error import CheckpointError, short_message


MAX_FAILURES = 5  # in a row, without a byte in between
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


def open_source(file: Source, ranges: Ranges) -> io.RawIOBase:
    """A file opened for reading, unbuffered.

    Args:
        ranges: the bytes that will be read, `[(start, stop), ...]`. Of a remote file, no others can be.
    """
    return RangeReader(file, ranges) if isinstance(file, RemoteFile) else file.open("rb", buffering=0)


def read_bytes(file: Source, start: int, stop: int) -> bytes:
    """`file[start:stop]`, or less if the file ends before."""
    content = bytearray()
    with open_source(file, [(start, stop)]) as stream:
        stream.seek(start)
        while len(content) < stop - start and (more := stream.read(stop - start - len(content))):
            content += more
    return bytes(content)


class RangeReader(io.RawIOBase):
    """A remote file, read as if it were open.

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

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.file.size}[whence]
        return self.position

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Raises `ConnectionError` if the Hub cannot be reached, `CheckpointError` if it sends something else."""
        if self.position >= self.file.size:
            return 0
        for failures in range(MAX_FAILURES):
            try:
                return self._read(memoryview(buffer))
            except httpx.TransportError as error:
                self._hang_up()
                last_error = error
                time.sleep(FIRST_WAIT_SECONDS * 2**failures)
        raise self._unreachable(last_error)

    def close(self) -> None:
        self._hang_up()
        super().close()

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
                http_stream_backoff(
                    "GET", self.file.url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
                )
            )
            hf_raise_for_status(response)
        except HfHubHTTPError as error:
            if error.response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise CheckpointError(
                    f"{self.file}: the Hub lists {self.file.size} bytes, and the server has no {wanted}."
                ) from error
            raise self._unreachable(error) from error
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.status_code == httpx.codes.PARTIAL_CONTENT:
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
