"""A clip as a file, mp4, gif or a sheet of its frames as png, which says what it was made with."""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from vdmini_diffusers.data.video_writing import import_av, whole_shape, write_video


ENDINGS = (".mp4", ".gif", ".png")
GIF_END = b";"  # the trailer, after the last frame


def check_ending(path: Path) -> None:
    """Raises `ValueError` for a name that is no clip's, and `ImportError` where an mp4 file cannot be written."""
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(
            f"{path} should end in .mp4, .gif (a GIF) or .png (a sheet of all frames), which says what is written."
        )
    if path.suffix.lower() == ".mp4":
        import_av()


def check_writable(path: Path) -> None:
    """Raises `OSError` for a name that no file can have, and if none can be made in its folder.

    Of a folder that is not there, the nearest that is there is tried.
    """
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:  # without the random name
        raise type(error)(error.errno, f"no file can be made there ({error.strerror})", str(folder)) from error
    with contextlib.suppress(FileNotFoundError):
        os.lstat(path)  # refuses a name that is too long


def write_clip(frames: np.ndarray, path: Path, fps: float, record: Mapping[str, Any]) -> None:
    """Write a clip by the ending of `path`; it appears under its name when it is complete.

    Args:
        frames: uint8 `(frames, height, width, 3)`.
        fps: a GIF counts hundredths of a second, so that its rate is the nearest it can have.
        record: what it was made with, stored in the file as JSON; `read_record` reads it.

    Raises:
        OSError: if it cannot be written.
        ValueError: if an mp4 file does not read back as what was written.
    """
    comment, ending = json.dumps(record, ensure_ascii=False), path.suffix.lower()
    path.parent.mkdir(parents=True, exist_ok=True)
    # The temporary name keeps the ending, by which FFmpeg and Pillow choose the format.
    with tempfile.TemporaryDirectory(prefix=".vdmini-clip.tmp-", dir=path.parent) as folder:
        partial = Path(folder) / f"clip{ending}"
        if ending == ".mp4":
            write_video(frames, partial, fps, comment)
            _check_video(partial, frames, fps)
        elif ending == ".gif":
            pictures = [Image.fromarray(frame) for frame in frames]
            duration = 10 * max(2, round(100 / fps))  # browsers slow down what is shown for less than 20 ms
            pictures[0].save(
                partial,
                save_all=True,
                append_images=pictures[1:],
                duration=duration,
                loop=0,
                comment=comment.encode(),
            )
        else:
            text = PngImagePlugin.PngInfo()
            text.add_itxt("Comment", comment)
            Image.fromarray(frame_sheet(frames)).save(partial, pnginfo=text)
        os.replace(partial, path)


def read_record(path: Path) -> dict[str, Any] | None:
    """What a finished clip was made with, or None for a file that does not say so, or is not whole."""
    try:
        if path.suffix.lower() == ".mp4":
            if whole_shape(path) is None:
                return None
            with import_av().open(os.fspath(path)) as container:
                comment = container.metadata.get("comment")
        else:
            if path.suffix.lower() == ".gif" and not path.read_bytes().endswith(GIF_END):
                return None
            with Image.open(path) as image:
                image.load()  # PNG keeps its texts behind the pixels
                comment = image.info.get("comment" if image.format == "GIF" else "Comment")
        record = json.loads(comment or "null")
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def frame_sheet(frames: np.ndarray) -> np.ndarray:
    """All frames of a clip in one picture, from left to right and from top to bottom; the rest is white."""
    num_frames, height, width, _ = frames.shape
    columns = min(num_frames, max(1, round(math.sqrt(num_frames * 1.6 * height / width))))  # about 8 to 5
    rows = math.ceil(num_frames / columns)
    sheet = np.full((rows * columns, height, width, 3), 255, np.uint8)
    sheet[:num_frames] = frames
    return sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def _check_video(path: Path, frames: np.ndarray, fps: float) -> None:
    """What players need to know, as the file itself says it."""
    with import_av().open(os.fspath(path)) as container:
        stream = container.streams.video[0]
        size = tuple(side + side % 2 for side in frames.shape[1:3])
        found = stream.codec_context.name, stream.pix_fmt, stream.frames, (stream.height, stream.width)
        wanted = "h264", "yuv420p", len(frames), size
        if found != wanted or not math.isclose(float(stream.average_rate or 0), fps, rel_tol=1e-3):
            raise ValueError(
                f"The video should be {wanted} with {fps:g} frames a second, and reads back as {found} with"
                f" {stream.average_rate}: this FFmpeg does not write what it should."
            )
