import contextlib
import io
import itertools
import math
import multiprocessing
import pickle
import resource
import struct
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from written_videos import indices, write_sound, write_video

from vdmini_diffusers.data import video_decoding
from vdmini_diffusers.data.video_decoding import (
    TOLERANCE,
    TimedFrame,
    UnusableVideo,
    crop_box,
    decode_clip,
    select_frames,
)


def clip_of(source, num_frames=5, fps=5, height=24, width=32, seed=0, center_crop=True):
    return decode_clip(
        source,
        num_frames=num_frames,
        fps=fps,
        height=height,
        width=width,
        rng=np.random.default_rng(seed),
        center_crop=center_crop,
    )


class TestFramesAtTheRightTimes:
    @pytest.mark.parametrize(
        ("name", "codec"),
        [
            ("v.mp4", "libx264"),
            ("v.mkv", "libx264"),
            ("v.mov", "mpeg4"),
            ("v.webm", "libvpx-vp9"),
            ("v.avi", "mpeg4"),
            ("v.mpeg", "mpeg1video"),  # starts at half a second; its duration is an estimate
            ("v.ts", "libx264"),
        ],
    )
    def test_containers(self, tmp_path, name, codec):
        quality = {"qmin": "1", "qmax": "2"} if codec.startswith("mpeg") else {}
        path = write_video(tmp_path / name, 60, 30, codec=codec, options={"g": "12", **quality})
        starts = set()
        for seed in range(8):
            found = indices(clip_of(path, num_frames=10, fps=7, seed=seed))
            assert found == [found[0] + math.floor(k * 30 / 7 + 0.06) for k in range(10)]
            starts.add(found[0])
        assert len(starts) > 4 and max(starts) - min(starts) > 5  # of 0 to 21

    @pytest.mark.parametrize("name", ["v.mp4", "v.webm"])
    def test_a_video_at_the_clip_s_rate_gives_each_frame_once(self, tmp_path, name):
        path = write_video(tmp_path / name, 20, 7, codec="libvpx-vp9" if name == "v.webm" else "libx264")
        for seed in range(20):
            found = indices(clip_of(path, num_frames=14, fps=7, seed=seed))
            assert found == list(range(found[0], found[0] + 14))

    def test_a_slower_video_repeats_its_frames(self, tmp_path):
        path = write_video(tmp_path / "v.mp4", 10, 5)
        found = indices(clip_of(path, num_frames=6, fps=10))
        assert sorted(set(found)) == list(range(found[0], found[-1] + 1))
        assert np.diff(found).tolist() in ([0, 1, 0, 1, 0], [1, 0, 1, 0, 1])

    def test_variable_frame_rate_and_late_start(self, tmp_path):
        # A still picture for two seconds, then 20 frames a second.
        times = [5.0, *(7 + k / 20 for k in range(30))]
        path = write_video(tmp_path / "v.mkv", times=times, codec="ffv1")
        for seed in range(12):
            found = indices(clip_of(path, num_frames=11, fps=5, seed=seed))
            moments = [k for k in range(11) if found[k] > 0]
            assert moments and found[: moments[0]] == [0] * moments[0]
            assert np.diff(found[moments[0] :]).tolist() == [4] * (len(moments) - 1)

    def test_seeks(self, tmp_path, monkeypatch):
        path = write_video(tmp_path / "v.mp4", 60, 10, options={"g": "5"})
        decoded = []
        timed = video_decoding._timed

        def counting(frames, stream):
            for frame in timed(frames, stream):
                decoded.append(frame.start)
                yield frame

        monkeypatch.setattr(video_decoding, "_timed", counting)
        for seed in range(10):
            decoded.clear()
            (found,) = indices(clip_of(path, num_frames=1, seed=seed))
            assert decoded[0] <= found / 10 + TOLERANCE and len(decoded) <= 7

    def test_the_whole_video_is_used_when_it_is_just_long_enough(self, tmp_path):
        path = write_video(tmp_path / "v.mp4", 14, 7)
        for seed in range(4):
            assert indices(clip_of(path, num_frames=14, fps=7, seed=seed)) == list(range(14))

    def test_one_frame_clips(self, tmp_path):
        path = write_video(tmp_path / "v.mp4", 1, 7)
        assert clip_of(path, num_frames=1).shape == (1, 3, 24, 32)

    @given(
        gaps=st.lists(st.integers(1, 30), min_size=1, max_size=40),
        start=st.floats(0, 1),
        fps=st.integers(1, 30),
        num_frames=st.integers(1, 20),
    )
    def test_selection(self, gaps, start, fps, num_frames):
        starts = np.cumsum([0, *gaps]) / 20
        frames = [TimedFrame(*span, i) for i, span in enumerate(itertools.pairwise(starts))]
        start = start * starts[-1]
        length = (num_frames - 1) / fps
        read = []
        try:
            chosen = list(select_frames((read.append(f) or f for f in frames), start, fps, num_frames))
        except UnusableVideo:
            assert start + length >= starts[-1] - 2 * TOLERANCE
            return
        first = chosen[0].start
        start = first if start - first < 1 / fps else start
        moments = start + np.arange(num_frames) / fps
        for frame, moment in zip(chosen, moments, strict=True):
            assert frame.start <= moment + TOLERANCE + 1e-9 and moment < frame.end + TOLERANCE
        assert len(read) <= chosen[-1].frame + 2


