"""The picture of a network, as PNG and in characters."""

import io
from dataclasses import replace

import pytest
from PIL import Image

from vdmini_diffusers.publishing.network_picture import (
    BLUE,
    BOX,
    DENSITY,
    TitledNetwork,
    network_png,
    short_count,
    terminal_lines,
)
from vdmini_diffusers.publishing.network_sketch import Layer, NetworkSketch, Stage


def u_net(*removed):
    """Two down stages, a mid block and two up stages, with layers or whole stages removed."""

    def stage(name, *layers):
        if name in removed:
            return Stage(name, (), num_removed=1_234_567)
        return Stage(
            name, tuple(Layer(each, "removed" if f"{name}.{each}" in removed else "kept") for each in layers), 320
        )

    down = [stage("D.0", "R.0", "A.0", "R.1", "A.1"), stage("D.1", "R.0", "R.1")]
    up = [stage("U.0", "R.0", "R.1", "R.2"), stage("U.1", "R.0", "A.0", "R.1", "A.1", "R.2", "A.2")]
    return NetworkSketch("U-Net", (*down, stage("M", "R.0", "A.0", "R.1"), *up), is_u_shaped=True)


def pixels(png, colour):
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        counts = {value: count for count, value in picture.convert("RGB").getcolors(2**24)}
    wanted = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    # The palette is found for each picture anew, so that a colour may be off by little.
    return sum(n for found, n in counts.items() if max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= 6)


def draw(*sketches):
    return network_png([TitledNetwork("A model: U-Net", "8.0 M to 4.9 M parameters", sketch) for sketch in sketches])


def test_a_removed_layer_is_hollow():
    whole, without = (pixels(draw(sketch), BLUE) for sketch in (u_net(), u_net("D.0.R.1")))
    box = BOX[0] * BOX[1] * DENSITY**2
    assert 0.7 * box < whole - without < box  # without its name, which is white, and the rounded corners


def test_the_picture_grows_by_each_network():
    def size(png):
        return Image.open(io.BytesIO(png)).size

    one, two = size(draw(u_net())), size(draw(u_net(), u_net()))
    assert one[0] == two[0] and one[1] < two[1] < 2 * one[1]


def test_a_u_in_characters():
    lines = ["".join(text for text, _ in line).rstrip() for line in terminal_lines(u_net("D.0.R.1", "D.0.A.1", "M"))]
    assert lines == [
        "D.0 ■■ □□ ─    U.1 ■■ ■■ ■■",
        "  D.1 ■ ■ ─  U.0 ■ ■ ■",
        "      M   removed",
    ]


@pytest.mark.parametrize("removed", [(), ("D.1", "M", "U.0"), ("M",)])
def test_up_stages_stand_below_each_other_to_the_left(removed):
    lines = ["".join(text for text, _ in line) for line in terminal_lines(u_net(*removed))]
    assert lines[0].index("U.1") == lines[1].index("U.0") + 2


def test_blocks_of_a_transformer_in_rows():
    layers = tuple(Layer(str(i), "kept" if i % 2 else "removed") for i in range(25))
    sketch = NetworkSketch("transformer", (Stage("blocks", layers),))
    lines = ["".join(text for text, _ in line) for line in terminal_lines(sketch)]
    assert lines == ["blocks  " + "□■" * 10, "        " + "□■" * 2 + "□"]
    narrow = replace(sketch, stages=(Stage("blocks", (Layer("0", "narrowed"),)),))
    assert terminal_lines(narrow)[0][1] == ("◧", "narrowed")
    assert pixels(draw(narrow), BLUE) < pixels(
        draw(replace(narrow, stages=(Stage("b", (Layer("0", "kept"),)),))), BLUE
    )


@pytest.mark.parametrize(
    ("number", "text"), [(939_884_186, "939.9 M"), (8_403_260_480, "8.4 B"), (1500, "1.5 k"), (7, "7")]
)
def test_counts_are_short(number, text):
    assert short_count(number) == text
