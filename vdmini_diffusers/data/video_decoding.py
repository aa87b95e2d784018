"""One clip out of a video file: frames at a target rate, cropped and resized. Decoded by PyAV.

Frames are chosen by their timestamps, so that variable frame rates and odd start times come out right.
"""

import io
import itertools
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F


MIN_SIDE, MAX_SIDE = 16, 8192  # pixels of a source video
MAX_PIXEL_ASPECT = 4  # width of a pixel over its height, or the reverse
# FFmpeg would follow the file names and addresses in a playlist, and take some file names for addresses: it is given
# an open file, and may open nothing else.
NO_OTHER_FILES = {"protocol_whitelist": "none"}
TOLERANCE = 0.002  # seconds: some containers (Matroska, WebM) round timestamps to milliseconds


class UnusableVideo(Exception):  # noqa: N818 - not an error of the program: it is counted, and the video left out
    """A video that gives no clip. `reason`: a few words to count by; `detail`: what was found in this one."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


class TimedFrame(NamedTuple):
    """A frame that is shown from `start` up to `end`, both in seconds."""

    start: float
    end: float
    frame: Any


def crop_box(height: int, width: int, aspect: float, down: float = 0.5, across: float = 0.5) -> Box:
    """The largest box with `aspect` (its width over its height) in a picture of `height` x `width`.

    Args:
        down, across: where it lies, 0 (top, left) to 1 (bottom, right).
    """
    box_height = min(height, max(1, round(width / aspect)))
    box_width = min(width, max(1, round(height * aspect)))
    return Box(round(down * (height - box_height)), round(across * (width - box_width)), box_height, box_width)


def select_frames(frames: Iterable[TimedFrame], start: float, fps: float, num_frames: int) -> list[TimedFrame]:
    """The frames shown at `start`, `start + 1 / fps`, ...: of each moment the last frame that starts no later.

    Where the frame shown at `start` began less than `1 / fps` before, the clip begins with that frame: all moments
    then lie at its phase, and a video at exactly `fps` gives each of its frames once. Reads no further than needed.

    Raises:
        UnusableVideo: if the frames end before the last of those moments.
    """
    chosen: list[TimedFrame] = []
    shown = None
    for frame in itertools.chain(frames, [None]):
        if shown is not None:
            until = shown.end + TOLERANCE if frame is None else frame.start - TOLERANCE
            while start + len(chosen) / fps < until:
                if not chosen and 0 < start - shown.start < 1 / fps:
                    start = shown.start
                chosen.append(shown)
                if len(chosen) == num_frames:
                    return chosen
        if frame is not None:
            shown = frame
    found = "no frame" if shown is None else f"the frames end at {shown.end:.2f} s"
    raise UnusableVideo("truncated", f"{found}, and a clip was to last until {start + (num_frames - 1) / fps:.2f} s")


def decode_clip(
    source: bytes | str | os.PathLike,
    *,
    num_frames: int,
    fps: float,
    height: int,
    width: int,
    rng: np.random.Generator,
    center_crop: bool = False,
) -> torch.Tensor:
    """A clip of `num_frames` frames, `1 / fps` seconds apart, from a random moment of the video.

    It is the largest part of the picture with the aspect of `height` x `width`, resized with antialiasing. Rotation
    (as phones note it) and pixels that are not square are taken into account.

    Args:
        source: the file's content, or its path.
        rng: draws the start and, without `center_crop`, the place of the crop. The same state gives the same clip.

    Returns:
        uint8 `(num_frames, 3, height, width)`, RGB 0 to 255.

    Raises:
        UnusableVideo: for what is broken, empty, too short, without video, or of an absurd size.
        ImportError: without PyAV.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("Videos are decoded by PyAV: `pip install vdmini_diffusers[train]`.") from error
    moment, down, across = rng.random(3)
    if center_crop:
        down = across = 0.5
    try:
        with (
            _open(source) as file,
            av.open(file, container_options=NO_OTHER_FILES, metadata_errors="replace") as container,
        ):
            stream = _video_stream(container)
            first, end = _time_span(container, stream)
            room = end - first - (num_frames - 1) / fps
            if room <= TOLERANCE:
                needed = num_frames / fps
                raise UnusableVideo("too short", f"{end - first:.2f} s, and a clip takes {needed:.2f} s")
            frames = _frames_from(container, stream, first + moment * room, first)
            chosen = select_frames(frames, first + moment * room, fps, num_frames)
            return _to_pixels([frame.frame for frame in chosen], stream, height, width, down, across)
    except (av.FFmpegError, OSError) as error:
        raise UnusableVideo("broken", str(error.strerror)) from error


