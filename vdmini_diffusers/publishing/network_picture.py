"""A network before and after pruning as a picture: PNG for a model card, and lines of blocks for a terminal."""

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from vdmini_diffusers.publishing.network_sketch import Layer, NetworkSketch, Stage, State


# Pixels of the picture before it is drawn larger; a stage is a frame with a row of boxes below its name.
BOX, GAP, PAD, LABEL = (44, 32), 5, 9, 20
INDENT, LEVEL_GAP, MARGIN, COLUMN_GAP = 44, 22, 28, 130
BLOCKS_PER_ROW = 20
DENSITY = 2  # pixels of the file for each of these, for screens of high resolution
OVERSAMPLING = 2  # beyond that, for smooth edges

INK, GREY, PALE, WHITE = "#1f2933", "#7b8794", "#c3cad3", "#ffffff"
FRAME = "#f4f6f8"
BLUE, ORANGE, GREEN = "#2f6db5", "#d97c1f", "#3b8f5a"

BLOCK_OF_STATE: dict[State, str] = {"kept": "■", "narrowed": "◧", "removed": "□"}


class TitledNetwork(NamedTuple):
    """A network with the lines above its picture: what it is, and what pruning did to its size."""

    title: str
    subtitle: str
    sketch: NetworkSketch


Span = tuple[str, State | None]  # a piece of a line and what it stands for


def terminal_lines(sketch: NetworkSketch) -> list[list[Span]]:
    """The picture in characters: a U-Net's stages as a U, other stages below each other."""
    if not sketch.is_u_shaped:
        width = max(len(stage.name) for stage in sketch.stages)
        return [
            [(f"{stage.name if row == 0 else '':<{width}}  ", None), *_blocks(layers)]
            for stage in sketch.stages
            for row, layers in enumerate(_rows(stage.layers, BLOCKS_PER_ROW))
        ]
    down, middle, up = u_columns(sketch)
    column = max(2 * level + _width_of(stage) for level, stage in enumerate(down)) + 4
    lines: list[list[Span]] = []
    for level, stage in enumerate(down):
        line = [("  " * level, None), *_stage_spans(stage)]
        taken = 2 * level + _width_of(stage)
        if level < len(up):
            skip = "removed" if stage.is_removed or up[level].is_removed else None
            fill = column - taken + 2 * (len(up) - 1 - level)
            line += [(f" {'╌' if skip else '─'}{' ' if skip else '─'}".ljust(2)[:2], skip), (" " * (fill - 2), None)]
            line += _stage_spans(up[level])
        lines.append(line)
    for stage in middle:
        lines.append([("  " * (len(down) + 1), None), *_stage_spans(stage)])
    return lines


def u_columns(sketch: NetworkSketch) -> tuple[list[Stage], list[Stage], list[Stage]]:
    """Down stages, mid block and up stages, the latter from the outermost on, beside the down stages they mirror."""
    down = [stage for stage in sketch.stages if stage.name.startswith("D.")]
    up = [stage for stage in sketch.stages if stage.name.startswith("U.")]
    return down, [stage for stage in sketch.stages if stage.name == "M"], up[::-1]


