"""What training leaves in its folder, and on trackers."""

import fnmatch
import json

import numpy as np
import pytest
from accelerate import Accelerator
from diffusers.utils import export_to_gif
from PIL import Image

from vdmini_diffusers.demo.teachers import I2V_TEACHER
from vdmini_diffusers.distillation.arguments import TrainingArguments
from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.trainers import trained_pipeline
from vdmini_diffusers.trainers.trained_pipeline import IGNORED_BY_PUSH, finished_files, show_on_trackers, teacher_card


def test_tensorboard_gets_the_frames_of_validation_videos(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    frames = [Image.fromarray(np.full((16, 16, 3), 80 * i, np.uint8)) for i in range(3)]
    export_to_gif(frames, str(tmp_path / "video.gif"), fps=7)
    accelerator = Accelerator(log_with="tensorboard", project_dir=str(tmp_path))
    accelerator.init_trackers("run")
    show_on_trackers(accelerator.trackers, [tmp_path / "video.gif"], step=4)
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    (image,) = events.Images("validation/0")
    assert image.step == 4 and (image.width, image.height) == (3 * 16, 16)  # the frames side by side


def test_the_card_of_an_sf_v_model_has_its_teachers_licence():
    card = teacher_card(TrainingArguments(max_train_steps=1200), str(I2V_TEACHER), SVD)
    assert "license: apache-2.0\n" in card and "for\n1,200 steps" in card and "`i2v_teacher`" in card


def test_without_a_card_the_licence_is_said_to_be_the_teachers(tmp_path):
    assert "license_name: inherited-from-the-teacher\n" in teacher_card(TrainingArguments(), str(tmp_path), SVD)


def write_result(folder, text: str) -> None:
    (folder / "unet").mkdir()
    for name in ("model_index.json", "README.md", "unet/weights.safetensors"):
        (folder / name).write_text(text)


def test_a_result_takes_the_place_of_the_last_one_and_leaves_other_files(tmp_path):
    (tmp_path / "checkpoint-000001").mkdir()
    for text in ("old", "new"):
        with finished_files(tmp_path, "model_index.json") as aside:
            write_result(aside, text)
    assert {p.relative_to(tmp_path).as_posix(): p.read_text() for p in tmp_path.rglob("*") if p.is_file()} == {
        "model_index.json": "new",
        "README.md": "new",
        "unet/weights.safetensors": "new",
    }
    assert (tmp_path / "checkpoint-000001").is_dir()


def test_a_kill_while_the_result_is_moved_leaves_nothing_that_opens(tmp_path, monkeypatch):
    with finished_files(tmp_path, "model_index.json") as aside:
        write_result(aside, "old")
    moved = []

    def replace(source, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        original(source, target)

    original = trained_pipeline.os.replace
    monkeypatch.setattr(trained_pipeline.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt), finished_files(tmp_path, "model_index.json") as aside:
        write_result(aside, "new")
    assert moved and not (tmp_path / "model_index.json").exists()


def test_what_an_earlier_result_leaves_nothing_of_goes_after_its_marker(tmp_path, monkeypatch):
    with finished_files(tmp_path, "model_index.json") as aside:
        write_result(aside, "old")
    opens = []

    def remove(path, **options):
        if path == tmp_path / "unet":
            opens.append((tmp_path / "model_index.json").exists())
        original(path, **options)

    original = trained_pipeline.shutil.rmtree
    monkeypatch.setattr(trained_pipeline.shutil, "rmtree", remove)
    with finished_files(tmp_path, "model_index.json", anew=["unet"]) as aside:
        (aside / "model_index.json").write_text("new")
    assert opens == [False] and not (tmp_path / "unet").exists()


def test_a_kill_while_the_result_is_written_leaves_the_last_one(tmp_path):
    with finished_files(tmp_path, "model_index.json") as aside:
        write_result(aside, "old")
    with pytest.raises(KeyboardInterrupt), finished_files(tmp_path, "model_index.json") as aside:
        write_result(aside, "new")
        raise KeyboardInterrupt
    assert (tmp_path / "model_index.json").read_text() == (tmp_path / "README.md").read_text() == "old"


def test_a_published_config_does_not_say_where_the_model_was_read_from(tmp_path):
    with finished_files(tmp_path, "config.json") as aside:
        (aside / "config.json").write_text(json.dumps({"_name_or_path": str(tmp_path / "student"), "a": 1}))
    assert json.loads((tmp_path / "config.json").read_text()) == {"_name_or_path": "student", "a": 1}


def test_checkpoints_and_temporary_files_are_not_pushed():
    def pushed(name: str) -> bool:  # as `huggingface_hub.upload_folder` decides
        return not any(fnmatch.fnmatch(name, pattern) for pattern in IGNORED_BY_PUSH)

    assert pushed("model_index.json") and pushed("unet/config.json") and pushed("lora/weights.safetensors")
    for name in (
        *("checkpoint-000001/state.pt", ".checkpoint-000001.tmp/state.pt", "checkpoint-best/state.pt"),
        *(".finished.tmp/unet/config.json", "unet/.config.json.tmp", ".training.lock", "logs/vdmini/events"),
        *("validation/step-1-0.gif", "skipped_videos/0.jsonl"),
    ):
        assert not pushed(name), name
