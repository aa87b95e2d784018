"""Pictures of what was measured: bars part by part (Fig. 1, A4, A5), and first and last frames (Fig. A6)."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


ROW = 18  # pixels
BAR = 420
# One colour a group, in the order in which groups come: stages of a U-Net, lists of a transformer.
COLOURS = ("#4878a8", "#d1813c", "#5b9a5b", "#b8504f", "#8a74ad", "#8c6d62", "#c47ba9", "#7a7a7a", "#a9a542")


def bars(values: Mapping[str, float], title: str, unit: str = "") -> Image.Image:
    """Horizontal bars, one a part, in their order; the parts of a stage have one colour.

    Negative values go to the left of the line at zero. The number stands beside its bar.
    """
    font, title_font = ImageFont.load_default(12), ImageFont.load_default(15)
    low, high = min(0.0, *values.values()), max(0.0, *values.values())
    scale = BAR / ((high - low) or 1)
    names = round(max(font.getlength(name) for name in values)) + 16
    zero = names + round(-low * scale) + (60 if low < 0 else 0)
    width = max(zero + round(high * scale) + 90, round(title_font.getlength(title)) + 16)
    picture = Image.new("RGB", (width, 34 + ROW * len(values)), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((8, 7), title, fill="black", font=title_font)
    groups = list(dict.fromkeys(_group(name) for name in values))
    for row, (name, value) in enumerate(values.items()):
        y, end = 30 + row * ROW, zero + round(value * scale)
        colour = COLOURS[groups.index(_group(name)) % len(COLOURS)]
        draw.text((names - 8, y + ROW / 2), name, fill="black", font=font, anchor="rm")
        draw.rectangle((min(zero, end), y + 3, max(zero, end), y + ROW - 3), fill=colour)
        label = f"{value:,.0f}{unit}" if abs(value) >= 1000 else f"{value:.4g}{unit}"
        draw.text((end + 5 if value >= 0 else end - 5, y + ROW / 2), label, fill="black", font=font,
                  anchor="lm" if value >= 0 else "rm")  # fmt: skip
    draw.line((zero, 28, zero, picture.height - 4), fill="black")
    return picture


def _group(name: str) -> str:
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if first in ("D", "U") else first


def first_and_last_frames(videos: np.ndarray, num_videos: int = 3, height: int = 96) -> Image.Image:
    """The first and the last frame of the first videos `(n, frames, height, width, 3)`, side by side in pairs."""
    pairs = [np.concatenate([clip[0], clip[-1]], axis=1) for clip in videos[:num_videos]]
    strip = Image.fromarray(np.concatenate(pairs, axis=1))
    return strip.resize((round(strip.width * height / strip.height), height), Image.Resampling.BICUBIC)


def sheet(rows: Sequence[tuple[str, Image.Image]], columns: int = 2) -> Image.Image:
    """Labelled pictures of one size, row by row."""
    font, label = ImageFont.load_default(13), 18
    width, height = rows[0][1].width + 8, rows[0][1].height + label + 4
    picture = Image.new("RGB", (width * columns, height * -(-len(rows) // columns)), "white")
    draw = ImageDraw.Draw(picture)
    for i, (name, strip) in enumerate(rows):
        x, y = i % columns * width, i // columns * height
        draw.text((x + 2, y + 1), name, fill="black", font=font)
        picture.paste(strip, (x, y + label))
    return picture


def png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
