"""Pictures are read as a viewer shows them, and what is no picture is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from vdmini_diffusers.data import images
from vdmini_diffusers.data.images import fit_picture, on_white, read_image


QUADRANTS = np.zeros((64, 64, 3), np.uint8)
QUADRANTS[:32, :32, 0] = QUADRANTS[:32, 32:, 1] = QUADRANTS[32:, :32, 2] = 255
QUADRANTS[32:, 32:] = 255


def save(path, image, **options):
    image.save(path, **options)
    return path


def colour_of(path) -> list[float]:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).mean(axis=(0, 1)).tolist()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_data_say(tmp_path, suffix, orientation):
    # What undoes each orientation, so that the picture is seen as it is here (EXIF 2.32, tag 0x0112).
    stored = {
        1: QUADRANTS,
        2: QUADRANTS[:, ::-1],
        3: QUADRANTS[::-1, ::-1],
        4: QUADRANTS[::-1],
        5: QUADRANTS.swapaxes(0, 1),
        6: np.rot90(QUADRANTS),
        7: np.rot90(QUADRANTS, 2).swapaxes(0, 1),
        8: np.rot90(QUADRANTS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"photo{suffix}", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.abs(np.asarray(read_image(path)).astype(int) - QUADRANTS).mean() < 5


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "wanted"),
    [
        ("RGB", (10, 20, 30), ".png", [10, 20, 30]),
        ("RGBA", (255, 0, 0, 0), ".png", [255, 255, 255]),
        ("RGBA", (255, 0, 0, 51), ".png", [255, 204, 204]),
        ("RGBA", (255, 0, 0, 51), ".webp", [255, 204, 204]),
        ("LA", (0, 51), ".png", [204, 204, 204]),
        ("L", 77, ".jpg", [77, 77, 77]),
        ("1", 1, ".png", [255, 255, 255]),
        ("CMYK", (0, 255, 255, 0), ".jpg", [255, 0, 0]),
        ("YCbCr", (76, 85, 255), ".jpg", [255, 0, 0]),
        ("LAB", (128, 128, 128), ".tiff", [119, 119, 119]),
        ("I;16", 100 * 257, ".png", [100, 100, 100]),
        ("I;16", 100 * 257, ".tiff", [100, 100, 100]),
        ("I", 100 * 257, ".tiff", [100, 100, 100]),
    ],
)
def test_every_kind_of_colours_becomes_rgb(tmp_path, mode, colour, suffix, wanted):
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"plain{suffix}", Image.new(mode, (16, 16), colour), **options)
    assert colour_of(path) == pytest.approx(wanted, abs=3)


def test_transparent_colours_of_a_palette_are_shown_on_white(tmp_path):
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    assert colour_of(save(tmp_path / "a.png", image)) == [200, 0, 0]
    assert colour_of(save(tmp_path / "b.png", image, transparency=1)) == [255, 255, 255]
    assert colour_of(save(tmp_path / "c.gif", image, transparency=1)) == [255, 255, 255]
    assert colour_of(save(tmp_path / "d.png", image, transparency=bytes([255, 51]))) == [244, 204, 204]


def png(bit_depth, colour_type, rows: bytes, width, height, *chunks: tuple[bytes, bytes]) -> bytes:
    """Written by hand, as Pillow writes no colours of 16 bits."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


@pytest.mark.parametrize(
    ("colour_type", "values", "transparent", "wanted"),
    [
        (2, (10, 20, 30), None, [10, 20, 30]),
        (6, (255, 0, 0, 51), None, [255, 204, 204]),
        (4, (0, 51), None, [204, 204, 204]),
        (0, (100,), None, [100, 100, 100]),
        (0, (100,), 100 * 257, [255, 255, 255]),
        (0, (100,), 99 * 257, [100, 100, 100]),
    ],
)
def test_16_bits_are_scaled_not_clipped(tmp_path, colour_type, values, transparent, wanted):
    rows = 8 * (b"\0" + 8 * struct.pack(f">{len(values)}H", *(257 * value for value in values)))
    chunks = [] if transparent is None else [(b"tRNS", struct.pack(">H", transparent))]
    (tmp_path / "deep.png").write_bytes(png(16, colour_type, rows, 8, 8, *chunks))
    assert colour_of(tmp_path / "deep.png") == pytest.approx(wanted, abs=1)


