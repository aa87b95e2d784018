"""The training scripts as users start them: processes of their own, on tiny components."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from written_latents import write_latents

from vdmini_diffusers import VDMiniI2VPipeline
from vdmini_diffusers.prune_pipeline import prune_svd_pipeline


ROOT = Path(__file__).parents[2]
CPU = os.environ | {"ACCELERATE_USE_CPU": "true"}  # without it, accelerate joins processes on GPUs only
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(teacher_folder, tmp_path_factory):
    """Teacher, pruned student, precomputed latents."""
    folder = tmp_path_factory.mktemp("icmd")
    student = prune_svd_pipeline(teacher_folder, folder / "student")
    return teacher_folder, student, write_latents(folder / "latents", num_samples=8)


def command(script: str, folders, output_dir: Path, *flags: object, processes: int = 1) -> list[str]:
    teacher, student, latents = folders
    models = (
        ["--pretrained_model_name_or_path", teacher]
        if script == "train_sf_v.py"
        else ["--pretrained_teacher_model_name_or_path", teacher, "--pretrained_student_model_name_or_path", student]
    )
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    settings = {
        "precomputed_data_dir": latents,
        "output_dir": output_dir,
        "max_train_steps": 2,
        "gradient_accumulation_steps": 1,
        "checkpointing_steps": 1,
        "logging_steps": 1,
        "discriminator_width": 32,
    }
    if script == "train_icmd.py":
        settings["mca_start_step"] = 1
    given = {flag.removeprefix("--") for flag in map(str, flags) if flag.startswith("--")}
    chosen = [part for name, value in settings.items() if name not in given for part in (f"--{name}", value)]
    return [str(part) for part in [*launch, ROOT / "training" / script, *models, *chosen, *flags]]


def run(arguments: list[str]) -> str:
    done = subprocess.run(arguments, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, env=CPU)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert set(a) == set(b)
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """The student after four steps without a stop."""
    output_dir = tmp_path_factory.mktemp("trained")
    run(command("train_icmd.py", folders, output_dir, "--max_train_steps", 4, "--use_ema", "--learning_rate", 1e-3))
    return output_dir


def test_a_trained_student_is_a_pipeline_with_its_plan(folders, trained):
    pipe = VDMiniI2VPipeline.from_pretrained(trained)
    assert largest_difference(pipe.unet.state_dict(), weights(folders[1])) > 0
    plans = [(folder / "unet" / "pruning_plan.json").read_text() for folder in (trained, folders[1])]
    assert plans[0] == plans[1]
    assert json.loads((trained / "training.json").read_text())["lambda_icd"] == 0.1


def test_killed_in_a_step_or_a_checkpoint_the_same_command_ends_bit_equal(folders, trained, tmp_path):
    arguments = command(
        "train_icmd.py", folders, tmp_path, "--max_train_steps", 4, "--use_ema", "--learning_rate", 1e-3
    )
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, start_new_session=True
    )
    while process.poll() is None and not list(tmp_path.glob("checkpoint-*")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / WEIGHTS).exists()
    # As if the kill had come while the newest checkpoint was written.
    whole = sorted(tmp_path.glob("checkpoint-*"))[-1]
    half = tmp_path / "checkpoint-000003"
    if whole != half:
        shutil.copytree(whole, half)
    with (half / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    output = run(arguments)
    if whole != half:
        assert re.search(r"checkpoint-000003 is skipped: model.safetensors has 1000 bytes", output)
        assert "going on from" in output
    assert largest_difference(weights(tmp_path), weights(trained)) == 0


def logged_losses(output: str) -> list[dict[str, float]]:
    found = re.findall(r"step (\d+): (\{.*\})", output)
    return [json.loads(values.replace("'", '"')) for _, values in found]


def test_two_processes_have_the_losses_of_one_with_the_same_global_batch(folders, tmp_path):
    one = run(command("train_icmd.py", folders, tmp_path / "one", "--train_batch_size", 2))
    two = run(command("train_icmd.py", folders, tmp_path / "two", "--train_batch_size", 1, processes=2))
    losses = logged_losses(one)
    assert len(losses) == 2 and set(losses[1]) > {"reconstruction", "icd", "mca", "sf_v", "mca_discriminator"}
    for a, b in zip(losses, logged_losses(two), strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-3


def test_sf_v_trains_the_teacher_itself_to_one_step(folders, tmp_path):
    run(command("train_sf_v.py", folders, tmp_path))
    pipe = VDMiniI2VPipeline.from_pretrained(tmp_path)
    assert type(pipe.unet).__name__ == "UNetSpatioTemporalConditionModel"
    assert largest_difference(pipe.unet.state_dict(), weights(folders[0])) > 0


def test_lora_trains_few_weights_and_is_saved_both_alone_and_fused(folders, tmp_path):
    output = run(command("train_icmd.py", folders, tmp_path, "--rank", 2, "--learning_rate", 1e-2))
    assert int(re.search(r"trained parameters of the U-Net: ([\d,]+)", output)[1].replace(",", "")) < 100_000
    assert list((tmp_path / "lora").glob("*.safetensors"))
    after, before = weights(tmp_path), weights(folders[1])
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and all(re.search(r"to_(q|k|v|out\.0)\.weight", name) for name in changed)


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(folders, tmp_path):
    output = run(command("train_icmd.py", folders, tmp_path / "none", "--dry_run"))
    assert "ICD: student down_blocks.2.attentions.1, teacher down_blocks.2.attentions.1" in output
    assert '"lambda_icd": 0.1' in output
    assert not (tmp_path / "none").exists()


def test_a_yaml_file_gives_settings_that_flags_override(folders, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("lambda_icd: 0.5\nlambda_mca: 0.25\n")
    arguments = command("train_icmd.py", folders, tmp_path / "none", "--dry_run", "--lambda_mca", 2)
    arguments.insert(2, str(config))
    output = run(arguments)
    assert '"lambda_icd": 0.5' in output and '"lambda_mca": 2.0' in output


def test_a_student_of_another_teacher_is_refused_before_any_data_is_read(folders, tmp_path):
    _, student, _ = folders
    config = json.loads((student / "unet" / "config.json").read_text()) | {"num_attention_heads": [2, 2, 2]}
    other = tmp_path / "other"
    shutil.copytree(student, other)
    (other / "unet" / "config.json").write_text(json.dumps(config))
    arguments = command("train_icmd.py", (folders[0], other, tmp_path / "no-data"), tmp_path / "out")
    done = subprocess.run(arguments, text=True, capture_output=True, cwd=ROOT)
    assert done.returncode != 0
    assert "makes a U-Net with `num_attention_heads`" in done.stderr
    assert "Use the teacher that it was pruned from" in done.stderr
