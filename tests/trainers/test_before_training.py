"""What is known before the first step is refused before the first step."""

import importlib.util
import logging
import multiprocessing
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vdmini_diffusers.distillation.arguments import RunArguments
from vdmini_diffusers.distillation.engine import check_optimizer, check_tracker, report_settings, without_folders
from vdmini_diffusers.trainers.before_training import (
    check_images,
    check_push,
    only_run_in,
    warn_of_late_start,
)


@given(st.binary(max_size=64))
def test_any_bytes_as_validation_image_are_taken_or_refused_with_the_file_s_name(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "picture.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"`--validation_images`: .*picture.png' cannot be read as a picture"):
        check_images([path])


def test_a_validation_image_is_decoded_to_its_end(tmp_path):
    path = tmp_path / "picture.png"
    Image.effect_noise((64, 64), 100).save(path)
    check_images([path])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        check_images([path])
    with pytest.raises(ValueError, match="there is no file"):
        check_images([tmp_path / "none.png"])


def test_push_without_access_to_the_hub_is_refused(tmp_path):  # tests are offline
    with pytest.raises(
        OSError, match=r"`--push_to_hub`: org/vdmini cannot be written to .* leave out `--push_to_hub`"
    ):
        check_push(RunArguments(output_dir=tmp_path, hub_model_id="org/vdmini"))


def test_push_to_what_is_no_name_of_a_repository_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`--push_to_hub`: 'a/b/c' is no name of a repository"):
        check_push(RunArguments(output_dir=tmp_path, hub_model_id="a/b/c"))


def test_a_tracker_that_is_unknown_or_not_installed_is_refused():
    for name in (None, "all"):
        check_tracker(name)
    with pytest.raises(ValueError, match=r"`--report_to` must be one of .*tensorboard.*, not 'tensorbord'"):
        check_tracker("tensorbord")
    if importlib.util.find_spec("aim") is None:
        with pytest.raises(ImportError, match="`--report_to aim` needs the package aim, which is not installed"):
            check_tracker("aim")


def test_an_optimiser_whose_package_is_not_installed_is_refused_before_models_are_loaded():
    check_optimizer(RunArguments())
    check_optimizer(RunArguments(optimizer="adafactor", lr_scheduler="polynomial"))
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(ImportError, match="needs bitsandbytes"):
            check_optimizer(RunArguments(optimizer="adamw_8bit"))


def test_a_loss_that_never_starts_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_late_start("MCA", "mca_start_step", 2999, 3000)
        assert not caplog.text
        warn_of_late_start("MCA", "mca_start_step", 3000, 3000)
    assert (
        "MCA never starts: `--mca_start_step` is 3000, and training ends after `--max_train_steps` 3000" in caplog.text
    )


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with (
        only_run_in(tmp_path / "out"),
        pytest.raises(OSError, match=r"Another training writes to .*out"),
        only_run_in(tmp_path / "out", timeout=0),
    ):
        pass
    with only_run_in(tmp_path / "out", timeout=0), only_run_in(tmp_path / "other", timeout=0):
        pass


def test_a_run_that_writes_nothing_leaves_no_folder(tmp_path):
    for name, kept in (("refused", False), ("trained", True)):
        with only_run_in(tmp_path / name):
            if kept:
                (tmp_path / name / "training.json").touch()
        assert (tmp_path / name).exists() == kept


def hold_lock(folder: Path, held) -> None:
    with only_run_in(folder):
        held.set()
        signal.pause()


def test_a_killed_run_holds_no_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=hold_lock, args=(tmp_path, held))
    process.start()
    assert held.wait(60)
    with pytest.raises(OSError, match="Another training"), only_run_in(tmp_path, timeout=0):
        pass
    process.kill()
    process.join()
    with only_run_in(tmp_path, timeout=0):
        pass


def test_published_settings_name_no_folder_of_this_machine(tmp_path, monkeypatch):
    (tmp_path / "data" / "clips").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    record = {
        "teacher": str(tmp_path / "data"),
        "student": "org/student",
        "train_data_dir": "data/clips",
        "output_dir": tmp_path / "out",
        "cache_dir": "/nowhere/cache",
        "validation_images": [tmp_path / "a.png"],
        "validation_prompts": ["a cat"],
        "lambda_icd": 0.1,
        "rank": None,
    }
    assert {name: without_folders(value) for name, value in record.items()} == {
        "teacher": "data",
        "student": "org/student",
        "train_data_dir": "clips",
        "output_dir": "out",
        "cache_dir": "cache",
        "validation_images": ["a.png"],
        "validation_prompts": ["a cat"],
        "lambda_icd": 0.1,
        "rank": None,
    }
    report_settings(record, tmp_path)
    assert str(tmp_path) not in (tmp_path / "training.json").read_text()