def test_a_colour_profile_is_converted_to_srgb_and_a_damaged_one_is_left_out(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("RGB", (16, 16), (200, 50, 60))
    assert colour_of(save(tmp_path / "a.png", image, icc_profile=srgb)) == pytest.approx([200, 50, 60], abs=1)
    # The red colorant of sRGB exchanged with the green one: red values then mean green.
    at, other = (srgb.find(tag) for tag in (b"rXYZ", b"gXYZ"))
    swapped = bytearray(srgb)
    swapped[at : at + 4], swapped[other : other + 4] = b"gXYZ", b"rXYZ"
    exchanged = colour_of(save(tmp_path / "b.png", image, icc_profile=bytes(swapped)))
    assert exchanged == pytest.approx([50, 200, 60], abs=3)
    for name, profile in (("c.png", srgb[:200]), ("d.png", b"no profile"), ("e.png", lab.tobytes())):
        assert colour_of(save(tmp_path / name, image, icc_profile=profile)) == [200, 50, 60]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tiff"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    path = save(tmp_path / f"moving{suffix}", frames[0], save_all=True, append_images=frames[1:])
    assert colour_of(path) == pytest.approx([255, 0, 0], abs=3)


def test_a_picture_is_known_by_its_content_not_by_its_ending(tmp_path):
    assert colour_of(save(tmp_path / "photo.txt", Image.new("RGB", (8, 8), "red"), format="PNG")) == [255, 0, 0]


class TestRefusals:
    def refusal(self, path) -> str:
        with pytest.raises(ValueError) as caught:
            read_image(path)
        assert str(caught.value).startswith(f"{str(path)!r} cannot be read as a picture: ")
        return str(caught.value)

    def test_missing_files_and_folders(self, tmp_path):
        assert "No such file" in self.refusal(tmp_path / "none.png")
        assert "directory" in self.refusal(tmp_path)
        assert "null" in self.refusal("a\0.png")

    @pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
    def test_what_is_no_picture(self, tmp_path, content):
        (tmp_path / "picture.png").write_bytes(content)
        self.refusal(tmp_path / "picture.png")

    def test_postscript_which_pillow_would_run_by_ghostscript(self, tmp_path):
        path = save(tmp_path / "picture.eps", Image.new("RGB", (8, 8)))
        assert "PostScript" in self.refusal(path)

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".bmp", ".tiff"])
    def test_pictures_that_are_cut_off(self, tmp_path, suffix):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        path = save(tmp_path / f"noise{suffix}", Image.fromarray(noise))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        self.refusal(path)

    def test_more_pixels_than_memory_is_given_for(self, tmp_path, monkeypatch):
        path = tmp_path / "bomb.png"
        path.write_bytes(png(8, 2, b"", 50_000, 50_000))
        self.refusal(path)  # by Pillow's limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as other libraries set it
        assert f"more than {images.MAX_PIXELS:,} pixels" in self.refusal(path)

    @pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 70_000), ("I", -1)])
    def test_values_of_which_nothing_says_what_is_white(self, tmp_path, mode, value):
        assert "8 or 16 bits" in self.refusal(save(tmp_path / "x.tiff", Image.new(mode, (8, 8), value)))


def test_on_white_is_what_pillow_composites():
    rgba = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    image = Image.fromarray(rgba)
    wanted = np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))
    assert np.abs(on_white(rgba).astype(int) - wanted).max() <= 1
    deep = on_white(rgba.astype(np.uint16) * 257)
    assert np.abs(deep / 257 - wanted).max() <= 1


