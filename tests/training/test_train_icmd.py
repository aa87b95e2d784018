"""The training scripts as users start them: processes of their own, on tiny components."""

import json
import os
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from forked_scripts import start
from PIL import Image
from safetensors.torch import load_file
from scripts_run import command_of, largest_difference, logged_losses, run
from tiny import tiny_image
from written_latents import write_latents
from written_videos import write_video

from vdmini_diffusers import VDMiniI2VPipeline
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(teacher_folder, tmp_path_factory):
    """Teacher, pruned student, precomputed latents."""
    folder = tmp_path_factory.mktemp("icmd")
    student = prune_pipeline(teacher_folder, folder / "student")
    return teacher_folder, student, write_latents(folder / "latents", num_samples=8)


def command(script: str, folders, output_dir: Path, **settings: object) -> list[object]:
    teacher, student, latents = folders
    chosen = {
        "pretrained_teacher_model_name_or_path": teacher,
        "pretrained_student_model_name_or_path": student,
        "precomputed_data_dir": latents,
        "output_dir": output_dir,
        "max_train_steps": 2,
        "gradient_accumulation_steps": 1,
        "checkpointing_steps": 1,
        "logging_steps": 1,
        "discriminator_width": 32,
        "mca_start_step": 1,
        "critic_backbone": "teacher",
        "critic_warmup_steps": 0,
        **settings,
    }
    return command_of(script, chosen)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


WHOLE = {"max_train_steps": 3, "use_ema": True, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """The student after three steps without a stop."""
    output_dir = tmp_path_factory.mktemp("trained")
    run(command("train_icmd.py", folders, output_dir, **WHOLE), output_dir / "log")
    return output_dir


def test_a_trained_student_is_a_pipeline_with_its_plan(folders, trained):
    pipe = VDMiniI2VPipeline.from_pretrained(trained)
    assert largest_difference(pipe.unet.state_dict(), weights(folders[1])) > 0
    plans = [(folder / "unet" / "pruning_plan.json").read_text() for folder in (trained, folders[1])]
    assert plans[0] == plans[1]
    assert json.loads((trained / "training.json").read_text())["lambda_icd"] == 0.1


def test_the_card_of_a_trained_student_is_that_of_the_pruned_one_and_says_that_it_was_trained(folders, trained):
    before, after = ((folder / "README.md").read_text() for folder in (folders[1], trained))
    assert "pruned and not yet trained" in before and "Distilled" not in before
    assert "pruned and not yet trained" not in after and "by ICMD (section 3.3) for 3 steps" in after
    start, end = before.partition("<!-- training -->")[0], before.partition("<!-- /training -->")[2]
    opens_the_result = end.replace(f'"{folders[1].name}"', f'"{trained.name}"')
    assert opens_the_result != end and after.startswith(start) and after.endswith(opens_the_result)


def test_killed_in_a_step_or_a_checkpoint_the_same_command_ends_bit_equal(folders, trained, tmp_path):
    arguments = command("train_icmd.py", folders, tmp_path, **WHOLE)
    process = start(arguments)
    while process.is_alive() and not (tmp_path / "checkpoint-000001").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / WEIGHTS).exists()
    # As if the kill had come while a checkpoint was written: once before its name is given, once after.
    whole = sorted(tmp_path.glob("checkpoint-*"))[-1]
    half = tmp_path / "checkpoint-000009"
    shutil.copytree(whole, half)
    with (half / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    (tmp_path / ".checkpoint-000003.tmp").mkdir(exist_ok=True)
    output = run(arguments, tmp_path / "log")
    assert "checkpoint-000009 is skipped: model.safetensors has 1000 bytes instead of" in output
    assert f"going on from {whole}" in output
    assert largest_difference(weights(tmp_path), weights(trained)) == 0


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_with_the_same_global_batch(folders, tmp_path):
    one = run(command("train_icmd.py", folders, tmp_path / "one", train_batch_size=2), tmp_path / "log-one")
    two = run(command("train_icmd.py", folders, tmp_path / "two"), tmp_path / "log-two", processes=2)
    losses = logged_losses(one)
    assert len(losses) == 2 and set(losses[1]) > {"reconstruction", "icd", "mca", "sf_v", "mca_discriminator"}
    for a, b in zip(losses, logged_losses(two), strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-3


@pytest.mark.slow
def test_the_learning_rate_follows_its_schedule(folders, tmp_path):
    schedule = {"lr_scheduler": "linear", "lr_warmup_steps": 2, "learning_rate": 1e-3, "max_train_steps": 4}
    output = run(command("train_icmd.py", folders, tmp_path, **schedule), tmp_path / "log")
    assert [losses["lr"] for losses in logged_losses(output)] == pytest.approx([0, 5e-4, 1e-3, 5e-4])


@pytest.mark.slow  # four runs of two processes, 20 s each before their first step
@pytest.mark.timeout(1200)
def test_sharded_by_fsdp_the_losses_are_the_same_and_a_resumed_run_ends_like_an_unbroken_one(folders, tmp_path):
    tiny_image().save(tmp_path / "picture.png")
    shown = {
        "validation_images": tmp_path / "picture.png",
        "validation_steps": 2,
        "num_frames": 2,
        "height": 16,
        "width": 16,
    }
    settings = {"max_train_steps": 3, "learning_rate": 1e-3, "use_ema": True, **shown}
    alone = run(
        command("train_icmd.py", folders, tmp_path / "one", train_batch_size=2, **settings), tmp_path / "one-log"
    )
    script = Path(__file__).parent / "train_icmd_sharded.py"

    def sharded(name: str, **changes: object) -> str:
        flags = command("train_icmd.py", folders, tmp_path / name, **settings | changes)[1:]
        return run([script, *flags], tmp_path / f"{name}-log", processes=2)

    whole = sharded("whole")
    for a, b in zip(logged_losses(alone), logged_losses(whole), strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-6)
    assert list((tmp_path / "whole").glob("checkpoint-*/pytorch_model_fsdp_0/__1_0.distcp"))  # a shard of rank 1
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "one")) < 1e-3  # averages, gathered
    assert (tmp_path / "whole" / "validation" / "step-000002-0.gif").is_file()
    sharded("halves", max_train_steps=2)
    assert "going on from" in sharded("halves")
    assert largest_difference(weights(tmp_path / "halves"), weights(tmp_path / "whole")) == 0
    divided = sharded("divided", shard_teacher=True, gradient_checkpointing=True)
    for a, b in zip(logged_losses(whole), logged_losses(divided), strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-6)


