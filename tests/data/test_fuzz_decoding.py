"""Damaged and hostile videos and pictures: a clip or a picture, or our own error with its reason, and nothing else.

Inputs are generated from fixed seeds: truncations, flipped bits, random bytes, exchanged and repeated parts, lengths
and counts that a header claims, and contents under another ending.
"""

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image
from written_videos import write_sound, write_video

from vdmini_diffusers.data.images import read_image
from vdmini_diffusers.data.video_decoding import UnusableVideo, decode_clip


pytestmark = pytest.mark.slow

VIDEOS = {
    "h264.mp4": {"codec": "libx264"},
    "mpeg4.mov": {"codec": "mpeg4"},
    "h264.mkv": {"codec": "libx264"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg1.mpeg": {"codec": "mpeg1video", "num_frames": 60, "fps": 25},  # it has no slower rate
    "h264.ts": {"codec": "libx264"},
    "ffv1.mkv": {"codec": "ffv1", "pix_fmt": "yuva420p"},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "rotated.mp4": {"codec": "libx264", "rotation": 90},
}
PICTURES = {
    "a.png": ("RGBA", {}),
    "a.jpg": ("RGB", {}),
    "a.webp": ("RGBA", {}),
    "a.gif": ("P", {}),
    "a.bmp": ("RGB", {}),
    "a.tiff": ("CMYK", {"compression": "tiff_lzw"}),
    "a.ppm": ("RGB", {}),
    "a.tga": ("RGBA", {}),
    "a.ico": ("RGBA", {}),
    "a.jp2": ("RGB", {}),
    "a.avif": ("RGB", {}),
    "a.pcx": ("L", {}),
    "deep.png": ("I;16", {}),
}
NUM_VIDEO_INPUTS, NUM_PICTURE_INPUTS = 120, 80  # of each file


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    kind = rng.integers(7)
    if kind == 0:
        return content[: rng.integers(len(content))]
    if kind == 1:  # bits
        for at in rng.integers(len(data), size=rng.integers(1, 40)):
            data[at] ^= 1 << rng.integers(8)
    elif kind == 2:  # a run of noise
        at, length = rng.integers(len(data)), rng.integers(1, 200)
        data[at : at + length] = rng.bytes(length)
    elif kind == 3:  # numbers of 32 bits, in the headers at the start and at the end
        for _ in range(rng.integers(1, 6)):
            at = rng.integers(min(1000, len(data))) * rng.choice([1, -1])
            value = rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x00FFFFFF, 0x10000])
            data[at : at + 4 or None] = int(value).to_bytes(4, str(rng.choice(["big", "little"])))
    elif kind == 4:  # parts exchanged
        a, b, length = rng.integers(len(data)), rng.integers(len(data)), rng.integers(1, len(data))
        data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]
    elif kind == 5:  # a part removed or repeated
        at, length = rng.integers(len(data)), rng.integers(1, 300)
        part = data[at : at + length]
        data[at : at + length] = part * int(rng.choice([0, 2, 20]))
    else:  # the start, and then nothing that belongs to it
        data[rng.integers(4, len(data)) :] = rng.bytes(rng.integers(0, 3000))
    return bytes(data)


@pytest.mark.parametrize("name", VIDEOS)
def test_a_damaged_video_gives_a_clip_or_is_unusable(tmp_path, name):
    content = write_video(tmp_path / name, **{"num_frames": 12, "fps": 5, **VIDEOS[name]}).read_bytes()
    outcomes, slowest = [], 0.0
    for index in range(NUM_VIDEO_INPUTS):
        rng = np.random.default_rng((list(VIDEOS).index(name), index))
        damaged, started = damage(content, rng), time.monotonic()
        try:
            clip = decode_clip(damaged, num_frames=4, fps=4, height=24, width=32, rng=rng)
        except UnusableVideo as error:
            assert error.reason
            outcomes.append(error.reason)
        else:
            assert clip.shape == (4, 3, 24, 32) and clip.dtype == torch.uint8
            outcomes.append("clip")
        slowest = max(slowest, time.monotonic() - started)
    assert len(set(outcomes)) > 1
    assert slowest < 20


@pytest.mark.parametrize("name", PICTURES)
def test_a_damaged_picture_is_read_or_is_refused_by_name(tmp_path, name):
    mode, options = PICTURES[name]
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 4), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode if mode != "I;16" else "L").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, Image.registered_extensions()[f".{name.partition('.')[2]}"], exif=exif, **options)
    (tmp_path / name).write_bytes(file.getvalue())
    assert read_image(tmp_path / name).mode == "RGB"  # a control
    endings, outcomes, slowest = [name, "picture.jpg", "picture", "video.mp4"], set(), 0.0
    for index in range(NUM_PICTURE_INPUTS):
        rng = np.random.default_rng((100 + list(PICTURES).index(name), index))
        path, started = tmp_path / endings[index % 4], time.monotonic()
        path.write_bytes(damage(file.getvalue(), rng))
        try:
            assert read_image(path).mode == "RGB"
            outcomes.add("picture")
        except ValueError as error:
            assert str(error).startswith(f"{str(path)!r} cannot be read as a picture: ")
            outcomes.add("refused")
        slowest = max(slowest, time.monotonic() - started)
    assert "refused" in outcomes
    assert slowest < 20


@pytest.mark.parametrize("reader", ["video", "picture"])
def test_noise_and_files_of_other_kinds(tmp_path, reader):
    contents = [np.random.default_rng(seed).bytes(seed * 7) for seed in range(200)]
    contents += [bytes([value]) * 500 for value in range(256)]
    contents += [write_sound(tmp_path / "sound.mp4").read_bytes(), write_video(tmp_path / "v.mp4").read_bytes()]
    # Starts of formats that FFmpeg and Pillow know, before noise.
    starts = (
        b"\x1a\x45\xdf\xa3",
        b"RIFF____AVI LIST",
        b"\0\0\0\x18ftypmp42",
        b"GIF89a",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG",
    )
    starts += (b"OggS", b"FLV\x01", b"#EXTM3U\n", b"ffconcat version 1.0\n", b"\0\0\x01\xba", b"II*\0", b"8BPS", b"BM")
    contents += [start + np.random.default_rng(seed).bytes(2000) for start in starts for seed in range(5)]
    for index, content in enumerate(contents):
        if reader == "video":
            try:
                decode_clip(content, num_frames=1, fps=4, height=16, width=16, rng=np.random.default_rng(index))
            except UnusableVideo as error:
                assert error.reason
        else:
            (tmp_path / "file").write_bytes(content)
            try:
                read_image(tmp_path / "file")
            except ValueError as error:
                assert str(error).startswith(f"{str(tmp_path / 'file')!r} cannot be read as a picture: ")