def test_reading_equals_pillow_s_own_transpose_for_a_photo(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "photo.jpg", Image.fromarray(QUADRANTS), exif=exif)
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert np.array_equal(np.asarray(read_image(path)), np.asarray(ImageOps.exif_transpose(image)))


SIDES = st.integers(1, 40)


@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_a_fitted_picture_covers_its_size_and_shows_the_centre(width, height, wide, high, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    fitted = fit_picture(Image.fromarray(pixels), wide, high)
    assert fitted.size == (wide, high) and fitted.mode == "RGB"
    plain = fit_picture(Image.new("RGB", (width, height), (10, 200, 77)), wide, high)
    assert np.array_equal(np.asarray(plain), np.broadcast_to((10, 200, 77), (high, wide, 3)))
    # Turned by half a turn before or after: the crop is in the middle
    turned = fit_picture(Image.fromarray(np.ascontiguousarray(pixels[::-1, ::-1])), wide, high)
    assert np.abs(np.asarray(turned)[::-1, ::-1].astype(int) - np.asarray(fitted)).max() <= 2


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 10), st.booleans(), st.integers(0, 2**32 - 1))
def test_what_is_cut_only_on_two_sides_keeps_its_pixels(wide, high, margin, sideways, seed):
    across, down = (margin, 0) if sideways else (0, margin)
    shape = (high + 2 * down, wide + 2 * across, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    fitted = np.asarray(fit_picture(Image.fromarray(pixels), wide, high))
    assert np.array_equal(fitted, pixels[down : down + high, across : across + wide])


@given(
    st.sampled_from(["1", "L", "LA", "RGB", "RGBA", "P", "I;16", "I", "CMYK"]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
)
def test_pixels_of_every_mode_become_exactly_what_they_stand_for(mode, width, height, seed):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    deep = np.random.default_rng(seed).integers(0, 65536, (height, width), dtype=np.uint16)
    grey, rgb = np.repeat(values[..., :1], 3, axis=2), values[..., :3]
    palette = values.reshape(-1, 4)[:, :3]
    image, wanted = {
        "1": lambda: (Image.fromarray(values[..., 0] > 127), (grey > 127) * 255),
        "L": lambda: (Image.fromarray(values[..., 0]), grey),
        "LA": lambda: (Image.fromarray(values[..., [0, 3]]), on_white(np.dstack([grey, values[..., 3]]))),
        "RGB": lambda: (Image.fromarray(rgb), rgb),
        "RGBA": lambda: (Image.fromarray(values), on_white(values)),
        "P": lambda: (indexed(palette, width, height), rgb),
        "I;16": lambda: (Image.fromarray(deep), np.repeat(np.rint(deep / 257)[..., None], 3, axis=2)),
        "I": lambda: (Image.fromarray(deep.astype(np.int32)), np.repeat(np.rint(deep / 257)[..., None], 3, axis=2)),
        "CMYK": lambda: (Image.fromarray(255 - np.dstack([rgb, np.full_like(rgb[..., :1], 255)]), "CMYK"), rgb),
    }[mode]()
    file = io.BytesIO()
    image.save(file, "TIFF")
    assert np.array_equal(np.asarray(read_image(file)), wanted)


def indexed(palette: np.ndarray, width: int, height: int) -> Image.Image:
    image = Image.fromarray(np.arange(len(palette), dtype=np.uint8).reshape(height, width))
    image = image.convert("P")
    image.putdata(range(len(palette)))
    image.putpalette(palette.flatten().tolist())
    return image


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"\0\0\0\x18ftypheic", "a HEIC picture, which Pillow does not read here: save it as JPEG"),
        (b"\0\0\0\x18ftypisom", "a video, which Pillow does not read here: give one of its frames"),
        (b"", "the file is empty"),
        (b"%PDF-1.7", "none of the kinds that Pillow reads"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path, start, what):
    (tmp_path / "x.jpg").write_bytes(start + bytes(50) * bool(start))
    with pytest.raises(ValueError, match=what):
        read_image(tmp_path / "x.jpg")
