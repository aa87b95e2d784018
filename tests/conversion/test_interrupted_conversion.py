"""The output folder appears when it is complete; what was there is never lost, whatever stops the conversion."""

import json
import os
import shutil
import signal
import struct
import time

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from filelock import FileLock
from forked_scripts import start

from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.serialization import atomic
from vdmini_diffusers.serialization.atomic import LOCK_SUFFIX, MIN_STALE_SECONDS, new_folder


UNET_FILE = "diffusion_pytorch_model.safetensors"
BOTH = pytest.mark.parametrize("kind", ["i2v", "t2v"], indirect=True)
# A shell starts background jobs with Ctrl-C ignored, which Python would inherit where the tests run as one. The
# test is to be faster than the conversion that it interrupts, also where its folder is in memory.
CONVERT = """
import os, signal, sys
os.nice(5)
signal.signal(signal.SIGINT, signal.default_int_handler)
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
prune_pipeline(sys.argv[1], sys.argv[2])
"""


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def parent(tmp_path):
    folder = tmp_path / "students"
    folder.mkdir()
    return folder


@pytest.fixture
def slow_teacher(teacher_folder, tmp_path):
    """Wide enough for its conversion to take a moment. All zeros, as a file in which nothing is written yet."""
    teacher = shutil.copytree(teacher_folder, tmp_path / "teacher")
    config = json.loads((teacher / "unet/config.json").read_text())
    config["block_out_channels"] = [256, 256, 512, 512]
    (teacher / "unet/config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        state = UNetSpatioTemporalConditionModel.from_config(config).state_dict()
    header, position = {}, 0
    for key, tensor in state.items():
        stop = position + 2 * tensor.numel()
        header[key] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header).encode()
    with (teacher / "unet" / UNET_FILE).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + position)
    return teacher


def stop_while_weights_are_written(teacher, parent, signal_number):
    script, log = parent.with_name("convert.py"), parent.with_name("log")
    script.write_text(CONVERT)
    process = start([script, teacher, parent / "student"], log=log)
    while not list(parent.glob(f".student.tmp-*/unet/{UNET_FILE}")):
        assert process.is_alive(), log.read_text()
        time.sleep(0.001)
    os.kill(process.pid, signal_number)
    process.join(timeout=60)
    assert process.exitcode not in (None, 0)


def test_ctrl_c_leaves_nothing(slow_teacher, parent):
    stop_while_weights_are_written(slow_teacher, parent, signal.SIGINT)
    assert names_in(parent) == []


@pytest.mark.slow
def test_killed_conversion_leaves_no_output_and_the_next_one_clears_up(slow_teacher, teacher_folder, parent):
    stop_while_weights_are_written(slow_teacher, parent, signal.SIGKILL)
    partial, lock = sorted(parent.iterdir())
    assert partial.name.startswith(".student.tmp-") and lock.name == f"{partial.name}{LOCK_SUFFIX}"
    an_hour_ago = time.time() - 3600
    os.utime(lock, (an_hour_ago, an_hour_ago))
    prune_pipeline(teacher_folder, parent / "student")
    assert names_in(parent) == ["student"]
    assert (parent / "student/model_index.json").exists()
    assert not [path for path in (parent / "student").rglob("*") if path.suffix == LOCK_SUFFIX]


def test_folder_of_a_living_conversion_is_left_alone(parent):
    (parent / ".student.tmp-1").mkdir()
    lock = parent / f".student.tmp-1{LOCK_SUFFIX}"
    with FileLock(lock):
        long_ago = time.time() - 10 * MIN_STALE_SECONDS
        os.utime(lock, (long_ago, long_ago))
        with new_folder(parent / "student"):
            pass
        assert names_in(parent) == [".student.tmp-1", lock.name, "student"]


def test_a_finished_folder_is_under_lock_until_it_has_its_name(parent, monkeypatch):
    """A conversion of more than a minute ends: from its lock's release on, another of that name may clear up."""
    seen = []

    def release(lock, *args, **kwargs):
        seen.append(names_in(parent))
        original(lock, *args, **kwargs)

    original = FileLock.release
    monkeypatch.setattr(FileLock, "release", release)
    with new_folder(parent / "student"):
        (lock,) = parent.glob(f"*{LOCK_SUFFIX}")
    assert seen[0] == [lock.name, "student"]
    assert names_in(parent) == ["student"]