@pytest.mark.slow  # tracing the U-Net takes half a minute
@pytest.mark.timeout(600)
def test_with_torch_compile_the_weights_are_the_same(folders, tmp_path, monkeypatch):
    settings = {"learning_rate": 1e-3, "use_ema": True}
    plain = run(command("train_icmd.py", folders, tmp_path / "plain", **settings), tmp_path / "log")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    run(command("train_icmd.py", folders, tmp_path / "out", max_train_steps=1, **settings), tmp_path / "log")
    compiled = run(command("train_icmd.py", folders, tmp_path / "out", **settings), tmp_path / "log")
    assert "going on from" in compiled
    assert logged_losses(compiled)[-1] == pytest.approx(logged_losses(plain)[-1], abs=1e-6)
    assert largest_difference(weights(tmp_path / "out"), weights(tmp_path / "plain")) < 1e-6


def test_processes_that_accelerate_does_not_join_are_refused(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    output = run(command("train_icmd.py", folders, tmp_path), tmp_path / "log", fails=True)
    assert "2 processes were started, and accelerate joined 1" in output


def test_sf_v_trains_the_teacher_itself_to_one_step(folders, tmp_path):
    names = {
        "pretrained_model_name_or_path": folders[0],
        "pretrained_teacher_model_name_or_path": None,
        "pretrained_student_model_name_or_path": None,
        "mca_start_step": None,
    }
    run(command("train_sf_v.py", folders, tmp_path, **names), tmp_path / "log")
    pipe = VDMiniI2VPipeline.from_pretrained(tmp_path)
    assert type(pipe.unet).__name__ == "UNetSpatioTemporalConditionModel"
    assert largest_difference(pipe.unet.state_dict(), weights(folders[0])) > 0


def test_lora_trains_few_weights_and_is_saved_both_alone_and_fused(folders, tmp_path):
    output = run(command("train_icmd.py", folders, tmp_path, rank=2, learning_rate=1e-2), tmp_path / "log")
    assert int(re.search(r"trained parameters of the denoiser: ([\d,]+)", output)[1].replace(",", "")) < 100_000
    assert list((tmp_path / "lora").glob("*.safetensors"))
    after, before = weights(tmp_path), weights(folders[1])
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and all(re.search(r"to_(q|k|v|out\.0)\.weight", name) for name in changed)


@pytest.mark.slow
def test_training_on_videos_skips_the_broken_and_shows_validation_images(folders, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for i in range(3):
        write_video(videos / f"{i}.mp4", 10, 7)
    (videos / "broken.mp4").write_bytes(b"nothing")
    tiny_image().save(tmp_path / "picture.png")
    size = {"num_frames": 2, "height": 16, "width": 16}
    data = {"precomputed_data_dir": None, "train_data_dir": videos, "cache_dir": tmp_path / "cache", **size}
    validation = {"validation_images": tmp_path / "picture.png", "validation_steps": 2}
    out = tmp_path / "out"
    run(command("train_icmd.py", folders, out, use_ema=True, **data, **validation), tmp_path / "log")
    assert (out / WEIGHTS).exists()
    assert "broken.mp4" in "".join(file.read_text() for file in (out / "skipped_videos").iterdir())
    with Image.open(out / "validation" / "step-000002-0.gif") as gif:
        assert gif.n_frames == 2 and gif.size == (16, 16)


def test_a_validation_image_that_is_not_there_is_refused_at_the_start(folders, tmp_path):
    flags = command("train_icmd.py", folders, tmp_path / "out", validation_images=tmp_path / "none.png")
    assert "there is no file" in run(flags, tmp_path / "log", fails=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_teacher_and_student_may_be_of_different_variants(folders, tmp_path):
    teacher, student, latents = folders
    other = tmp_path / "student"
    shutil.copytree(student, other)
    os.rename(other / WEIGHTS, other / WEIGHTS.replace(".safe", ".fp16.safe"))
    flags = command("train_icmd.py", (teacher, other, latents), tmp_path / "out", student_variant="fp16")
    run(flags, tmp_path / "log")
    assert (tmp_path / "out" / WEIGHTS).exists()


def test_a_full_disk_leaves_the_last_good_checkpoint(folders, tmp_path):
    run(command("train_icmd.py", folders, tmp_path, max_train_steps=1), tmp_path / "log")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # no file may grow further; inherited
    try:
        output = run(command("train_icmd.py", folders, tmp_path, max_train_steps=2), tmp_path / "log", fails=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "The checkpoint of step 2 could not be written" in output
    assert re.search(r"The last\s+good one is .*checkpoint-000001", output)
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-000001"]


@pytest.mark.slow
def test_a_lower_learning_rate_holds_after_a_resume(folders, tmp_path):
    run(command("train_icmd.py", folders, tmp_path, max_train_steps=1, learning_rate=1e-3), tmp_path / "log")
    output = run(command("train_icmd.py", folders, tmp_path, max_train_steps=2, learning_rate=1e-5), tmp_path / "log")
    assert "going on from" in output
    assert [losses["lr"] for losses in logged_losses(output)] == pytest.approx([1e-5])


@pytest.mark.slow
def test_starting_anew_beside_later_checkpoints_is_refused(folders, tmp_path):
    run(command("train_icmd.py", folders, tmp_path), tmp_path / "log")
    anew = command("train_icmd.py", folders, tmp_path, resume_from_checkpoint="none")
    assert "holds checkpoint-000002, which is later" in run(anew, tmp_path / "log", fails=True)
    assert (tmp_path / "checkpoint-000002").exists()


@pytest.mark.parametrize("data", ["latents", "videos"])
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(folders, tmp_path, data):
    settings = {}
    if data == "videos":
        (tmp_path / "videos").mkdir()
        write_video(tmp_path / "videos" / "0.mp4")
        settings = {
            "precomputed_data_dir": None,
            "train_data_dir": tmp_path / "videos",
            "cache_dir": tmp_path / "cache",
        }
    output = run(command("train_icmd.py", folders, tmp_path / "none", dry_run=True, **settings), tmp_path / "log")
    assert "ICD: student down_blocks.2.attentions.1, teacher down_blocks.2.attentions.1" in output
    assert '"lambda_icd": 0.1' in output
    assert not (tmp_path / "none").exists()


def test_a_yaml_file_gives_settings_that_flags_override(folders, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("lambda_icd: 0.5\nlambda_mca: 0.25\n")
    script, *flags = command("train_icmd.py", folders, tmp_path / "none", dry_run=True, lambda_mca=2)
    output = run([script, config, *flags], tmp_path / "log")
    assert '"lambda_icd": 0.5' in output and '"lambda_mca": 2.0' in output


def test_a_value_in_a_yaml_file_is_checked_as_a_flag_is_and_no_is_not_false(folders, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("mixed_precision: no\nvalidation_steps: 7\nuse_ema: true\nrank: null\n")
    script, *flags = command("train_icmd.py", folders, tmp_path / "none", dry_run=True)
    output = run([script, config, *flags], tmp_path / "log")
    for setting in ('"mixed_precision": "no"', '"validation_steps": 7', '"use_ema": true', '"rank": null'):
        assert setting in output
    config.write_text("generator_loss: hing\n")
    assert "invalid choice: 'hing'" in run([script, config, *flags], tmp_path / "log", fails=True)


def test_an_unknown_setting_in_a_yaml_file_is_refused(folders, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("lambda_idc: 0.5\n")
    script, *flags = command("train_icmd.py", folders, tmp_path / "none", dry_run=True)
    assert "settings that do not exist: lambda_idc" in run([script, config, *flags], tmp_path / "log", fails=True)


def test_a_student_of_another_teacher_is_refused(folders, tmp_path):
    teacher, student, latents = folders
    config = json.loads((student / "unet" / "config.json").read_text()) | {"num_attention_heads": [2, 2, 2]}
    other = tmp_path / "other"
    shutil.copytree(student, other)
    (other / "unet" / "config.json").write_text(json.dumps(config))
    output = run(command("train_icmd.py", (teacher, other, latents), tmp_path / "out"), tmp_path / "log", fails=True)
    assert "makes a U-Net with `num_attention_heads`" in output
    assert "Use the teacher that it was pruned from" in output
