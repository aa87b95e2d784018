"""What is written is what players, browsers and the next call expect."""

import av
import numpy as np
import pytest
from forked_scripts import start
from PIL import Image

from vdmini_diffusers.generation import clip_files
from vdmini_diffusers.generation.clip_files import check_writable, frame_sheet, read_record, write_clip


RECORD = {"seed": 7, "prompt": '\u00e4 d\u00f6g, "quoted" = ;#\\ ', "steps": 4}


def clip(num_frames=5, height=18, width=24) -> np.ndarray:
    """Frame i has the grey 40 i."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    return frames + (40 * np.arange(num_frames, dtype=np.uint8))[:, None, None, None]


@pytest.mark.parametrize("ending", [".mp4", ".gif", ".png"])
def test_a_clip_says_what_it_was_made_with(tmp_path, ending):
    write_clip(clip(), tmp_path / f"x{ending}", 7, RECORD)
    assert read_record(tmp_path / f"x{ending}") == RECORD
    assert [path.name for path in tmp_path.iterdir()] == [f"x{ending}"]


@pytest.mark.parametrize("fps", [7, 12.5, 24])
def test_an_mp4_plays_in_a_browser(tmp_path, fps):
    write_clip(clip(height=17, width=23), tmp_path / "x.mp4", fps, RECORD)
    with av.open(str(tmp_path / "x.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.frames, stream.height, stream.width, float(stream.average_rate)) == (5, 18, 24, fps)
    content = (tmp_path / "x.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")  # the index first: it starts before it is there


def test_a_gif_loops_with_the_nearest_rate(tmp_path):
    write_clip(clip(), tmp_path / "x.gif", 7, RECORD)
    with Image.open(tmp_path / "x.gif") as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (5, 140, 0)
        for i in range(5):
            gif.seek(i)
            assert np.asarray(gif.convert("RGB")).mean() == 40 * i


def test_a_sheet_has_all_frames_in_reading_order():
    sheet = frame_sheet(clip())
    rows, columns = sheet.shape[0] // 18, sheet.shape[1] // 24
    assert (rows, columns) == (3, 2)
    cells = [sheet[18 * (i // 2) : 18 * (i // 2 + 1), 24 * (i % 2) : 24 * (i % 2 + 1)] for i in range(6)]
    assert [set(cell.flat) for cell in cells] == [{0}, {40}, {80}, {120}, {160}, {255}]


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n"])
@pytest.mark.parametrize("ending", [".mp4", ".gif", ".png"])
def test_a_file_that_is_no_clip_says_nothing(tmp_path, ending, content):
    (tmp_path / f"x{ending}").write_bytes(content)
    assert read_record(tmp_path / f"x{ending}") is None


@pytest.mark.parametrize("ending", [".mp4", ".gif", ".png"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.98])
def test_a_clip_that_is_cut_off_says_nothing(tmp_path, ending, kept):
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    file = tmp_path / f"x{ending}"
    write_clip(noise, file, 7, RECORD)
    whole = file.read_bytes()
    assert read_record(file) == RECORD
    file.write_bytes(whole[: int(kept * len(whole))])
    assert read_record(file) is None


def test_a_failure_leaves_nothing_and_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "x.mp4").write_bytes(b"earlier")

    def fail(*_):
        raise ValueError("stop")

    monkeypatch.setattr(clip_files, "_check_video", fail)
    with pytest.raises(ValueError, match="stop"):
        write_clip(clip(), tmp_path / "x.mp4", 7, RECORD)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.mp4", b"earlier")]


def test_a_video_of_another_length_is_noticed(tmp_path):
    write_clip(clip(), tmp_path / "x.mp4", 7, RECORD)
    with pytest.raises(ValueError, match="reads back as"):
        clip_files._check_video(tmp_path / "x.mp4", clip(num_frames=4), 7)
    with pytest.raises(ValueError, match="reads back as"):
        clip_files._check_video(tmp_path / "x.mp4", clip(), 8)


def test_a_place_where_nothing_can_be_written_is_found_before(tmp_path):
    check_writable(tmp_path / "new" / "er" / "x.mp4")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        check_writable(tmp_path / "file" / "x.mp4")


def test_a_place_that_is_a_file_is_named_and_no_temporary_file(tmp_path):
    (tmp_path / "photo.jpg").write_text("x")
    with pytest.raises(OSError, match="no file can be made there") as caught:
        check_writable(tmp_path / "photo.jpg" / "clip.mp4")
    assert caught.value.filename == str(tmp_path / "photo.jpg")


def test_a_name_that_is_too_long_is_found_before_and_the_longest_is_written(tmp_path):
    with pytest.raises(OSError, match="too long"):
        check_writable(tmp_path / (90 * "\u96ea" + ".gif"))
    longest = tmp_path / (83 * "\u96ea" + ".gif")  # 253 bytes of 255
    check_writable(longest)
    write_clip(clip(), longest, 7, RECORD)
    assert read_record(longest) == RECORD


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from vdmini_diffusers.generation.clip_files import write_clip

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # writing more fails, as on a full disk
noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
for ending in (".mp4", ".gif", ".png"):
    try:
        write_clip(noise, Path(sys.argv[1]) / f"x{ending}", 7, {})
    except OSError as error:
        print(ending)
"""


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    script, log, clips = tmp_path / "fill.py", tmp_path / "log", tmp_path / "clips"
    script.write_text(FULL_DISK)
    clips.mkdir()
    process = start([script, clips], log=log)
    process.join()
    assert process.exitcode == 0 and log.read_text().split() == [".mp4", ".gif", ".png"]
    assert list(clips.iterdir()) == []