class TestPicture:
    def test_shape_and_type(self, tmp_path):
        clip = clip_of(write_video(tmp_path / "v.mp4"), height=40, width=20)
        assert clip.shape == (5, 3, 40, 20) and clip.dtype == torch.uint8

    @pytest.mark.parametrize(
        ("codec", "pix_fmt", "size"),
        [
            ("ffv1", "gray", (48, 64)),
            ("ffv1", "yuv420p10le", (48, 64)),
            ("ffv1", "gbrp12le", (48, 64)),
            ("ffv1", "bgra", (48, 64)),
            ("ffv1", "yuv420p", (33, 17)),
            ("ffv1", "yuv444p", (17, 101)),
            ("libx264", "yuv420p10le", (50, 34)),
            ("mjpeg", "yuvj420p", (48, 64)),
        ],
    )
    def test_pixel_formats_and_odd_sizes(self, tmp_path, codec, pix_fmt, size):
        path = write_video(tmp_path / "v.mkv", codec=codec, pix_fmt=pix_fmt, size=size)
        found = indices(clip_of(path))
        assert found == [found[0] + 2 * k for k in range(5)]

    def test_centre_crop_keeps_the_middle(self, tmp_path):
        picture = np.zeros((32, 96, 3), np.uint8)
        picture[:, :32, 0] = picture[:, 32:64, 1] = picture[:, 64:, 2] = 255
        path = write_video(tmp_path / "v.mkv", codec="ffv1", pix_fmt="bgra", pictures=np.stack([picture] * 30))
        assert clip_of(path, height=16, width=16).float().mean(dim=(0, 2, 3)).tolist() == [0, 255, 0]

    def test_random_crop_lies_anywhere_and_is_the_same_in_all_frames(self, tmp_path):
        picture = np.broadcast_to(np.arange(0, 192, 2, dtype=np.uint8)[None, :, None], (32, 96, 3))
        path = write_video(tmp_path / "v.mkv", codec="ffv1", pix_fmt="bgra", pictures=np.stack([picture] * 30))
        means = []
        for seed in range(12):
            clip = clip_of(path, height=32, width=32, seed=seed, center_crop=False).float()
            assert clip.std(dim=0).max() == 0
            means.append(clip.mean().item())
        assert min(means) < 55 and max(means) > 135  # of 31 to 159

    def test_resizing_is_antialiased(self, tmp_path):
        stripes = np.zeros((64, 64, 3), np.uint8)
        stripes[:, ::2] = 255
        path = write_video(tmp_path / "v.mkv", codec="ffv1", pix_fmt="bgra", pictures=np.stack([stripes] * 30))
        clip = clip_of(path, height=16, width=16).float()
        assert (clip - 127.5).abs().max() < 20

    @pytest.mark.parametrize("rotation", [90, 180, -90])
    def test_rotated_as_phones_do(self, tmp_path, rotation):
        picture = np.zeros((32, 64, 3), np.uint8)
        picture[:16, :32] = 255  # top left
        path = write_video(tmp_path / "v.mp4", pictures=np.stack([picture] * 30), rotation=rotation)
        height, width = (32, 64) if rotation == 180 else (64, 32)
        clip = clip_of(path, height=height, width=width).float()
        expected = np.rot90(picture, rotation // 90).astype(np.float32)  # rotation is counterclockwise
        assert np.abs(clip[0].permute(1, 2, 0).numpy() - expected).mean() < 6

    def test_pixels_that_are_not_square(self, tmp_path):
        picture = np.zeros((32, 64, 3), np.uint8)
        picture[:, 16:48] = 255  # 64 of 128 across as shown
        path = write_video(tmp_path / "v.mp4", pictures=np.stack([picture] * 30), pixel_aspect=Fraction(2, 1))
        clip = clip_of(path, height=32, width=64).float()
        assert clip.mean() > 250

    @given(
        height=st.integers(16, 8192),
        width=st.integers(16, 8192),
        aspect=st.floats(0.1, 10),
        down=st.floats(0, 1),
        across=st.floats(0, 1),
    )
    def test_crop_box(self, height, width, aspect, down, across):
        box = crop_box(height, width, aspect, down, across)
        assert box.top >= 0 and box.left >= 0 and min(box.height, box.width) >= 1
        assert box.top + box.height <= height and box.left + box.width <= width
        assert box.height == height or box.width == width
        # The other side is the nearest whole number.
        assert abs(box.width - box.height * aspect) <= 0.5 + 1e-6 or abs(box.height - box.width / aspect) <= 0.5 + 1e-6


RED_GREEN_BLUE_WHITE = np.zeros((64, 64, 3), np.uint8)
RED_GREEN_BLUE_WHITE[:32, :32, 0] = RED_GREEN_BLUE_WHITE[:32, 32:, 1] = RED_GREEN_BLUE_WHITE[32:, :32, 2] = 255
RED_GREEN_BLUE_WHITE[32:, 32:] = 255


class TestDisplayMatrix:
    """A point (x, y) of the stored picture is shown at (a x + c y, b x + d y), moved back into view."""

    @pytest.mark.parametrize(
        ("a", "b", "c", "d"),
        [
            *[(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)],  # turned, clockwise
            *[(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)],  # mirrored, as front cameras write
            (0, 0, 0, 0),  # nonsense: taken for the identity
            (2, 0, 0, 3),  # enlarged: only the orientation counts
        ],
    )
    def test_all_eight_orientations_are_shown_as_a_player_shows_them(self, tmp_path, a, b, c, d):
        path = write_video(tmp_path / "v.mp4", pictures=np.stack([RED_GREEN_BLUE_WHITE] * 12), options={"qp": "5"})
        content = path.read_bytes()
        at = content.find(b"tkhd") + 44  # the matrix of the track header, version 0
        matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
        clip = clip_of(content[:at] + struct.pack(">9i", *matrix) + content[at + 36 :], num_frames=2, fps=10)
        shown = np.zeros_like(RED_GREEN_BLUE_WHITE)
        a, b, c, d = np.sign([a, b, c, d]) if any((a, b, c, d)) else (1, 0, 0, 1)
        for y, x in itertools.product(range(64), repeat=2):
            to_x, to_y = a * x + c * y, b * x + d * y
            shown[to_y % 64 if b + d > 0 else to_y + 63, to_x % 64 if a + c > 0 else to_x + 63] = RED_GREEN_BLUE_WHITE[
                y, x
            ]
        wanted = torch.from_numpy(shown[8:56].copy()).permute(2, 0, 1).float()  # of aspect 4 : 3
        wanted = torch.nn.functional.interpolate(wanted[None], (24, 32), mode="area")[0]
        assert (clip[0].float() - wanted).abs().mean() < 12

    def test_a_photo_s_exif_orientation_which_pyav_does_not_know_turns_its_frame(self):
        exif, file = Image.Exif(), io.BytesIO()
        exif[0x0112] = 6  # turn clockwise to show
        Image.fromarray(np.rot90(RED_GREEN_BLUE_WHITE)).save(file, "JPEG", exif=exif, quality=95)
        clip = clip_of(file.getvalue(), num_frames=1, height=32, width=32)[0].float()
        corners = [clip[:, y, x] > 128 for y, x in ((4, 4), (4, 28), (28, 4), (28, 28))]
        assert [corner.tolist() for corner in corners] == [
            [True, False, False],
            [False, True, False],
            [False, False, True],
            [True, True, True],
        ]


def write_plain(path, values, pix_fmt="yuv444p", size=(32, 32), **tags) -> Path:
    """A video of one colour, with these values in its planes and these tags on its frames; nothing is lost."""
    frame = av.VideoFrame(size[1], size[0], pix_fmt)
    deep = any(component.bits > 8 for component in frame.format.components)
    for plane, value in zip(frame.planes, values, strict=True):
        plane.update(np.full(plane.buffer_size // (1 + deep), value, np.uint16 if deep else np.uint8).tobytes())
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
            if name.startswith("color_r") or name == "colorspace":  # older versions of PyAV have no others on frames
                setattr(frame, name, value)
        for index in range(3):
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def colour_of(path) -> list[float]:
    clip = clip_of(path, num_frames=2, fps=10, height=16, width=16).float()
    assert clip.std(dim=(0, 2, 3)).max() == 0
    return clip.mean(dim=(0, 2, 3)).tolist()


def rgb_by_hand(y, cb, cr, kr, kb, full, bits=8):
    """ITU-T H.273, equations 20 to 60, backwards; 0 to 255."""
    unit = 2 ** (bits - 8)
    offset, luma, chroma = (0, 256 * unit - 1, 256 * unit - 1) if full else (16 * unit, 219 * unit, 224 * unit)
    y, cb, cr = (y - offset) / luma, (cb - 128 * unit) / chroma, (cr - 128 * unit) / chroma
    r, b = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    return (np.clip([r, (y - kr * r - kb * b) / (1 - kr - kb), b], 0, 1) * 255).tolist()


BT_601, BT_709, BT_2020 = (0.299, 0.114), (0.2126, 0.0722), (0.2627, 0.0593)
MPEG, JPEG = 1, 2  # limited and full range


class TestColours:
    @pytest.mark.parametrize("color_range", [0, MPEG, JPEG])
    @pytest.mark.parametrize(
        ("colorspace", "weights"),
        [(1, BT_709), (5, BT_601), (6, BT_601), (7, (0.212, 0.087)), (9, BT_2020), (4, (0.3, 0.11))],
    )
    def test_the_matrix_and_the_range_that_a_video_names_are_used(self, tmp_path, colorspace, weights, color_range):
        path = write_plain(tmp_path / "v.mkv", (120, 90, 180), colorspace=colorspace, color_range=color_range)
        wanted = rgb_by_hand(120, 90, 180, *weights, full=color_range == JPEG)
        assert colour_of(path) == pytest.approx(wanted, abs=1.5)

    @pytest.mark.parametrize(
        ("size", "weights"),
        [((480, 854), BT_601), ((576, 720), BT_601), ((720, 1280), BT_709), ((1080, 608), BT_709)],
    )
    def test_a_video_that_names_none_is_bt_709_if_it_is_of_high_definition(self, tmp_path, size, weights):
        path = write_plain(tmp_path / "v.mkv", (120, 90, 180), size=size)
        assert colour_of(path) == pytest.approx(rgb_by_hand(120, 90, 180, *weights, full=False), abs=1.5)

    def test_10_and_16_bits_are_scaled_not_clipped(self, tmp_path):
        ten = write_plain(tmp_path / "10.mkv", (480, 360, 720), "yuv444p10le", colorspace=1)
        assert colour_of(ten) == pytest.approx(rgb_by_hand(480, 360, 720, *BT_709, full=False, bits=10), abs=1.5)
        sixteen = write_plain(tmp_path / "16.mkv", (100 * 257,), "gray16le", color_range=JPEG)
        assert colour_of(sixteen) == pytest.approx([100, 100, 100], abs=1.5)

    @pytest.mark.parametrize(
        ("tags", "detail"),
        [
            ({"colorspace": 8}, "matrix coefficients 8"),  # YCgCo
            ({"colorspace": 14}, "matrix coefficients 14"),  # ICtCp
            ({"color_trc": 8}, "linear transfer"),
            ({"color_trc": 10}, "logarithmic transfer"),
        ],
    )
    def test_colours_that_cannot_be_shown_are_refused_by_name(self, tmp_path, tags, detail):
        with pytest.raises(UnusableVideo, match=f"unsupported colours: .*{detail}"):
            colour_of(write_plain(tmp_path / "v.mkv", (120, 90, 180), **tags))

    @pytest.mark.parametrize(
        ("pix_fmt", "values", "wanted"),
        [
            ("yuva444p", (81, 90, 240, 255), [255, 0, 0]),  # BT.601's red, opaque
            ("yuva444p", (81, 90, 240, 0), [255, 255, 255]),
            ("yuva444p", (81, 90, 240, 51), [255, 204, 204]),  # a fifth of red
            ("gbrap12le", (0, 0, 4095, 819), [255, 204, 204]),
            ("gbrap16le", (0, 0, 65535, 13107), [255, 204, 204]),
        ],
    )
    def test_transparent_parts_are_shown_on_white(self, tmp_path, pix_fmt, values, wanted):
        assert colour_of(write_plain(tmp_path / "v.mkv", values, pix_fmt)) == pytest.approx(wanted, abs=2)

    def test_of_interlaced_frames_the_upper_field_is_shown(self, tmp_path):
        picture = np.full((64, 64, 3), 200, np.uint8)
        picture[1::2] = 40  # the other moment
        options = {"x264-params": "interlaced=1:tff=1", "qp": "1"}
        path = write_video(tmp_path / "v.mp4", pictures=np.stack([picture] * 12), options=options)
        assert (clip_of(path, num_frames=2, fps=10).float() - 200).abs().max() < 4
        still = write_video(tmp_path / "w.mp4", pictures=np.stack([picture] * 12), options={"qp": "1"})
        assert (clip_of(still, num_frames=2, fps=10).float().mean() - 120).abs() < 4  # a control: both fields


PQ, HLG = 16, 18


class TestHighDynamicRange:
    """Light in cd/m2 by SMPTE ST 2084's and ARIB STD-B67's own formulas, shown by BT.1886's power of 2.4."""

    def grey(self, tmp_path, code, transfer):
        """What a full-range 10-bit code, 0 to 1, is shown as."""
        values = (round(code * 1023), 512, 512)
        tags = {"colorspace": 9, "color_primaries": 9, "color_trc": transfer, "color_range": JPEG}
        r, g, b = colour_of(write_plain(tmp_path / "v.mkv", values, "yuv444p10le", **tags))
        assert r == pytest.approx(g, abs=1) and g == pytest.approx(b, abs=1)  # grey stays grey
        return g

    # Codes of BT.2408, table 1, and of ST 2084 at 10, 50 and 10,000 cd/m2.
    @pytest.mark.parametrize(
        ("code", "light"), [(0.0, 0), (0.3015, 10), (0.4403, 50), (0.5807, 203), (0.7518, 1000), (1.0, 10_000)]
    )
    def test_pq(self, tmp_path, code, light):
        assert self.grey(tmp_path, code, PQ) == pytest.approx(self.wanted(light), abs=2)

    # 0.75 is a white page of 203 cd/m2 (BT.2408); the others by (code^2 / 3)^1.2 * 1000 and the like.
    @pytest.mark.parametrize(("code", "light"), [(0.0, 0), (0.25, 9.88), (0.5, 50.7), (0.75, 203), (1.0, 1000)])
    def test_hlg(self, tmp_path, code, light):
        assert self.grey(tmp_path, code, HLG) == pytest.approx(self.wanted(light), abs=2)

    @staticmethod
    def wanted(light):
        if light == 203:
            return 230  # by BT.2390's spline: 0.5552 of PQ, 158 cd/m2
        return 255 * min(1, light / 203) ** (1 / 2.4)  # below the knee, and from 1,000 on

    def test_without_tone_mapping_it_would_look_grey(self, tmp_path):
        # A control: PQ's 203 cd/m2, taken for a code of standard range.
        path = write_plain(tmp_path / "v.mkv", (594, 512, 512), "yuv444p10le", colorspace=9, color_range=JPEG)
        assert max(colour_of(path)) < 150

    def test_wide_gamuts_become_bt_709(self, tmp_path):
        # BT.709's red, 0.5 of its light, in the primaries of BT.2020 (BT.2087: 0.6274, 0.0691, 0.0164) and display P3.
        for primaries, part in ((9, (0.6274, 0.0691, 0.0164)), (12, (0.8225, 0.0332, 0.0171))):
            r, g, b = (round(1023 * (0.5 * light) ** (1 / 2.4)) for light in part)
            path = write_plain(tmp_path / "v.mkv", (g, b, r), "gbrp10le", color_primaries=primaries)
            assert colour_of(path) == pytest.approx([255 * 0.5 ** (1 / 2.4), 0, 0], abs=6)
            white = write_plain(tmp_path / "w.mkv", (1023, 1023, 1023), "gbrp10le", color_primaries=primaries)
            assert colour_of(white) == pytest.approx([255, 255, 255], abs=1)


class TestUnusable:
    def refusal(self, source, **options):
        with pytest.raises(UnusableVideo) as caught:
            clip_of(source, **options)
        assert str(caught.value).startswith(caught.value.reason)
        return caught.value.reason

    def test_bytes_and_paths_are_alike(self, tmp_path):
        path = write_video(tmp_path / "v.mp4")
        assert torch.equal(clip_of(path), clip_of(path.read_bytes()))
        assert torch.equal(clip_of(path), clip_of(str(path)))

    @pytest.mark.parametrize("content", [b"", b"\0" * 10_000, b"no video at all\n" * 100, b"\x1a\x45\xdf\xa3"])
    def test_no_video_file(self, tmp_path, content):
        (tmp_path / "v.mp4").write_bytes(content)
        assert self.refusal(tmp_path / "v.mp4") == self.refusal(content) == "broken"

    def test_missing_and_unreadable_files(self, tmp_path):
        assert self.refusal(tmp_path / "v.mp4") == "file missing"
        assert self.refusal(tmp_path) == "file not readable"

    def test_sound_only(self, tmp_path):
        assert self.refusal(write_sound(tmp_path / "v.mp4")) == "no video stream"

    def test_too_short(self, tmp_path):
        assert self.refusal(write_video(tmp_path / "one.mp4", 1)) == "too short"
        assert self.refusal(write_video(tmp_path / "v.mkv", 13, 7), num_frames=14, fps=7) == "too short"

    @pytest.mark.parametrize("size", [(8, 64), (16, 8200)])
    def test_absurd_sizes(self, tmp_path, size):
        path = write_video(tmp_path / "v.mkv", 2, codec="ffv1", size=size)
        assert self.refusal(path, num_frames=1) == "absurd size"

    def test_truncated(self, tmp_path):
        content = write_video(tmp_path / "v.mp4").read_bytes()
        assert self.refusal(content[: len(content) // 2]) == "broken"  # the index, at the end, is lost
        noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
        path = write_video(tmp_path / "w.mp4", pictures=noise, container_options={"movflags": "faststart"})
        content = path.read_bytes()
        assert self.refusal(content[: len(content) // 3], seed=1) in ("truncated", "broken")

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("list.mp4", "ffconcat version 1.0\nfile v.mp4\n"),
            ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nv.mp4\n#EXT-X-ENDLIST\n"),
        ],
    )
    def test_playlists_do_not_open_other_files(self, tmp_path, name, text):
        write_video(tmp_path / "v.mp4")
        (tmp_path / name).write_text(text)
        with av.open(str(tmp_path / name)) as container:  # a control: FFmpeg would
            assert len(list(container.decode(video=0))) == 30
        assert self.refusal(tmp_path / name) == "broken"

    def test_frames_are_decoded_up_to_a_limit_and_packets_are_counted_up_to_one(self, tmp_path, monkeypatch):
        path = write_video(tmp_path / "v.mkv", 30, 10, options={"g": "30"})
        monkeypatch.setattr(video_decoding, "MAX_DECODED_PIXELS", 10 * (48 * 64 + video_decoding.PIXELS_PER_PACKET))
        assert self.refusal(path, fps=2) == "too costly"
        monkeypatch.setattr(video_decoding, "MAX_PACKETS", 29)
        assert self.refusal(path) == "absurd length"

    def test_headers_that_claim_hours_cost_no_time(self, tmp_path):
        content = write_video(tmp_path / "v.mp4", codec="mpeg4").read_bytes()
        for box, offset, value in ((b"mdhd", 16, 2**32 - 2), (b"mdhd", 12, 0), (b"stts", 8, 2**31 - 1)):
            claimed, at = bytearray(content), content.find(box) + 4 + offset
            struct.pack_into(">I", claimed, at, value)
            started = time.monotonic()
            with contextlib.suppress(UnusableVideo):
                clip_of(bytes(claimed))
            assert time.monotonic() - started < 5

    def test_larger_frames_than_the_container_says_are_refused_before_they_take_memory(self):
        file = io.BytesIO()
        Image.new("L", (8193, 8192)).save(file, "JPEG")
        assert self.refusal(file.getvalue(), num_frames=1) in ("broken", "absurd size")

    def test_a_name_with_a_nul_byte_is_that_of_no_file(self):
        assert self.refusal("a\0.mp4") == "file missing"

    def test_survives_pickling(self):
        error = pickle.loads(pickle.dumps(UnusableVideo("too short", "1.00 s")))
        assert (error.reason, error.detail, str(error)) == ("too short", "1.00 s", "too short: 1.00 s")


@pytest.fixture(scope="module", params=["v.mp4", "v.mkv"])
def content(request, tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / request.param, 12, 5).read_bytes()


@settings(max_examples=120)
@given(data=st.data())
def test_damaged_files_give_a_clip_or_are_unusable(content, data):
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        clip = clip_of(bytes(damaged))
    except UnusableVideo:
        return
    assert clip.shape == (5, 3, 24, 32)


@pytest.mark.slow
def test_memory_depends_on_the_size_of_a_frame_not_on_the_length_of_the_clip(tmp_path):
    picture = np.full((2048, 2048, 3), 90, np.uint8)
    options = {"preset": "ultrafast", "tune": "zerolatency"}
    path = write_video(tmp_path / "v.mp4", pictures=np.broadcast_to(picture, (64, *picture.shape)), options=options)

    def grown_by(num_frames, answer):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        clip_of(path, num_frames=num_frames, fps=10)
        answer.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)  # MiB

    found = []
    for num_frames in (8, 64):
        fork = multiprocessing.get_context("fork")
        answer = fork.Queue()
        process = fork.Process(target=grown_by, args=(num_frames, answer))
        process.start()
        found.append(answer.get(timeout=120))
        process.join()
    # A frame takes 6 MiB as it is decoded, and 12 MiB as RGB: 56 more of them would take 336 MiB at least.
    assert found[1] < found[0] + 40 and found[0] < 250


def test_the_same_generator_gives_the_same_clip(tmp_path):
    path = write_video(tmp_path / "v.mp4")
    assert torch.equal(*(clip_of(path, seed=3, center_crop=False) for _ in range(2)))
    assert len({tuple(indices(clip_of(path, seed=seed))) for seed in range(6)}) > 2


def test_a_file_object_is_closed(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(video_decoding, "_open", lambda source: opened.append(io.BytesIO(source)) or opened[-1])
    with pytest.raises(UnusableVideo):
        clip_of(b"no video")
    assert opened[0].closed


def test_a_frame_that_was_converted_can_be_freed_in_a_forked_process(tmp_path, monkeypatch):
    # As by a DataLoader worker, where a cycle has kept the frame alive.
    frames, convert = [], video_decoding._to_array
    monkeypatch.setattr(
        video_decoding, "_to_array", lambda frame, *args: (frames.append(frame), convert(frame, *args))[1]
    )
    clip_of(write_video(tmp_path / "v.mp4", 20, 5, size=(480, 640)), height=480, width=640)
    assert frames
    process = multiprocessing.get_context("fork").Process(target=frames.clear)
    process.start()
    process.join(20)
    hangs = process.is_alive()
    process.kill()
    assert not hangs and process.exitcode == 0