def test_a_second_conversion_never_removes_what_the_first_is_finishing(parent, monkeypatch):
    """The same at the last moment before the move, with a lock file that is an hour old."""
    move = atomic._move_into_place

    def clear_up_and_move(partial, target):
        long_ago = time.time() - 3600
        os.utime(f"{partial}{LOCK_SUFFIX}", (long_ago, long_ago))
        with pytest.raises(ValueError), new_folder(parent / "student"):
            raise ValueError
        move(partial, target)

    monkeypatch.setattr(atomic, "_move_into_place", clear_up_and_move)
    with new_folder(parent / "student") as folder:
        (folder / "model_index.json").write_text("{}")
    assert names_in(parent) == ["student"] and names_in(parent / "student") == ["model_index.json"]


def test_folders_of_similar_names_are_left_alone(parent):
    for name in (".student.tmp-notes", ".student2.tmp-1", "student.tmp-1"):
        (parent / name).mkdir()
    with new_folder(parent / "student"):
        pass
    assert names_in(parent) == [".student.tmp-notes", ".student2.tmp-1", "student", "student.tmp-1"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_any_exception_removes_what_was_begun(parent, error):
    with pytest.raises(error), new_folder(parent / "a" / "student") as folder:
        (folder / "x").write_text("x")
        raise error
    assert names_in(parent) == []


@pytest.mark.parametrize("exists", ["folder", "empty folder", "file", "link"])
def test_what_exists_is_never_overwritten_unasked(teacher_folder, parent, exists):
    target = parent / "student"
    if exists == "file":
        target.write_text("mine")
    elif exists == "link":
        target.symlink_to("nowhere")
    else:
        target.mkdir()
        if exists == "folder":
            (target / "model_index.json").write_text("mine")
    with pytest.raises(FileExistsError, match="student exists, and is replaced only with `overwrite=True`"):
        prune_pipeline(teacher_folder, target)
    assert names_in(parent) == ["student"]


def test_what_is_no_pipeline_is_not_overwritten_even_when_asked(teacher_folder, parent):
    (parent / "student").mkdir()
    (parent / "student/thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a pipeline folder"):
        prune_pipeline(teacher_folder, parent / "student", overwrite=True)
    assert (parent / "student/thesis.txt").read_text() == "mine"


def test_overwriting_replaces_the_folder_as_a_whole(teacher_folder, parent):
    (parent / "student").mkdir()
    (parent / "student/model_index.json").write_text("old")
    (parent / "student/old.txt").write_text("old")
    prune_pipeline(teacher_folder, parent / "student", overwrite=True)
    assert names_in(parent) == ["student"]
    assert "old.txt" not in names_in(parent / "student")


@BOTH
def test_failed_overwriting_keeps_the_old_folder(kind, tmp_path, parent):
    (parent / "student").mkdir()
    (parent / "student/model_index.json").write_text("old")
    teacher = shutil.copytree(kind.folder, tmp_path / "teacher")
    (teacher / "vae" / UNET_FILE).unlink()
    with pytest.raises(ValueError, match="vae has neither"):
        kind.prune(teacher, parent / "student", overwrite=True)
    assert names_in(parent) == ["student"]
    assert (parent / "student/model_index.json").read_text() == "old"


@BOTH
@pytest.mark.parametrize("output", ["", ".."])
def test_the_teacher_is_never_replaced_by_its_student(kind, tmp_path, output):
    (tmp_path / "model_index.json").write_text("{}")
    teacher = shutil.copytree(kind.folder, tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"(is|holds) the teacher"):
        kind.prune(teacher, teacher / output, overwrite=True)
    assert (teacher / "unet" / UNET_FILE).exists()


def test_output_that_appeared_meanwhile_is_kept(parent):
    with pytest.raises(FileExistsError, match="student exists"), new_folder(parent / "student"):
        (parent / "student").mkdir()
        (parent / "student/theirs.txt").write_text("theirs")
    assert names_in(parent) == ["student"]
    assert (parent / "student/theirs.txt").read_text() == "theirs"
