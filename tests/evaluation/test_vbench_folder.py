"""A folder of VBench's videos: what is complete stays, and what does not belong there is named and left alone."""

import os

import numpy as np
import pytest
from PIL import Image

from vdmini_diffusers.evaluation.vbench_folder import keep_video, open_generation, unfinished_videos
from vdmini_diffusers.evaluation.vbench_videos import Prompt, wanted_videos


WANTED = wanted_videos([Prompt("a cat"), Prompt("a dog")], seed=0)


def frames(num=2, size=16):
    pixels = np.random.default_rng(num).integers(0, 256, (num, size, size, 3), dtype=np.uint8)
    return [Image.fromarray(frame) for frame in pixels]


@pytest.fixture
def videos(tmp_path):
    folder = open_generation(tmp_path / "out", {"seed": 0})
    for name in ("a cat-0.mp4", "a dog-4.mp4"):
        keep_video(folder, name, frames(), 8)
    return folder


def test_what_is_there_is_not_wanted_again_and_nothing_else_lies_in_the_folder(videos):
    missing = unfinished_videos(videos, WANTED)
    assert len(missing) == 8 and not {video.name for video in missing} & {"a cat-0.mp4", "a dog-4.mp4"}
    assert sorted(os.listdir(videos)) == ["a cat-0.mp4", "a dog-4.mp4"]
    assert sorted(os.listdir(videos.parent)) == ["generation.json", "videos"]


def test_a_video_that_cannot_be_written_leaves_nothing(videos):
    with pytest.raises(ValueError):
        keep_video(videos, "a cat-1.mp4", [*frames(), *frames(1, 32)], 8)
    assert len(os.listdir(videos)) == 2 and len(os.listdir(videos.parent)) == 2


@pytest.mark.parametrize("name", ["a bird-0.mp4", "a cat-5.mp4", "notes.txt", ".a cat-1.mp4.tmp"])
def test_a_foreign_file_is_named_and_stays(videos, name):
    (videos / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"'{name}'.*does not ask for"):
        unfinished_videos(videos, WANTED)
    assert (videos / name).exists()


@pytest.fixture
def long_videos(videos):
    """Videos whose headers are a small part of them."""
    for name in os.listdir(videos):
        keep_video(videos, name, frames(14, 32), 8)
    return videos


@pytest.mark.parametrize("kept", [0, 0.02, 0.05, 0.2, 0.6, 0.99, 0.9999])
def test_an_empty_or_cut_video_is_named_and_stays(long_videos, kept):
    whole = (long_videos / "a cat-0.mp4").read_bytes()
    (long_videos / "a cat-1.mp4").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"a cat-1\.mp4', damaged"):
        unfinished_videos(long_videos, WANTED)
    assert (long_videos / "a cat-1.mp4").exists()


def test_a_video_of_which_a_part_was_never_written_is_named(long_videos):
    whole = (long_videos / "a cat-0.mp4").read_bytes()
    half = len(whole) // 2
    for damaged in (whole[:half] + bytes(len(whole) - half), whole[:half] + bytes(4000) + whole[half + 4000 :]):
        (long_videos / "a cat-1.mp4").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a cat-1\.mp4', damaged"):
            unfinished_videos(long_videos, WANTED)


def test_a_damaged_header_is_named_whatever_is_wrong_with_it(videos):
    whole = (videos / "a cat-0.mp4").read_bytes()
    for part, damage in ((b"avc1", b"none"), (b"isomiso2", b"isom\xc5\xc5\xc5\xc5")):
        assert part in whole
        (videos / "a cat-1.mp4").write_bytes(whole.replace(part, damage))
        with pytest.raises(ValueError, match=r"a cat-1\.mp4', damaged"):
            unfinished_videos(videos, WANTED)


@pytest.mark.parametrize("wrong", [frames(3), frames(2, 32)])
def test_videos_of_unequal_length_or_size_are_named(videos, wrong):
    keep_video(videos, "a cat-1.mp4", wrong, 8)
    with pytest.raises(ValueError, match=r"differ in length or size.*a cat-1\.mp4"):
        unfinished_videos(videos, WANTED)


def test_other_settings_and_other_folders_are_refused(videos, tmp_path):
    assert open_generation(tmp_path / "out", {"seed": 0}) == videos
    with pytest.raises(ValueError, match=r"other settings \(seed 0, now 1; steps None, now 4\)"):
        open_generation(tmp_path / "out", {"seed": 1, "steps": 4})
    hashes = {"seed": 0, "pictures": {f"{i}.png": "a" for i in range(9)}}
    open_generation(tmp_path / "pictures", hashes)
    changed = {"seed": 0, "pictures": hashes["pictures"] | {f"{i}.png": "b" for i in range(2, 7)}}
    with pytest.raises(ValueError, match=r"\(pictures of '2.png', '3.png', '4.png' and 2 more\)"):
        open_generation(tmp_path / "pictures", changed)
    with pytest.raises(ValueError, match="neither empty nor"):
        open_generation(videos, {"seed": 0})
