"""The judge of demo students, on the teachers themselves."""

import pytest
from PIL import Image

from vdmini_diffusers.demo.judge import DECODED, FROM_LATENTS, Judge
from vdmini_diffusers.demo.teachers import I2V_TEACHER, T2V_TEACHER
from vdmini_diffusers.demo.training_latents import write_training_latents


@pytest.mark.slow  # latents of eight clips, and six videos
@pytest.mark.parametrize("teacher", [I2V_TEACHER, T2V_TEACHER], ids=["i2v", "t2v"])
def test_a_copy_of_the_teacher_is_as_good_as_the_teacher_and_what_is_measured_is_kept(teacher, tmp_path, monkeypatch):
    latents = write_training_latents(tmp_path / "latents", teacher, 8)
    copy = tmp_path / "copy"
    copy.symlink_to(teacher)
    judge = Judge(teacher, latents, tmp_path, seed=5, num_clips=2, num_decoded=1)
    numbers = judge.measure(copy, tmp_path / "measures")
    assert {name: len(numbers[name]) for name in FROM_LATENTS} == dict.fromkeys(FROM_LATENTS, 2)
    assert len(numbers["sharpness"]) == 1 and numbers["psnr_to_teacher"][0] > 60  # but for rounding the same
    assert set(numbers) <= {*FROM_LATENTS, *DECODED, "decoders_agree"}
    own = judge.measure(teacher, tmp_path / "teacher")
    assert own["right_way"] == numbers["right_way"] and "psnr_to_teacher" not in own

    def refuse(*args, **kwargs):
        raise AssertionError("made again")

    monkeypatch.setattr(judge.all, "generate", refuse)
    assert judge.measure(copy, tmp_path / "measures") == numbers
    judge.write_sheet({"copy": tmp_path / "measures", "gone": tmp_path / "nowhere"}, tmp_path / "sheet.png")
    assert [file.name for file in tmp_path.glob("scene-*.mp4")] == ["scene-0.mp4"]
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width == 3 * 16 * 64 and sheet.height == 2 * (3 * 64 + 20)  # one scene: the real clip and the copy's
