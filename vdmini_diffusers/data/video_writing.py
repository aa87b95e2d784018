"""Videos written as mp4 files by PyAV, which brings its own FFmpeg."""

import os
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from PIL import Image


def write_video(
    frames: Sequence[Image.Image] | np.ndarray | torch.Tensor,
    path: str | os.PathLike,
    fps: float,
    comment: str | None = None,
) -> None:
    """Write one video, as a pipeline returns it, to an mp4 file (H.264, which browsers play).

    The index stands before the frames, so that a browser starts before it has all of the file.

    Args:
        frames: pictures; or `(frames, height, width, 3)` as `output_type="np"` gives them, or `(frames, 3, height,
            width)` as `output_type="pt"` does, of uint8 (0 to 255) or floating point (0 to 1).
        fps: frames per second.
        comment: text that the file carries; players show it among a video's properties.

    H.264 stores colours at half the resolution, so a last row or column of odd number is repeated once.

    Raises:
        ValueError: if the frames are of another shape, type or range, or if `path` does not end in `.mp4`.
        OSError: if the file cannot be written.
        ImportError: without PyAV.
    """
    av = import_av()
    pixels = video_to_uint8(frames)
    if not os.fspath(path).endswith(".mp4"):
        raise ValueError(f"Videos are written as mp4: name the file something.mp4, not {os.fspath(path)!r}.")
    if not 0 < fps <= 1000:
        raise ValueError(f"`fps` should be above 0 and at most 1000, not {fps}.")
    odd = [(0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2), (0, 0)]
    pixels = np.pad(pixels, odd, mode="edge")
    with av.open(os.fspath(path), "w", options={"movflags": "+faststart"}) as container:
        if comment is not None:
            container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], "yuv420p"
        # Named, because players would take a small video for BT.601 and a large one for BT.709.
        stream.codec_context.colorspace = stream.codec_context.color_primaries = stream.codec_context.color_trc = 1
        stream.codec_context.color_range = 1
        for picture in pixels:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace="ITU709", src_color_range="JPEG", dst_color_range="MPEG", threads=1
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def whole_shape(file: str | os.PathLike) -> tuple[int, int, int] | None:
    """Frames, height and width of a video by `write_video` that decodes to its end; None of a damaged one.

    The header tells nothing of damage: it stands before the frames, so that a file that was cut still has it.

    Raises:
        ImportError: without PyAV.
    """
    av = import_av()
    try:
        with av.open(os.fspath(file)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # with several threads, FFmpeg marks fewer of the damaged frames
            num_whole = sum(not frame.is_corrupt for frame in container.decode(stream))
            return (num_whole, stream.height, stream.width) if num_whole == stream.frames > 0 else None
    except (av.FFmpegError, OSError, IndexError, AttributeError, ArithmeticError, ValueError):
        return None  # the last four are PyAV's answers to damaged headers: no stream, no decoder, no number, no text


def import_av() -> Any:
    """PyAV. Raises `ImportError` with what to install where it is not there."""
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "Videos are written by PyAV: run `pip install -e '.[video]'` in a checkout of the repository."
        ) from error
    return av


def video_to_uint8(frames: Sequence[Image.Image] | np.ndarray | torch.Tensor) -> np.ndarray:
    """One video as `write_video` takes it, as uint8 `(frames, height, width, 3)`. Raises `ValueError` as it does."""
    if isinstance(frames, torch.Tensor):
        array = frames.detach().cpu()
        array = array.float().numpy() if array.is_floating_point() else array.numpy()
        array = np.moveaxis(array, 1, -1) if array.ndim == 4 else array
    elif isinstance(frames, np.ndarray):
        array = frames
    else:
        sizes = {frame.size for frame in frames if isinstance(frame, Image.Image)}
        if len(sizes) != 1 or not all(isinstance(frame, Image.Image) for frame in frames):
            raise ValueError("`frames` should be an array, a tensor or a list of PIL images, all of one size.")
        array = np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
    if array.ndim != 4 or array.shape[-1] != 3 or not array.size:
        raise ValueError(
            "`frames` should be one video: (frames, height, width, 3) as an array, (frames, 3, height, width) as a"
            f" tensor; got {tuple(frames.shape) if hasattr(frames, 'shape') else array.shape}."
        )
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"`frames` should be of uint8, 0 to 255, or floating point, 0 to 1, not {array.dtype}.")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # also if one is NaN
        raise ValueError(f"`frames` of floating point should lie between 0 and 1; they lie from {low:g} to {high:g}.")
    return (array * 255).round().astype(np.uint8)
