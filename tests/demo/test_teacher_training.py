"""The demo teachers' training: a folder keeps to its settings, and a VAE that is there is not trained again."""

from pathlib import Path

import pytest
import torch
from forked_scripts import start
from scripts_run import command_of

from vdmini_diffusers.cli.script import OUT_OF_TIME
from vdmini_diffusers.demo import resumable_training
from vdmini_diffusers.demo.image_to_video_training import ImageToVideoTraining, load_vae
from vdmini_diffusers.demo.resumable_training import OutOfTimeError
from vdmini_diffusers.demo.teacher_training import TeacherTrainingArguments
from vdmini_diffusers.demo.teachers import I2V_TEACHER, T2V_TEACHER
from vdmini_diffusers.demo.text_to_video_training import TextToVideoTraining


def test_states_of_other_settings_are_refused_and_time_and_precision_are_free(tmp_path):
    ImageToVideoTraining(TeacherTrainingArguments(tmp_path, num_clips=4))
    ImageToVideoTraining(TeacherTrainingArguments(tmp_path, num_clips=4, seconds=1, mixed_precision=False))
    for changed in ({"num_clips": 5}, {"num_clips": 4, "seed": 1}, {"num_clips": 4, "vae": Path("vae")}):
        with pytest.raises(ValueError, match="has other settings"):
            ImageToVideoTraining(TeacherTrainingArguments(tmp_path, **changed))


def test_a_vae_that_is_given_is_taken_as_it_is_in_single_precision(tmp_path):
    training = ImageToVideoTraining(TeacherTrainingArguments(tmp_path, vae=I2V_TEACHER / "vae", seconds=0))
    training.train_vae()  # there is no time for a step
    assert {parameter.dtype for parameter in training.vae.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in training.vae.parameters())
    shipped = load_vae(I2V_TEACHER / "vae").state_dict()
    assert all(torch.equal(tensor.cpu(), shipped[name]) for name, tensor in training.vae.state_dict().items())


@pytest.mark.parametrize("task", ["i2v", "t2v"])
def test_latents_that_were_cached_before_a_stop_are_those_of_a_run_without_one(tmp_path, monkeypatch, task):
    given = {"task": task, "vae": I2V_TEACHER / "vae", "image_to_video_teacher": I2V_TEACHER}
    given |= {"num_clips": 2, "mixed_precision": False}  # which is slow on most CPUs
    trainings = {"i2v": ImageToVideoTraining, "t2v": TextToVideoTraining}

    def latents(folder, **changes):
        (tmp_path / folder).mkdir(exist_ok=True)
        training = trainings[task](TeacherTrainingArguments(tmp_path / folder, **given, **changes))
        training.train_vae()
        return training.cache_latents()

    whole = latents("whole")
    monkeypatch.setattr(resumable_training, "ROWS_PER_FILE", 1)
    with pytest.raises(OutOfTimeError):
        latents("stopped", seconds=0)
    assert len(list((tmp_path / "stopped" / "latents").iterdir())) == 1
    resumed = latents("stopped")
    assert len(whole["captions"]) == len(whole["latents"]) == 2 and whole["captions"] == resumed.pop("captions")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())


def test_a_vae_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"is an AutoencoderKL of .* must be an AutoencoderKLTemporalDecoder of"):
        load_vae(T2V_TEACHER / "vae")


def test_a_run_whose_time_is_over_says_so_by_its_exit_status(tmp_path):
    flags = {"output_dir": tmp_path / "out", "vae": I2V_TEACHER / "vae", "num_clips": 1, "seconds": 0}
    process = start(command_of("train_demo_teacher.py", flags), log=tmp_path / "log")
    process.join()
    assert process.exitcode == OUT_OF_TIME == 75, (tmp_path / "log").read_text()
