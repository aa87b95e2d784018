"""One clip out of a video file: frames at a target rate, cropped and resized. PyAV decodes them.

Frames are chosen by their timestamps, so that variable frame rates and odd start times come out right.
"""

import io
import itertools
import math
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from vdmini_diffusers.data.images import on_white
from vdmini_diffusers.data.wide_colour import NO_DISPLAY_CODE, is_wide, to_standard_range


MIN_SIDE, MAX_SIDE = 16, 8192  # pixels of a source video
MAX_PIXEL_ASPECT = 4  # width of a pixel over its height, or the reverse
# FFmpeg would follow the file names and addresses in a playlist, and take some file names for addresses: it is given
# an open file, and may open nothing else.
NO_OTHER_FILES = {"protocol_whitelist": "none"}
# Decoders refuse larger frames before they allocate memory for them.
NO_LARGER_FRAMES = {"max_pixels": str(MAX_SIDE**2)}
# What one clip may cost: a few bytes can ask for hours of work. Each limit is far above what real videos need.
MAX_PACKETS = 2_000_000  # of one video: nine hours at 60 frames per second
MAX_DECODED_PIXELS = 2**34  # for one clip: 8,000 frames of 1920 x 1080; seeking decodes all from a key frame on
PIXELS_PER_PACKET = 2**16  # what a packet costs at least, in the same measure
# Matrix coefficients by their numbers in ITU-T H.273.
BT_709, BT_601 = 1, 5
UNTAGGED = (0, 2, 3)  # RGB (which has no matrix), unspecified, reserved
KNOWN_MATRICES = {BT_709: BT_709, 4: 4, BT_601: BT_601, 6: BT_601, 7: 7, 9: 9}  # FCC, SMPTE 170M, 240M, BT.2020
TOLERANCE = 0.002  # seconds: some containers (Matroska, WebM) round timestamps to milliseconds


class UnusableVideo(Exception):  # noqa: N818 - not an error of the program: it is counted, and the video left out
    """A video that gives no clip. `reason`: a few words to count by; `detail`: what was found in this video."""

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


def select_frames(frames: Iterable[TimedFrame], start: float, fps: float, num_frames: int) -> Iterator[TimedFrame]:
    """The frames shown at `start`, `start + 1 / fps`, ...: at each moment the last frame that starts no later.

    Where the frame shown at `start` began less than `1 / fps` before, the clip begins with that frame: all moments
    then lie at its phase, and a video at exactly `fps` gives each of its frames once. Reads no further than needed,
    and holds two frames at a time.

    Raises:
        UnusableVideo: if the frames end before the last of those moments.
    """
    num_chosen = 0
    shown = None
    for frame in itertools.chain(frames, [None]):
        if shown is not None:
            until = shown.end + TOLERANCE if frame is None else frame.start - TOLERANCE
            while start + num_chosen / fps < until:
                if not num_chosen and 0 < start - shown.start < 1 / fps:
                    start = shown.start
                yield shown
                num_chosen += 1
                if num_chosen == num_frames:
                    return
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

    The clip shows the largest part of the picture with the aspect of `height` x `width`, resized with antialiasing, as
    a player shows it: turned or mirrored by the display matrix (as phones write it), with its pixel aspect, colour
    matrix and range. High dynamic range and wide gamuts are brought to BT.709. Transparent parts are shown on white,
    as pictures are (`read_image`). Of interlaced frames only the upper field is used, as the other one is of another
    moment.

    Args:
        source: the file's content, or its path.
        rng: draws the start and, without `center_crop`, the place of the crop. The same state gives the same clip.

    Returns:
        uint8 `(num_frames, 3, height, width)`, RGB 0 to 255.

    Raises:
        UnusableVideo: if the file is broken, empty, too short or without video, if its size, its colours or its cost
            are out of bounds.
        ImportError: without PyAV.
    """
    moment, down, across = rng.random(3)
    if center_crop:
        down = across = 0.5
    with _opened(source) as (container, stream):
        first, end = _time_span(container, stream)
        room = end - first - (num_frames - 1) / fps
        if room <= TOLERANCE:
            needed = num_frames / fps
            raise UnusableVideo("too short", f"{end - first:.2f} s, and a clip takes {needed:.2f} s")
        frames = _frames_from(container, stream, first + moment * room, first)
        chosen = (timed.frame for timed in select_frames(frames, first + moment * room, fps, num_frames))
        return _to_pixels(chosen, num_frames, stream, height, width, down, across)


def count_frames(source: bytes | str | os.PathLike) -> int:
    """The number of frames that a video decodes to; what its header says need not be true.

    Raises:
        UnusableVideo, ImportError: as `decode_clip`.
    """
    with _opened(source) as (container, stream):
        return sum(1 for _ in _decode(container, stream))


def decode_frames(
    source: bytes | str | os.PathLike, *, first: int, num_frames: int, height: int, width: int
) -> torch.Tensor:
    """`num_frames` neighbouring frames from the frame of number `first` on, whatever their timestamps.

    They show the central part of the picture, as `decode_clip` gives it with `center_crop`.

    Returns:
        uint8 `(num_frames, 3, height, width)`, RGB 0 to 255.

    Raises:
        UnusableVideo, ImportError: as `decode_clip`; also if the video ends before.
    """

    def chosen(frames: Iterator[Any]) -> Iterator[Any]:
        number = 0
        for number, frame in enumerate(itertools.islice(frames, first + num_frames), start=1):
            if number > first:
                yield frame
        if number < first + num_frames:
            raise UnusableVideo("too short", f"{number} frames, and a clip takes {num_frames} from frame {first} on")

    with _opened(source) as (container, stream):
        return _to_pixels(chosen(_decode(container, stream)), num_frames, stream, height, width, 0.5, 0.5)


@contextmanager
def _opened(source: bytes | str | os.PathLike) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream. Errors of what is done with them are raised as `UnusableVideo`."""
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "Videos are decoded by PyAV: run `pip install -e '.[train]'` in a checkout of the repository."
        ) from error
    try:
        with (
            _open(source) as file,
            av.open(
                file, options=NO_LARGER_FRAMES, container_options=NO_OTHER_FILES, metadata_errors="replace"
            ) as container,
        ):
            yield container, _video_stream(container)
    except (av.FFmpegError, OSError) as error:
        raise UnusableVideo("broken", str(error.strerror)) from error
    except (ArithmeticError, ValueError, MemoryError) as error:
        # PyAV's conversions of what a damaged header claims: times beyond 64 bits, a rate of x / 0, unknown formats.
        raise UnusableVideo("broken", f"{type(error).__name__}: {error}") from error


