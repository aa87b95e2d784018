"""What the pruning scripts print when they succeed: parameters, the output, and the next command."""

import json
import re
import runpy
import sys

import pytest
from checkout import ROOT
from tiny import tiny_decoder_plans, tiny_teacher_vae
from tiny_hunyuan_video import tiny_hunyuan_pipeline

from vdmini_diffusers.cli.prune_command import print_command, prune_command
from vdmini_diffusers.demo.teachers import I2V_TEACHER
from vdmini_diffusers.families.hunyuan_video import HUNYUAN_VIDEO


@pytest.fixture
def run_script(monkeypatch, capsys):
    def run(name, *flags):
        monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
        runpy.run_path(str(ROOT / "conversion" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_pruning_a_pipeline(run_script, teacher_folder, tmp_path):
    student = tmp_path / "the student"
    flags = ("--pretrained_model_name_or_path", teacher_folder, "--output_dir", student)
    printed = run_script("convert_svd_to_vdmini.py", *flags)
    assert "unet: 4,317,162 parameters before, 2,645,082 after (61.3%)\n" in printed
    assert f"The student's pipeline is in {student}" in printed
    first, teacher, second = printed.split("accelerate launch training/")[1:]
    assert first.startswith("precompute_latents.py") and second.startswith("train_icmd.py")  # as the guides recommend
    assert teacher.startswith("train_sf_v.py") and f"--pretrained_model_name_or_path {teacher_folder} \\\n" in teacher
    assert f"--output_dir '{student}-teacher'\n" in teacher
    assert f"--pretrained_teacher_model_name_or_path '{student}-teacher' \\\n" in second
    assert "--latents_for image_to_video" in first and f"--output_dir '{student}-latents'\n" in first
    assert f"--precomputed_data_dir '{student}-latents'" in second and "--train_data_dir" not in second
    assert f"--pretrained_student_model_name_or_path '{student}' \\\n" in second
    assert "--task" not in second and "variant" not in printed  # the student says what it was made for
    index = json.loads((student / "model_index.json").read_text())
    assert index["feature_extractor"] == ["transformers", "CLIPImageProcessor"]


def test_a_teacher_that_was_distilled_to_one_step_is_the_one_to_train_with(run_script, tmp_path):
    flags = ("--pretrained_model_name_or_path", I2V_TEACHER, "--output_dir", tmp_path / "student", "--plan", "vdmini")
    printed = run_script("convert_svd_to_vdmini.py", *flags)
    assert "train_sf_v.py" not in printed and f"--pretrained_teacher_model_name_or_path {I2V_TEACHER} " in printed


def test_a_dry_run_refuses_a_variant_that_is_not_there(run_script, teacher_folder, tmp_path, capsys):
    flags = ("--pretrained_model_name_or_path", teacher_folder, "--output_dir", tmp_path / "out", "--dry_run")
    with pytest.raises(SystemExit):
        run_script("convert_svd_to_vdmini.py", *flags, "--variant", "fp16")
    captured = capsys.readouterr()
    assert "CheckpointError: " in captured.err and "fp16" in captured.err and "removes" not in captured.out


def test_a_dry_run_prints_parameters_and_operations(monkeypatch, capsys, tmp_path):
    pipe = tiny_hunyuan_pipeline()
    pipe.save_pretrained(tmp_path / "teacher")
    flags = ("--pretrained_model_name_or_path", tmp_path / "teacher", "--output_dir", tmp_path / "student")
    monkeypatch.setattr(sys, "argv", ["prune", *map(str, flags), "--plan", "middle", "--dry_run"])
    prune_command("Prune HunyuanVideo.", HUNYUAN_VIDEO)
    printed = capsys.readouterr().out
    assert f"teacher {pipe.transformer.num_parameters():,} parameters\n" in printed
    assert "removes transformer_blocks.2 (" in printed
    teacher, student = (
        float(re.search(rf"{what} ([\d.]+) TFLOP for 125 frames of 1280 x 720 pixels", printed)[1])
        for what in ("teacher", "student")
    )
    assert student / teacher == pytest.approx(7 / 9, abs=0.03) and not (tmp_path / "student").exists()


def test_pruning_a_vae_s_decoder(run_script, tmp_path):
    tiny_teacher_vae("image").save_pretrained(tmp_path / "teacher")
    (tmp_path / "plan.json").write_text(tiny_decoder_plans("image")["folds"].to_json_string())
    flags = ["--pretrained_model_name_or_path", tmp_path / "teacher", "--subfolder", "", "--plan"]
    printed = run_script("prune_vae_decoder.py", *flags, tmp_path / "plan.json", "--output_dir", tmp_path / "student")
    assert "decoder: " in printed and f"The VAE is in {tmp_path / 'student'}" in printed
    assert f"--pretrained_vae_model_name_or_path {tmp_path / 'student'}" in printed


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--push_to_hub", "--hub_model_id", "org/student"), "org/student cannot be written to"),  # tests are offline
        (("--max_shard_size", "10"), "`--max_shard_size`: Unit '10' not supported"),
    ],
)
@pytest.mark.parametrize("script", ["convert_svd_to_vdmini.py", "prune_vae_decoder.py"])
def test_what_would_fail_at_the_end_is_refused_before_anything_is_read(
    run_script, tmp_path, monkeypatch, capsys, script, flags, complaint
):
    monkeypatch.delenv("VDMINI_TRACEBACK", raising=False)
    with pytest.raises(SystemExit):
        run_script(script, "--pretrained_model_name_or_path", I2V_TEACHER, "--output_dir", tmp_path / "out", *flags)
    assert complaint in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_an_error_is_one_sentence_with_what_to_do(run_script, teacher_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("VDMINI_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as end:
        run_script(
            "convert_svd_to_vdmini.py",
            *("--pretrained_model_name_or_path", teacher_folder / "unet", "--output_dir", tmp_path / "student"),
        )
    assert end.value.code == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("CheckpointError: ") and "model_index.json is missing" in last


def test_a_printed_command_survives_the_shell(capsys):
    print_command("python x.py", output_dir="a b", variant=None, train_data_dir="$HOME")
    assert capsys.readouterr().out == "python x.py \\\n    --output_dir 'a b' \\\n    --train_data_dir '$HOME'\n"
