"""What version 0.1.0 wrote opens, prunes, trains and resumes: see README.md."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scripts_run import command_of, run

from vdmini_diffusers import VDMiniT2VPipeline, prune_pipeline


STUDENT_WEIGHTS = "unet/diffusion_pytorch_model.fp16.safetensors"
TRAINED_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """The archive's folders: teacher, student, latents, trained."""
    folder = tmp_path_factory.mktemp("v0_1_0")
    with tarfile.open(Path(__file__).with_name("v0_1_0.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder


def train(old: Path, output_dir: Path) -> str:
    """Run the command that `write_folders.py` ran; returns what it printed."""
    settings = {
        "task": "t2v",
        "pretrained_teacher_model_name_or_path": old / "teacher",
        "variant": "fp16",
        "pretrained_student_model_name_or_path": old / "student",
        "student_variant": "fp16",
        "precomputed_data_dir": old / "latents",
        "output_dir": output_dir,
        "max_train_steps": 2,
        "train_batch_size": 1,
        "learning_rate": 1e-3,
        "checkpointing_steps": 1,
        "discriminator_width": 2,
        "mca_start_step": 0,
        "ode_teacher_model_name_or_path": "teacher",
        "critic_backbone": "teacher",
        "critic_warmup_steps": 0,
    }
    return run(command_of("train_icmd.py", settings), output_dir.with_suffix(".log"))


def difference_to_the_old_training(old: Path, trained: Path) -> float:
    """How far apart the weights are, in all, as a part of how far the old training moved them.

    Not the largest one: by Adam, a gradient of nothing but rounding moves a weight as far as any other.
    """
    before, expected, weights = (
        torch.cat([tensor.float().flatten() for _, tensor in sorted(load_file(file).items())])
        for file in (old / "student" / STUDENT_WEIGHTS, old / "trained" / TRAINED_WEIGHTS, trained / TRAINED_WEIGHTS)
    )
    assert (expected - before).abs().max() > 1e-3
    return ((weights - expected).norm() / (expected - before).norm()).item()


@pytest.mark.parametrize("name, variant", [("teacher", "fp16"), ("student", "fp16"), ("trained", None)])
def test_its_pipelines_open_and_sample(old, name, variant):
    pipe = VDMiniT2VPipeline.from_pretrained(old / name, variant=variant, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe("a cat", height=16, width=16, num_frames=2, num_inference_steps=1, output_type="np").frames
    assert frames.shape == (1, 2, 16, 16, 3) and frames.std() > 0


def test_its_teacher_is_pruned_to_the_bytes_of_its_student(old, tmp_path):
    prune_pipeline(old / "teacher", tmp_path / "student", variant="fp16")
    ours, theirs = (folder / STUDENT_WEIGHTS for folder in (tmp_path / "student", old / "student"))
    assert ours.read_bytes() == theirs.read_bytes()
    for name in ("unet/pruning_plan.json", "model_index.json"):
        files = (json.loads((folder / name).read_text()) for folder in (tmp_path / "student", old / "student"))
        ours, theirs = ({**content, "_diffusers_version": None} for content in files)
        assert ours == theirs


def test_its_student_trains_to_nearly_the_weights_that_it_trained_to(old, tmp_path):
    train(old, tmp_path / "trained")
    # New heads are silent now, and so contribute nothing to the first of the two steps.
    assert difference_to_the_old_training(old, tmp_path / "trained") < 0.1


@pytest.mark.slow
def test_its_checkpoint_is_gone_on_from_to_the_weights_that_it_trained_to(old, tmp_path):
    checkpoint = tmp_path / "trained" / "checkpoint-000001"
    shutil.copytree(old / "trained" / "checkpoint-000001", checkpoint)
    assert f"going on from {checkpoint}" in train(old, tmp_path / "trained")
    assert difference_to_the_old_training(old, tmp_path / "trained") < 0.01