def _open(source: bytes | str | os.PathLike) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return open(source, "rb")
    except FileNotFoundError as error:
        raise UnusableVideo("file missing") from error
    except OSError as error:
        raise UnusableVideo("file not readable", str(error.strerror)) from error
    except ValueError as error:  # a NUL byte in the name
        raise UnusableVideo("file missing", str(error)) from error


def _video_stream(container: Any) -> Any:
    from av.stream import Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]  # no cover art
    if not streams:
        raise UnusableVideo("no video stream")
    stream = streams[0]
    if stream.codec_context is None:
        raise UnusableVideo("no decoder", "PyAV does not know its codec")
    if not stream.time_base:
        raise UnusableVideo("no timestamps")
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
    start = end = None
    for index, packet in enumerate(container.demux(stream)):
        if index == MAX_PACKETS:
            raise UnusableVideo("absurd length", f"more than {MAX_PACKETS:,} packets")
        if packet.pts is not None:
            start = packet.pts if start is None else min(start, packet.pts)
            until = packet.pts + (packet.duration or 0)
            end = until if end is None else max(end, until)
    if start is None or end is None:
        raise UnusableVideo("no timestamps" if container.size else "empty")
    container.seek(start, stream=stream)
    return float(start * stream.time_base), float(end * stream.time_base)


def _frames_from(container: Any, stream: Any, start: float, first: float) -> Iterator[TimedFrame]:
    """Decodes from the key frame before `start`, or from the beginning where seeking does not lead there."""
    for position in (start, first - 1):  # a second before: MPEG-TS seeks by decoding times, which are earlier
        container.seek(math.floor(position / stream.time_base), stream=stream)
        frames = _timed(_decode(container, stream), stream)
        frame = next(frames, None)
        if frame is not None and frame.start <= start + TOLERANCE:
            break
    if frame is not None:
        yield frame
        yield from frames


def _decode(container: Any, stream: Any) -> Iterator[Any]:
    """The frames from here on, up to what `MAX_DECODED_PIXELS` allows."""
    cost = 0
    for packet in container.demux(stream):
        cost += PIXELS_PER_PACKET
        for frame in packet.decode():
            cost += frame.width * frame.height
            yield frame
        if cost > MAX_DECODED_PIXELS:
            raise UnusableVideo("too costly", f"more than {MAX_DECODED_PIXELS:,} pixels are decoded for one clip")


def _timed(frames: Iterable[Any], stream: Any) -> Iterator[TimedFrame]:
    for frame in frames:
        if frame.time is None:
            raise UnusableVideo("no timestamps")
        duration = float((frame.duration or 0) * frame.time_base) or float(1 / (stream.average_rate or 25))
        yield TimedFrame(frame.time, frame.time + duration, frame)


