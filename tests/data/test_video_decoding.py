import io
import itertools
import math
import pickle
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