def _open(source: bytes | str | os.PathLike) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return open(source, "rb")
    except FileNotFoundError as error:
        raise UnusableVideo("file missing") from error
    except OSError as error:
        raise UnusableVideo("file not readable", str(error.strerror)) from error


def _video_stream(container: Any) -> Any:
    from av.stream import Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]  # no cover art
    if not streams:
        raise UnusableVideo("no video stream")
    stream = streams[0]
    if stream.codec_context is None:
        raise UnusableVideo("no decoder", "PyAV does not know its codec")
    if stream.codec_context.width:  # not always known yet
        _check_size(stream.codec_context.height, stream.codec_context.width)
    stream.codec_context.thread_count = 1  # many videos are decoded at once already
    return stream


def _check_size(height: int, width: int) -> None:
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_SIDE:
        raise UnusableVideo("absurd size", f"{width} x {height} pixels")


def _time_span(container: Any, stream: Any) -> tuple[float, float]:
    """Start of the first and end of the last frame, in seconds."""
    if stream.frames and stream.duration:  # known from an index; other durations are estimates, or the sound's
        start = stream.start_time or 0
        return float(start * stream.time_base), float((start + stream.duration) * stream.time_base)
    # Reads the file through, but decodes nothing.
    packets = [(p.pts, p.duration or 0) for p in container.demux(stream) if p.pts is not None]
    if not packets:
        raise UnusableVideo("no timestamps" if container.size else "empty")
    start, end = min(packets)[0], max(pts + duration for pts, duration in packets)
    container.seek(start, stream=stream)
    return float(start * stream.time_base), float(end * stream.time_base)


def _frames_from(container: Any, stream: Any, start: float, first: float) -> Iterator[TimedFrame]:
    """Decodes from the key frame before `start`, or from the beginning where seeking does not lead there."""
    for position in (start, first - 1):  # a second before: MPEG-TS seeks by decoding times, which are earlier
        container.seek(math.floor(position / stream.time_base), stream=stream)
        frames = _timed(container.decode(stream), stream)
        frame = next(frames, None)
        if frame is not None and frame.start <= start + TOLERANCE:
            break
    if frame is not None:
        yield frame
        yield from frames


def _timed(frames: Iterable[Any], stream: Any) -> Iterator[TimedFrame]:
    for frame in frames:
        if frame.time is None:
            raise UnusableVideo("no timestamps")
        duration = float((frame.duration or 0) * frame.time_base) or float(1 / (stream.average_rate or 25))
        yield TimedFrame(frame.time, frame.time + duration, frame)


def _to_pixels(frames: list[Any], stream: Any, height: int, width: int, down: float, across: float) -> torch.Tensor:
    """Crops and resizes. (num_frames, 3, height, width)"""
    first = frames[0]
    _check_size(first.height, first.width)
    pixel_aspect = float(stream.sample_aspect_ratio or 1)
    if not 1 / MAX_PIXEL_ASPECT <= pixel_aspect <= MAX_PIXEL_ASPECT:
        raise UnusableVideo("absurd size", f"pixels of aspect {pixel_aspect:g}")
    quarter_turns = round(first.rotation / 90) % 4  # counterclockwise
    turned_height, turned_width = first.height, first.width
    if quarter_turns % 2:
        turned_height, turned_width, pixel_aspect = turned_width, turned_height, 1 / pixel_aspect
    # Cropped before it is resized: the memory then does not depend on the source's aspect.
    box = crop_box(turned_height, turned_width, width / height / pixel_aspect, down, across)

    clip = torch.empty(len(frames), 3, height, width, dtype=torch.uint8)
    for index, frame in enumerate(frames):
        if frame.is_corrupt:
            raise UnusableVideo("broken", f"the frame at {frame.time:.2f} s")
        if (frame.height, frame.width) != (first.height, first.width):
            raise UnusableVideo("changing size", f"{first.width} x {first.height} to {frame.width} x {frame.height}")
        pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))  # (rows, columns, 3)
        pixels = torch.rot90(pixels, quarter_turns)
        part = pixels[box.top : box.top + box.height, box.left : box.left + box.width].permute(2, 0, 1)
        clip[index] = F.interpolate(part[None], (height, width), mode="bicubic", antialias=True)[0]
    return clip
