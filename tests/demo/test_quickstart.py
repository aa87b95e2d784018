import json
import subprocess
import sys

import numpy as np
import pytest
from diffusers import UNetSpatioTemporalConditionModel
from PIL import Image

from vdmini_diffusers.demo import quickstart
from vdmini_diffusers.demo.contact_sheet import SCALE
from vdmini_diffusers.demo.quickstart import Arguments, FromPictures, count_macs, read_square
from vdmini_diffusers.demo.teachers import I2V_TEACHER
from vdmini_diffusers.quickstart import command_line


SHORT = {"max_train_steps": 2, "num_train_clips": 2}


@pytest.mark.slow  # most of a minute
def test_the_first_command_of_the_readme_writes_pictures_and_a_report(tmp_path):
    flags = [part for name, value in SHORT.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "vdmini_diffusers.quickstart", *flags]
    run = subprocess.run([*command, "--output_dir", tmp_path / "out"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "4/4" in run.stderr  # progress is shown
    models = json.loads((tmp_path / "out" / "report.json").read_text())["models"]
    assert set(models) == {"teacher", "pruned", "distilled"}
    assert models["distilled"]["psnr_to_teacher_db"] > 0
    for measure in ("unet_parameters", "unet_macs_per_step"):
        assert models["distilled"][measure] == models["pruned"][measure] < models["teacher"][measure]
    assert f"{models['pruned']['unet_parameters']:,}" in (tmp_path / "out" / "report.md").read_text()
    for name in ("teacher", "pruned", "distilled"):
        with Image.open(tmp_path / "out" / f"{name}.gif") as gif:
            assert gif.n_frames == 16
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width == 16 * 64 * SCALE
    pruned, distilled = (tmp_path / "out" / name / "model_index.json" for name in ("pruned", "vdmini-i2v"))
    assert pruned.is_file() and distilled.is_file()


@pytest.mark.slow
def test_a_picture_of_ones_own_is_animated_and_earlier_results_are_replaced(tmp_path):
    picture = tmp_path / "wide.png"
    Image.linear_gradient("L").resize((200, 90)).convert("RGBA").save(picture)
    for _ in range(2):
        quickstart.main(Arguments(output_dir=tmp_path / "out", image=picture, max_train_steps=0))
    models = json.loads((tmp_path / "out" / "report.json").read_text())["models"]
    assert set(models) == {"teacher", "pruned"}  # without distillation


def test_a_picture_is_cut_to_its_centre_square(tmp_path):
    Image.new("RGB", (200, 90), (10, 20, 30)).save(tmp_path / "wide.png")
    assert read_square(tmp_path / "wide.png", 64).shape == (64, 64, 3)


def test_a_photo_is_animated_as_a_viewer_shows_it(tmp_path):
    picture, exif = np.zeros((64, 64, 3), np.uint8), Image.Exif()
    picture[:32, :32, 0] = picture[32:, 32:, 2] = 255
    exif[0x0112] = 6  # turn clockwise to show
    Image.fromarray(np.rot90(picture)).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    assert np.abs(read_square(tmp_path / "photo.jpg", 64).astype(int) - picture).mean() < 5


@pytest.mark.parametrize("name", ["none.png", "text.png"])
def test_what_is_no_picture_is_refused_before_anything_is_pruned(tmp_path, name):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=f"{name}' cannot be read as a picture"):
        quickstart.main(Arguments(output_dir=tmp_path / "out", image=tmp_path / name))
    assert not (tmp_path / "out").exists()


def test_a_wrong_setting_ends_the_quickstart_with_its_usage(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quickstart", "--num_inference_steps", "0"])
    with pytest.raises(SystemExit) as ended:
        command_line()
    assert ended.value.code == 2
    assert "must be at least 1, not 0" in capsys.readouterr().err


def test_macs_grow_with_the_frames():
    unet = UNetSpatioTemporalConditionModel.from_pretrained(I2V_TEACHER, subfolder="unet")
    some, twice = (count_macs(unet, FromPictures.unet_inputs(unet.config, num_frames)) for num_frames in (8, 16))
    assert twice == pytest.approx(2 * some, rel=0.05)  # all but the embeddings, and attention over frames
    assert some > 8 * unet.num_parameters()  # convolutions use their weights at every position


def test_macs_count_attention_which_grows_with_the_square_of_the_picture():
    unet = UNetSpatioTemporalConditionModel.from_pretrained(I2V_TEACHER, subfolder="unet")
    small = count_macs(unet, FromPictures.unet_inputs(unet.config, num_frames=2))
    unet.register_to_config(sample_size=2 * unet.config.sample_size)
    assert count_macs(unet, FromPictures.unet_inputs(unet.config, num_frames=2)) > 4.1 * small


@pytest.mark.slow  # four steps a video, with two teachers to load
def test_text_to_video_is_pruned_distilled_and_shown_as_well(tmp_path):
    quickstart.main(
        Arguments(output_dir=tmp_path, task="t2v", prompts=["a car moves left slowly in front of a cat"], **SHORT)
    )
    models = json.loads((tmp_path / "report.json").read_text())["models"]
    assert set(models) == {"teacher", "pruned", "distilled"}
    assert models["distilled"]["unet_macs_per_step"] == models["pruned"]["unet_macs_per_step"]
    assert models["pruned"]["unet_macs_per_step"] < models["teacher"]["unet_macs_per_step"]
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width == 16 * 64 * SCALE
    assert (tmp_path / "vdmini-t2v" / "model_index.json").is_file()


def test_a_picture_for_text_to_video_and_no_sampling_steps_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--task i2v"):
        Arguments(output_dir=tmp_path, task="t2v", image=tmp_path / "picture.png")
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        Arguments(output_dir=tmp_path, num_inference_steps=0)
