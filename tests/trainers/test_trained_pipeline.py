import numpy as np
import pytest
from accelerate import Accelerator
from diffusers.utils import export_to_gif
from PIL import Image

from vdmini_diffusers.demo.teachers import I2V_TEACHER
from vdmini_diffusers.distillation.arguments import TrainingArguments
from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.trainers.trained_pipeline import show_on_trackers, teacher_card


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