def _to_pixels(
    frames: Iterator[Any], num_frames: int, stream: Any, height: int, width: int, down: float, across: float
) -> torch.Tensor:
    """Crops and resizes each frame as it comes, so that no more than one is held at its full size.

    Returns:
        uint8 `(num_frames, 3, height, width)`
    """
    pixel_aspect = float(stream.sample_aspect_ratio or 1)
    if not 1 / MAX_PIXEL_ASPECT <= pixel_aspect <= MAX_PIXEL_ASPECT:
        raise UnusableVideo("absurd size", f"pixels of aspect {pixel_aspect:g}")
    clip = torch.empty(num_frames, 3, height, width, dtype=torch.uint8)
    first = box = orientation = previous = None
    for index, frame in enumerate(frames):
        if first is None or box is None or orientation is None:
            first = (frame.height, frame.width)
            _check_size(*first)
            orientation = _orientation(frame)
            shown_height, shown_width = first
            if orientation.transposed:
                shown_height, shown_width, pixel_aspect = shown_width, shown_height, 1 / pixel_aspect
            # Cropped before it is resized: the memory then does not depend on the source's aspect.
            box = crop_box(shown_height, shown_width, width / height / pixel_aspect, down, across)
        if frame is previous:  # shown for longer than 1 / fps
            clip[index] = clip[index - 1]
            continue
        previous = frame
        if frame.is_corrupt:
            raise UnusableVideo("broken", f"the frame at {frame.time:.2f} s")
        if (frame.height, frame.width) != first:
            raise UnusableVideo("changing size", f"{first[1]} x {first[0]} to {frame.width} x {frame.height}")
        transfer, primaries = stream.codec_context.color_trc, stream.codec_context.color_primaries
        pixels = orientation.apply(_to_array(frame, transfer, primaries))  # (rows, columns, 3 or 4)
        part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        clip[index] = _resize(part, height, width, transfer, primaries)
    return clip


class Orientation(NamedTuple):
    """One of the eight: rows and columns exchanged, then mirrored."""

    transposed: bool
    mirrored_across: bool
    mirrored_down: bool

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """A view of pixels `(rows, columns, channels)`."""
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.mirrored_down else 1, :: -1 if self.mirrored_across else 1]


def _orientation(frame: Any) -> Orientation:
    """The nearest to the display matrix: x' = a x + c y, y' = b x + d y."""
    a, b, c, d = 1.0, 0.0, 0.0, 1.0
    try:
        matrix = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    except ValueError:
        # PyAV reads no side data where it does not know some of it (EXIF of JPEG frames), but for the angle.
        angle = math.radians(-frame.rotation)
        a, b, c, d = math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
    else:
        if matrix is not None:
            a, b, _, c, d, *_ = struct.unpack("=9i", matrix)
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)


def _to_array(frame: Any, transfer: int, primaries: int) -> np.ndarray:
    """`(height, width, 3 or 4)`: RGB or RGBA, uint8; uint16 if its colours need `to_standard_range`."""
    if transfer in NO_DISPLAY_CODE:
        raise UnusableVideo("unsupported colours", f"{NO_DISPLAY_CODE[transfer]} transfer characteristics")
    transparent = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
    name = "rgba" if transparent else "rgb"
    name += ("64le" if transparent else "48le") if is_wide(transfer, primaries) else ""
    frame.colorspace = _colour_matrix(frame)
    # One thread: others do not live on in a forked process, such as a DataLoader worker, which would wait for them
    # when it frees the frame.
    pixels = frame.to_ndarray(format="rgb24" if name == "rgb" else name, threads=1)
    if frame.interlaced_frame:
        pixels = pixels[::2].repeat(2, axis=0)[: len(pixels)]
    return pixels


def _colour_matrix(frame: Any) -> int:
    """From Y'CbCr to RGB, for swscale."""
    if frame.colorspace in KNOWN_MATRICES:
        return KNOWN_MATRICES[frame.colorspace]
    if frame.colorspace not in UNTAGGED:
        raise UnusableVideo("unsupported colours", f"matrix coefficients {frame.colorspace} of ITU-T H.273")
    # Players take untagged video for BT.709 above the sizes of standard definition (here the rule of mpv); swscale
    # takes all for BT.601.
    return BT_709 if frame.width >= 1280 or frame.height > 576 else BT_601


def _resize(part: np.ndarray, height: int, width: int, transfer: int, primaries: int) -> torch.Tensor:
    """uint8 or uint16 `(rows, columns, 3 or 4)` to uint8 `(3, height, width)`, on white."""
    if part.shape[2] == 4:
        part = on_white(part)
    if part.dtype == np.uint8:
        pixels = torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)
        return F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0]
    code = torch.empty(3, height, width)
    for channel in range(3):  # one at a time, as float32 takes twice the memory of uint16
        plane = torch.from_numpy(part[:, :, channel].astype(np.float32))[None, None] / 65535
        code[channel] = F.interpolate(plane, (height, width), mode="bicubic", antialias=True)[0, 0]
    return (to_standard_range(code.clamp(0, 1), transfer, primaries) * 255).round().byte()
