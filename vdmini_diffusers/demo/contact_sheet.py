"""Small clips as pictures: side by side in a GIF or under their labels in a video, or one row each on a sheet."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vdmini_diffusers.data.video_writing import write_video


SCALE = 3  # the clips are small: each pixel is shown as 3 x 3
VIDEO_SCALE = 2  # H.264 keeps one colour for 2 x 2 pixels, so each keeps its own
CLIPS_IN_A_ROW = 6


def enlarge(frame: np.ndarray, scale: int = SCALE) -> Image.Image:
    return Image.fromarray(frame).resize((frame.shape[1] * scale, frame.shape[0] * scale), Image.Resampling.NEAREST)


def write_gif(clips: Sequence[np.ndarray], path: Path, fps: int = 7) -> None:
    """All clips side by side, in a loop."""
    frames = [enlarge(np.concatenate(frames, axis=1)) for frames in zip(*clips, strict=True)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)


def write_labelled_video(clips: Mapping[str, np.ndarray], path: Path, fps: int = 7) -> None:
    """All clips at once, each under its label (mp4, by PyAV)."""
    moments = zip(*clips.values(), strict=True)
    write_video(
        [_under_labels(list(clips), [enlarge(f, VIDEO_SCALE) for f in frames]) for frames in moments], path, fps
    )


def _under_labels(labels: Sequence[str], pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size, in as many rows as they need."""
    (width, height), label_height = pictures[0].size, 32
    num_rows = math.ceil(len(pictures) / CLIPS_IN_A_ROW)
    whole = Image.new("RGB", (width * min(len(pictures), CLIPS_IN_A_ROW), (height + label_height) * num_rows), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(12)
    for i, (label, picture) in enumerate(zip(labels, pictures, strict=True)):
        x, y = width * (i % CLIPS_IN_A_ROW), (height + label_height) * (i // CLIPS_IN_A_ROW)
        draw.multiline_text((x + 3, y + 1), "\n".join(wrap(label, 20)), fill="black", font=font, spacing=1)
        whole.paste(picture, (x, y + label_height))
    return whole


def write_contact_sheet(rows: Sequence[tuple[str, np.ndarray]], path: Path) -> None:
    """One row a clip, time to the right, with its label above."""
    font, label_height = ImageFont.load_default(14), 20
    strips = [enlarge(np.concatenate(list(clip), axis=1)) for _, clip in rows]
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height + label_height for strip in strips)), "white")
    draw, y = ImageDraw.Draw(sheet), 0
    for (label, _), strip in zip(rows, strips, strict=True):
        draw.text((4, y + 2), label, fill="black", font=font)
        sheet.paste(strip, (0, y + label_height))
        y += label_height + strip.height
    sheet.save(path)