def network_png(networks: Sequence[TitledNetwork]) -> bytes:
    """A PNG file with the pictures of networks below each other and a legend."""
    sizes = [_size_of(network.sketch) for network in networks]
    width = max([640, *(width for width, _ in sizes)]) + 2 * MARGIN
    heading, legend = 62, 46
    height = sum(height + heading for _, height in sizes) + legend + MARGIN
    canvas = _Canvas(width, height)
    top = MARGIN // 2
    for network, (network_width, network_height) in zip(networks, sizes, strict=True):
        canvas.text(MARGIN, top + 8, network.title, 19, INK)
        canvas.text(MARGIN, top + 34, network.subtitle, 13, GREY)
        if network.sketch.is_u_shaped:
            _draw_u(canvas, network.sketch, MARGIN + (width - 2 * MARGIN - network_width) // 2, top + heading)
        else:
            _draw_rows(canvas, network.sketch, MARGIN, top + heading)
        top += heading + network_height
    _draw_legend(canvas, [network.sketch for network in networks], top + 16)
    return canvas.png()


class _Canvas:
    """Draws in pixels of the layout, on an image that is larger by `DENSITY * OVERSAMPLING`."""

    def __init__(self, width: int, height: int) -> None:
        self.scale = DENSITY * OVERSAMPLING
        self.image = Image.new("RGB", (width * self.scale, height * self.scale), WHITE)
        self.draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, size: int, colour: str, anchor: str = "lt") -> None:
        font = ImageFont.load_default(size * self.scale)
        self.draw.text((x * self.scale, y * self.scale), text, colour, font, anchor)

    def length(self, text: str, size: int) -> float:
        return ImageFont.load_default(size * self.scale).getlength(text) / self.scale

    def box(self, x: float, y: float, w: float, h: float, fill: str, outline: str | None, radius: float = 6) -> None:
        s = self.scale
        corners = (x * s, y * s, (x + w) * s, (y + h) * s)
        self.draw.rounded_rectangle(corners, radius * s, fill, outline, round(1.3 * s))

    def dashed_box(self, x: float, y: float, w: float, h: float, colour: str, inset: float = 6) -> None:
        self.line([(x + inset, y), (x + w - inset, y)], colour, dashed=True)
        self.line([(x + inset, y + h), (x + w - inset, y + h)], colour, dashed=True)
        self.line([(x, y + inset), (x, y + h - inset)], colour, dashed=True)
        self.line([(x + w, y + inset), (x + w, y + h - inset)], colour, dashed=True)
        s, r = self.scale, 2 * inset
        for left, top, start in ((x, y, 180), (x + w - r, y, 270), (x + w - r, y + h - r, 0), (x, y + h - r, 90)):
            corners = (left * s, top * s, (left + r) * s, (top + r) * s)
            self.draw.arc(corners, start + 15, start + 75, colour, round(1.3 * s))

    def line(
        self, points: Sequence[tuple[float, float]], colour: str, dashed: bool = False, head: bool = False
    ) -> None:
        s, width = self.scale, round(1.3 * self.scale)
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            for start, stop in _dashes(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, dashed):
                ends = (
                    [(x0 + t * (x1 - x0)) * s for t in (start, stop)],
                    [(y0 + t * (y1 - y0)) * s for t in (start, stop)],
                )
                self.draw.line([(ends[0][0], ends[1][0]), (ends[0][1], ends[1][1])], colour, width)
        if head:
            (x0, y0), (x1, y1) = points[-2:]
            length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5 or 1
            dx, dy = (x1 - x0) / length, (y1 - y0) / length
            tip = [
                (x1, y1),
                (x1 - 7 * dx - 3.5 * dy, y1 - 7 * dy + 3.5 * dx),
                (x1 - 7 * dx + 3.5 * dy, y1 - 7 * dy - 3.5 * dx),
            ]
            self.draw.polygon([(x * s, y * s) for x, y in tip], colour)

    def png(self) -> bytes:
        size = self.image.width // OVERSAMPLING, self.image.height // OVERSAMPLING
        file = io.BytesIO()
        # 256 colours hold the few here and their blends, in a quarter of the bytes.
        self.image.resize(size, Image.Resampling.LANCZOS).quantize(256).save(file, "PNG", optimize=True)
        return file.getvalue()


def _dashes(length: float, dashed: bool, dash: float = 5, gap: float = 4) -> Iterator[tuple[float, float]]:
    """Pieces of a line of that length, as fractions of it."""
    if not dashed or length == 0:
        yield 0.0, 1.0
        return
    position = 0.0
    while position < length:
        yield position / length, min(position + dash, length) / length
        position += dash + gap


def _stage_size(stage: Stage) -> tuple[int, int]:
    count = max(len(stage.layers), 3)  # a stage that is gone is drawn as wide as three boxes
    return count * (BOX[0] + GAP) - GAP + 2 * PAD, LABEL + BOX[1] + PAD


