import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vdmini_diffusers.data.video_decoding import decode_clip
from vdmini_diffusers.data.video_writing import write_video


def gradients(num_frames=6, height=48, width=64) -> np.ndarray:
    """uint8 `(frames, height, width, 3)`: smooth colours, as codecs keep them, that differ from frame to frame."""
    y, x, t = np.meshgrid(
        np.linspace(0, 1, height), np.linspace(0, 1, width), np.linspace(0, 1, num_frames), indexing="ij"
    )
    return (np.stack([x, y, t]).transpose(3, 1, 2, 0) * 255).round().astype(np.uint8)


def read(path, num_frames, height, width, fps) -> np.ndarray:
    clip = decode_clip(
        path,
        num_frames=num_frames,
        fps=fps,
        height=height,
        width=width,
        rng=np.random.default_rng(0),
        center_crop=True,
    )
    return clip.permute(0, 2, 3, 1).numpy()


FORMS = {
    "pil": lambda video: [Image.fromarray(frame) for frame in video],
    "uint8": lambda video: video,
    "float32": lambda video: video.astype(np.float32) / 255,
    "float64": lambda video: video / 255,
    "tensor": lambda video: torch.from_numpy(video).movedim(-1, 1) / 255,
    "half tensor": lambda video: (torch.from_numpy(video).movedim(-1, 1) / 255).half(),
    "uint8 tensor": lambda video: torch.from_numpy(video).movedim(-1, 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_a_pipeline_returns_reads_back(tmp_path, form):
    video = gradients()
    write_video(FORMS[form](video), tmp_path / "v.mp4", fps=7)
    assert np.abs(read(tmp_path / "v.mp4", 6, 48, 64, 7).astype(int) - video).mean() < 3
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.frames, float(stream.average_rate), stream.pix_fmt) == (6, 7.0, "yuv420p")


@pytest.mark.parametrize(("height", "width"), [(47, 63), (48, 63), (47, 64), (17, 17)])
def test_odd_sizes_lose_no_row_or_column(tmp_path, height, width):
    video = gradients(height=height, width=width)
    write_video(video, tmp_path / "v.mp4", fps=8)
    even = height + height % 2, width + width % 2
    found = read(tmp_path / "v.mp4", 6, *even, 8)[:, :height, :width]
    assert np.abs(found.astype(int) - video).mean() < 6  # of 17 pixels, all are edges


@pytest.mark.parametrize("size", [(48, 64), (720, 1280)])
def test_colours_are_the_same_at_every_size(tmp_path, size):
    write_video(np.full((3, *size, 3), (200, 40, 90), np.uint8), tmp_path / "v.mp4", fps=10)
    found = read(tmp_path / "v.mp4", 3, 32, 32, 10)
    assert np.abs(found.astype(int) - (200, 40, 90)).max() <= 4


def test_fractions_of_a_frame_per_second(tmp_path):
    write_video(gradients(), tmp_path / "v.mp4", fps=7.5)
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == 7.5


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (gradients()[None], r"one video.*\(1, 6, 48, 64, 3\)"),  # a batch
        (gradients()[0], "one video"),
        (gradients()[:0], "one video"),
        (torch.from_numpy(gradients()), r"\(frames, 3, height, width\) as a tensor; got \(6, 48, 64, 3\)"),
        ([], "PIL images"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (16, 8))], "of one size"),
        ([[Image.new("RGB", (8, 8))]], "PIL images"),
        (gradients().astype(np.int64), "int64"),
        (gradients() / 127.5 - 1, "they lie from -1 to 1"),
        (gradients().astype(float), "they lie from 0 to 255"),
        (np.full((2, 8, 8, 3), np.nan), "they lie from nan to nan"),
    ],
)
def test_what_is_no_video_is_refused_before_a_file_appears(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        write_video(frames, tmp_path / "v.mp4", fps=7)
    assert not (tmp_path / "v.mp4").exists()


def test_other_containers_and_rates_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"something\.mp4"):
        write_video(gradients(), tmp_path / "v.gif", fps=7)
    with pytest.raises(ValueError, match="`fps`"):
        write_video(gradients(), tmp_path / "v.mp4", fps=0)


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        write_video(gradients(), tmp_path / "none" / "v.mp4", fps=7)


def test_without_pyav_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"run `pip install -e '\.\[video\]'`"):
        write_video(gradients(), tmp_path / "v.mp4", fps=7)
