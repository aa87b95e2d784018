"""Which clips are asked for, under which names and seeds, and which of them are there."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vdmini_diffusers.generation.clip_files import read_record, write_clip
from vdmini_diffusers.generation.jobs import derived_seed, refuse_existing, request_of, short_name, unfinished


SETTINGS = {"model": "m", "num_frames": None}


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for name in ("b.png", "a.jpg", "a.png", "deeper/c.webp", "notes.txt", ".hidden.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name, format="PNG")
    return folder


def make(job, **settings):
    write_clip(np.zeros((2, 16, 16, 3), np.uint8), job.output, 7, job.record({**SETTINGS, **settings}))


def test_a_picture_or_prompt_makes_one_file_from_the_seed_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save("photo.jpg")
    (job,) = request_of(Path("photo.jpg"), "a dog", None, 5).jobs
    assert (job.output, job.seed, job.prompt) == (Path("photo.mp4"), 5, "a dog")
    request = request_of(None, "A dog, running!", None, 5)
    assert request.jobs[0].output == Path("a-dog-running.mp4") and request.folder is None


def test_a_folder_of_pictures_becomes_a_folder_of_clips_of_the_same_names(pictures, tmp_path):
    request = request_of(pictures, None, tmp_path / "clips", 5)
    outputs = {job.output.relative_to(tmp_path / "clips").as_posix(): job for job in request.jobs}
    assert list(outputs) == ["a_jpg.mp4", "a_png.mp4", "b.mp4", "deeper/c.mp4"]
    assert outputs["b.mp4"].seed == derived_seed(5, "b.png") and outputs["b.mp4"].image == pictures / "b.png"


def test_a_file_of_prompts_has_a_clip_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_bytes("\ufeffA dog\r\n\n  \u00c4pfel \n".encode())
    request = request_of(None, "p.txt", None, 0)
    assert [job.prompt for job in request.jobs] == ["A dog", "\u00c4pfel"]
    assert [str(job.output) for job in request.jobs] == ["p_clips/0001-a-dog.mp4", "p_clips/0002-\u00e4pfel.mp4"]


def test_a_derived_seed_depends_on_the_seed_and_the_name_alone():
    assert derived_seed(0, "b.png") == 3213081613
    seeds = {derived_seed(seed, name) for seed in range(9) for name in ("a", "b", "c")}
    assert len(seeds) == 27 and all(0 <= seed < 2**32 for seed in seeds)


def test_a_clip_that_is_there_is_refused_before_anything_is_loaded(pictures, tmp_path):
    request = request_of(pictures / "a.png", None, tmp_path / "clip.gif", 0)
    refuse_existing(request, overwrite=False)
    (tmp_path / "clip.gif").touch()
    refuse_existing(request, overwrite=True)
    with pytest.raises(FileExistsError, match=r"clip\.gif exists"):
        refuse_existing(request, overwrite=False)


def test_names_of_prompts_are_short_and_safe():
    assert short_name("../x/Y") == "x-y" and short_name("!?") == "clip" and len(short_name("word " * 99)) <= 60


def test_finished_clips_of_a_folder_stay_and_others_are_made(pictures, tmp_path):
    request = request_of(pictures, None, tmp_path / "clips", 5)
    make(request.jobs[1], steps=4)  # `steps` is what the scheduler made of the settings
    assert unfinished(request, SETTINGS, False) == [request.jobs[0], *request.jobs[2:]]
    assert unfinished(request, SETTINGS, True) == request.jobs
    with pytest.raises(FileExistsError, match="was made with num_frames None, now 8"):
        unfinished(request, {**SETTINGS, "num_frames": 8}, False)
    with pytest.raises(FileExistsError, match="was made with seed"):
        unfinished(request_of(pictures, None, tmp_path / "clips", 6), SETTINGS, False)


def test_a_file_of_another_origin_is_never_replaced_unasked(pictures, tmp_path):
    request = request_of(pictures, None, tmp_path / "clips", 5)
    request.jobs[0].output.parent.mkdir()
    request.jobs[0].output.write_bytes(b"cut off")
    with pytest.raises(FileExistsError, match="no finished clip of this command"):
        unfinished(request, SETTINGS, False)
    alone = request_of(pictures / "b.png", None, tmp_path / "one.mp4", 5)
    make(alone.jobs[0])
    with pytest.raises(FileExistsError, match="--overwrite"):
        unfinished(alone, SETTINGS, False)


@pytest.mark.parametrize(
    ("image", "prompt", "out", "message"),
    [
        (None, None, None, "Give a picture"),
        (None, " ", None, "prompt is empty"),
        (None, "none.txt", None, "There is no file none.txt"),
        (None, "empty.txt", None, "holds no prompt"),
        (None, "latin.txt", None, "not UTF-8"),
        ("none.png", None, None, "There is no picture none.png"),
        ("pictures/b.png", None, "x.avi", "should end in .mp4, .gif"),
        ("pictures/b.png", None, "pictures", "is a folder"),
        ("pictures/b.png", None, "pictures/b.png", "the picture itself"),
        ("pictures/b.png", "latin.txt", None, "UTF-8"),
        ("pictures", None, "pictures/clips", "`--out` pictures/clips lies in the pictures"),
        ("pictures", None, "empty.txt", "is a file"),
        ("pictures", None, "clip.mp4", "file's name"),
        ("pictures/empty", None, None, "There is no picture in"),
    ],
)
def test_what_cannot_be_made_is_refused(pictures, monkeypatch, image, prompt, out, message):
    monkeypatch.chdir(pictures.parent)
    (pictures / "empty").mkdir()
    Path("empty.txt").write_text("\n")
    Path("latin.txt").write_bytes(b"\xe4pfel")
    with pytest.raises((ValueError, OSError), match=message):
        request_of(image and Path(image), prompt, out and Path(out), 0)


def test_pictures_that_would_become_one_clip_are_named(tmp_path):
    for name in ("photo.jpg", "photo.png", "photo_jpg.gif"):
        (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=r"photo\.jpg and .*photo_jpg\.gif would become one clip, photo_jpg\.mp4"):
        request_of(tmp_path, None, tmp_path.with_name("clips"), 0)


def test_names_in_no_encoding_are_told_in_a_folder_and_written_of_a_picture(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(ValueError, match=r"a file whose name is not UTF-8, caf\\xe9\.png: rename"):
        request_of(tmp_path, None, tmp_path.with_name("clips"), 0)
    for ending in ("gif", "mp4", "png"):
        (job,) = request_of(path, None, tmp_path / f"x.{ending}", 0).jobs
        make(job)
        record = read_record(job.output)
        assert record is not None and record["image"] == "caf\\udce9.png"
    (job,) = request_of(path, None, path.with_suffix(".mp4"), 0).jobs
    make(job)
    assert unfinished(request_of(path, None, path.with_suffix(".gif"), 0), SETTINGS, False) and job.output.is_file()