def _size_of(sketch: NetworkSketch) -> tuple[int, int]:
    if not sketch.is_u_shaped:
        rows = [list(_rows(stage.layers, BLOCKS_PER_ROW)) for stage in sketch.stages]
        width = max(min(len(stage.layers), BLOCKS_PER_ROW) for stage in sketch.stages) * (BOX[0] + GAP)
        return width, sum(LABEL + len(found) * (BOX[1] + GAP) + LEVEL_GAP // 2 for found in rows)
    down, middle, up = u_columns(sketch)
    level_height = _stage_size(sketch.stages[0])[1] + LEVEL_GAP
    left = max(level * INDENT + _stage_size(stage)[0] for level, stage in enumerate(down))
    right = max(level * INDENT + _stage_size(stage)[0] for level, stage in enumerate(up))
    return left + COLUMN_GAP + right, (len(down) + len(middle)) * level_height - LEVEL_GAP


def _draw_u(canvas: _Canvas, sketch: NetworkSketch, left: float, top: float) -> None:
    down, middle, up = u_columns(sketch)
    width = _size_of(sketch)[0]
    height = _stage_size(sketch.stages[0])[1]
    step = height + LEVEL_GAP
    places: dict[str, tuple[float, float, float]] = {}  # left, top and width of each stage
    for level, stage in enumerate(down):
        places[stage.name] = (left + level * INDENT, top + level * step, _stage_size(stage)[0])
    for level, stage in enumerate(up):
        own = _stage_size(stage)[0]
        places[stage.name] = (left + width - level * INDENT - own, top + level * step, own)
    centre = left + len(down) * INDENT / 2
    if down and up:
        x, _, w = places[down[-1].name]
        centre = (x + w + places[up[-1].name][0]) / 2
    for stage in middle:
        own = _stage_size(stage)[0]
        places[stage.name] = (centre - own / 2, top + len(down) * step, own)

    for before, after in zip(down, up, strict=False):  # skip connections
        x, y, w = places[before.name]
        gone = before.is_removed or after.is_removed
        ends = [(x + w + 5, y + height / 3), (places[after.name][0] - 5, y + height / 3)]
        canvas.line(ends, PALE if gone else GREY, dashed=gone, head=True)
    _draw_path(canvas, [*down, *middle, *up[::-1]], places, height)
    inner = [stage for stage in (*down, *middle, *up[::-1]) if not stage.is_removed]
    turn = next((i for i, stage in enumerate(inner) if stage.name.startswith("U")), 0)
    if len(inner) < len(sketch.stages) and turn and inner[turn - 1].name.startswith("D"):
        # What the student does instead of what was removed between: straight from down to up.
        (x0, y0, w0), (x1, _, _) = places[inner[turn - 1].name], places[inner[turn].name]
        y = y0 + 2 * height / 3
        canvas.line([(x0 + w0 + 5, y), (x1 - 5, y)], INK, head=True)
    for stage in sketch.stages:
        x, y, w = places[stage.name]
        _draw_stage(canvas, stage, x, y, w, height)


def _draw_path(
    canvas: _Canvas, order: Sequence[Stage], places: dict[str, tuple[float, float, float]], height: float
) -> None:
    """Arrows from stage to stage; where one was removed, through its place, dashed."""
    for before, after in itertools.pairwise(order):
        colour, dashed = (PALE, True) if before.is_removed or after.is_removed else (INK, False)
        (x0, y0, w0), (x1, y1, w1) = places[before.name], places[after.name]
        if y1 > y0 and after.name != "M":
            x = x1 + INDENT
            canvas.line([(x, y0 + height + 3), (x, y1 - 3)], colour, dashed, head=True)
        elif y1 < y0 and before.name != "M":
            x = x0 + w0 - INDENT
            canvas.line([(x, y0 - 3), (x, y1 + height + 3)], colour, dashed, head=True)
        elif after.name == "M":  # down, and in from the left
            x, y = x0 + INDENT, y1 + height / 2
            canvas.line([(x, y0 + height + 3), (x, y), (x1 - 3, y)], colour, dashed, head=True)
        elif before.name == "M":
            x, y = x1 + w1 - INDENT, y0 + height / 2
            canvas.line([(x0 + w0 + 3, y), (x, y), (x, y1 + height + 3)], colour, dashed, head=True)
        else:  # without a mid block, from the last down stage to the first up stage
            y = y0 + height / 2
            canvas.line([(x0 + w0 + 3, y), (x1 - 3, y)], colour, dashed, head=True)


def _draw_stage(canvas: _Canvas, stage: Stage, x: float, y: float, w: float, h: float) -> None:
    if stage.is_removed:
        canvas.box(x, y, w, h, WHITE, None)
        canvas.dashed_box(x, y, w, h, PALE)
        canvas.text(x + w / 2, y + h / 2 - 9, f"{stage.name} removed", 13, GREY, "mm")
        if stage.num_removed:
            text = f"{short_count(stage.num_removed)} parameters"
            canvas.text(x + w / 2, y + h / 2 + 10, text, 12, GREY, "mm")
        return
    canvas.box(x, y, w, h, FRAME, None, radius=8)
    canvas.text(x + PAD, y + LABEL / 2 + 1, stage.name, 13, INK, "lm")
    if stage.channels is not None:
        canvas.text(x + w - PAD, y + LABEL / 2 + 1, f"{stage.channels} channels", 11, GREY, "rm")
    for i, layer in enumerate(stage.layers):
        colour = ORANGE if layer.name.startswith("A") else BLUE
        _draw_layer(canvas, layer, x + PAD + i * (BOX[0] + GAP), y + LABEL, colour)


def _draw_rows(canvas: _Canvas, sketch: NetworkSketch, left: float, top: float) -> None:
    is_list = sketch.network == "transformer"
    for number, stage in enumerate(sketch.stages):
        text = stage.name
        if is_list:
            num_removed = sum(layer.state == "removed" for layer in stage.layers)
            text += f", {len(stage.layers)} blocks" + f", {num_removed} removed" * bool(num_removed)
        if stage.channels is not None:
            text += f", {stage.channels} channels"
        canvas.text(left, top + LABEL / 2 - 2, text, 13, INK, "lm")
        top += LABEL
        for layers in _rows(stage.layers, BLOCKS_PER_ROW):
            for i, layer in enumerate(layers):
                colour = (BLUE, ORANGE, GREEN)[number % 3] if is_list else ORANGE if layer.name[0] == "A" else BLUE
                _draw_layer(canvas, layer, left + i * (BOX[0] + GAP), top, colour)
            top += BOX[1] + GAP
        top += LEVEL_GAP // 2


def _draw_layer(canvas: _Canvas, layer: Layer, x: float, y: float, colour: str) -> None:
    w, h = BOX
    if layer.state == "removed":
        canvas.box(x, y, w, h, WHITE, None)
        canvas.dashed_box(x, y, w, h, PALE)
    elif layer.state == "narrowed":  # a narrower box in the frame of the whole one
        canvas.box(x, y, w, h, WHITE, colour)
        canvas.box(x + w / 5, y, w * 3 / 5, h, colour, colour, radius=3)
    else:
        canvas.box(x, y, w, h, colour, colour)
    canvas.text(x + w / 2, y + h / 2, layer.name, 13, GREY if layer.state == "removed" else WHITE, "mm")


def _draw_legend(canvas: _Canvas, sketches: Sequence[NetworkSketch], top: float) -> None:
    names = [layer.name[0] for sketch in sketches for stage in sketch.stages for layer in stage.layers]
    entries: list[tuple[str, State, str]] = []
    if "R" in names:
        entries.append(("ResBlock", "kept", BLUE))
    if "A" in names:
        entries.append(("TransformerBlock", "kept", ORANGE))
    if not entries:
        entries.append(("kept block", "kept", BLUE))
    if any(sketch.count("narrowed") for sketch in sketches):
        entries.append(("fewer channels", "narrowed", BLUE))
    if any(sketch.count("removed") for sketch in sketches):
        entries.append(("removed", "removed", PALE))
    x = float(MARGIN)
    for text, state, colour in entries:
        w, h = 22, 15
        if state == "removed":
            canvas.dashed_box(x, top, w, h, GREY, inset=3)
        elif state == "narrowed":
            canvas.box(x, top, w, h, WHITE, colour, radius=3)
            canvas.box(x + w / 5, top, w * 3 / 5, h, colour, colour, radius=2)
        else:
            canvas.box(x, top, w, h, colour, colour, radius=3)
        canvas.text(x + w + 7, top + h / 2, text, 12, INK, "lm")
        x += w + 7 + canvas.length(text, 12) + 22


def _rows(layers: Sequence[Layer], length: int) -> Iterable[Sequence[Layer]]:
    return [layers[start : start + length] for start in range(0, len(layers), length)]


def _blocks(layers: Iterable[Layer]) -> list[Span]:
    return [(BLOCK_OF_STATE[layer.state], layer.state) for layer in layers]


def _stage_spans(stage: Stage) -> list[Span]:
    if not stage.layers:
        return [(f"{stage.name:<4}", "removed"), ("removed", "removed")]
    pairs: list[Span] = []
    for layer in stage.layers:
        starts = layer.name.startswith("R") and pairs
        pairs += [(" ", None)] * bool(starts) + _blocks([layer])
    return [(f"{stage.name:<4}", None), *pairs]


def _width_of(stage: Stage) -> int:
    return sum(len(text) for text, _ in _stage_spans(stage))


def short_count(number: int) -> str:
    """`939.9 M` for 939,884,186."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.{0 if number >= 1000 * size else 1}f} {unit}"
    return str(number)
