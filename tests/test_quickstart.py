import json
import subprocess
import sys

import pytest
from diffusers import UNetSpatioTemporalConditionModel
from PIL import Image

from vdmini_diffusers import quickstart
from vdmini_diffusers.embedded import I2V_TEACHER
from vdmini_diffusers.quickstart import Arguments, read_image


def test_the_first_command_of_the_readme_writes_pictures_and_a_report(tmp_path):
    command = [sys.executable, "-m", "vdmini_diffusers.quickstart", "--num_inference_steps", "1"]
    run = subprocess.run([*command, "--output_dir", tmp_path / "out"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "4/4" in run.stderr  # progress is shown
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["student"]["unet_parameters"] < report["teacher"]["unet_parameters"]
    assert report["student"]["unet_macs_per_step"] < report["teacher"]["unet_macs_per_step"]
    assert set(report["to_what_really_came"]) == {"first frame repeated", "teacher", "student"}
    assert f"{report['student']['unet_parameters']:,}" in (tmp_path / "out" / "report.md").read_text()
    for name in ("teacher.gif", "student.gif"):
        with Image.open(tmp_path / "out" / name) as gif:
            assert gif.n_frames == 8
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width == 8 * 64 * quickstart.SCALE
    assert (tmp_path / "out" / "vdmini-i2v" / "model_index.json").is_file()


def test_a_picture_of_ones_own_is_animated_and_earlier_results_are_replaced(tmp_path):
    picture = tmp_path / "wide.png"
    Image.linear_gradient("L").resize((200, 90)).convert("RGBA").save(picture)
    for _ in range(2):
        quickstart.main(Arguments(output_dir=tmp_path / "out", image=picture, num_inference_steps=1))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "to_what_really_came" not in report  # nothing real came after that picture


def test_a_picture_is_cut_to_its_centre_square(tmp_path):
    Image.new("RGB", (200, 90), (10, 20, 30)).save(tmp_path / "wide.png")
    assert read_image(tmp_path / "wide.png", 64).shape == (64, 64, 3)


def test_macs_grow_with_the_frames():
    unet = UNetSpatioTemporalConditionModel.from_pretrained(I2V_TEACHER, subfolder="unet")
    one, two = (quickstart.count_macs(unet, unet.config.cross_attention_dim, num_frames) for num_frames in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.05)  # all but the embeddings, and attention over frames
    assert one > unet.num_parameters()  # convolutions use their weights at every position


def test_macs_count_attention_which_grows_with_the_square_of_the_picture():
    unet = UNetSpatioTemporalConditionModel.from_pretrained(I2V_TEACHER, subfolder="unet")
    small = quickstart.count_macs(unet, unet.config.cross_attention_dim, num_frames=1)
    unet.register_to_config(sample_size=2 * unet.config.sample_size)
    assert quickstart.count_macs(unet, unet.config.cross_attention_dim, num_frames=1) > 4.1 * small
