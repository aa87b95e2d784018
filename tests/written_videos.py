"""Videos written for tests: the colour of a frame is its index, so that a clip tells which frames it is made of."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch


STEP = 4  # of grey, from one frame to the next: survives lossy codecs


def write_video(
    path: Path,
    num_frames: int = 30,
    fps: int = 10,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (48, 64),
    times: Sequence[float] | None = None,
    pictures: np.ndarray | None = None,
    rotation: int = 0,
    pixel_aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """`times`: of each frame, in seconds. `pictures`: `(frames, height, width, 3)` instead of grey frames."""
    if pictures is None:
        levels = np.arange(num_frames if times is None else len(times)) * STEP
        pictures = np.broadcast_to(levels.astype(np.uint8)[:, None, None, None], (len(levels), *size, 3))
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = pix_fmt
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format=pix_fmt, threads=1)
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[index]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def indices(clip: torch.Tensor) -> list[int]:
    """Which frames of the video a uint8 or a -1 to 1 clip shows."""
    levels = clip.float().mean(dim=(1, 2, 3))
    if clip.is_floating_point():
        levels = (levels + 1) * 127.5
    return (levels / STEP).round().int().tolist()
