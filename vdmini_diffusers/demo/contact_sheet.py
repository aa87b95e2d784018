"""Small clips as pictures: side by side in a GIF, or one row each on a sheet."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont


SCALE = 3  # the clips are small: each pixel is shown as 3 x 3


def enlarge(frame: np.ndarray) -> Image.Image:
    return Image.fromarray(frame).resize((frame.shape[1] * SCALE, frame.shape[0] * SCALE), Image.Resampling.NEAREST)


def write_gif(clips: Sequence[np.ndarray], path: Path, fps: int = 7) -> None:
    """All clips side by side, in a loop."""
    frames = [enlarge(np.concatenate(frames, axis=1)) for frames in zip(*clips, strict=True)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)


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
