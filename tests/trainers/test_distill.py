"""`distill` as a function: one step on tiny models, of both tasks, and what it refuses before any step."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import student_of
from tiny_text_to_video import tiny_t2v_pipeline, tiny_t2v_teacher
from written_latents import write_latents, write_text_to_video_latents

from vdmini_diffusers import VDMiniI2VPipeline, VDMiniT2VPipeline, distill
from vdmini_diffusers.pruning import VDMINI_UNET
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FEW = {
    "max_train_steps": 1,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "discriminator_width": 32,
    "critic_backbone": "teacher",
}
CARD = "---\nlicense: apache-2.0\n---\n# Student\n<!-- training -->pruned and not yet trained<!-- /training -->\n"


@pytest.fixture(scope="module")
def i2v(teacher_folder, tmp_path_factory):
    """Teacher, pruned student, precomputed latents."""
    folder = tmp_path_factory.mktemp("i2v")
    student = prune_pipeline(teacher_folder, folder / "student")
    return teacher_folder, Path(student), write_latents(folder / "latents", num_samples=2)


@pytest.fixture(scope="module")
def t2v(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t2v")
    teacher = tiny_t2v_teacher()
    tiny_t2v_pipeline(teacher).save_pretrained(folder / "teacher")
    tiny_t2v_pipeline(student_of(teacher, VDMINI_UNET)).save_pretrained(folder / "student")
    (folder / "student" / "unet" / "pruning_plan.json").write_text(VDMINI_UNET.to_json_string())
    (folder / "student" / "unet" / "pruning_provenance.json").write_text("{}")
    (folder / "student" / "README.md").write_text(CARD)
    return folder / "teacher", folder / "student", write_text_to_video_latents(folder / "latents", num_samples=2)


def moved(a: Path, b: Path) -> bool:
    before, after = load_file(a / WEIGHTS), load_file(b / WEIGHTS)
    assert set(before) == set(after)
    return any(not torch.equal(before[name], after[name]) for name in before)


def test_one_step_of_image_to_video(i2v, tmp_path):
    teacher, student, latents = i2v
    out = distill(teacher, student, tmp_path / "out", precomputed_data_dir=str(latents), lambda_mca=0.5, **FEW)
    assert out == tmp_path / "out" and moved(student, out)
    assert json.loads((out / "training.json").read_text())["lambda_mca"] == 0.5
    assert VDMiniI2VPipeline.from_pretrained(out)
    # What is published names no folder of this machine, and other users may read it.
    umask = os.umask(0o022)
    os.umask(umask)
    published = [path for path in out.rglob("*") if path.is_file() and "checkpoint-" not in str(path)]
    assert (out / WEIGHTS) in published
    for path in published:
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask or path.name.startswith("."), path
        assert path.suffix == ".safetensors" or str(teacher.parent) not in path.read_text(), path
    assert {path.name for path in out.iterdir() if path.name.startswith(".")} == {".training.lock"}


def test_one_step_of_text_to_video(t2v, tmp_path):
    teacher, student, latents = t2v
    settings = {**FEW, "ode_teacher_model_name_or_path": "teacher", "w_max": 7.0}
    out = distill(str(teacher), str(student), str(tmp_path), precomputed_data_dir=str(latents), **settings)
    assert moved(student, out)
    assert json.loads((out / "training.json").read_text())["w_max"] == 7.0
    assert VDMiniT2VPipeline.from_pretrained(out)


def test_a_setting_that_does_not_exist_is_a_type_error(i2v, t2v, tmp_path):
    with pytest.raises(TypeError, match="`distill` has no setting 'lambda_idc'"):
        distill(*i2v[:2], tmp_path, precomputed_data_dir=str(i2v[2]), lambda_idc=1.0)
    with pytest.raises(TypeError, match="`distill` has no setting 'w_max'"):  # of the other task
        distill(*i2v[:2], tmp_path, precomputed_data_dir=str(i2v[2]), w_max=7.0)


@pytest.mark.parametrize("role", [0, 1, 2])
def test_no_input_is_overwritten(i2v, role):
    before = sorted(path for path in Path(i2v[role]).rglob("*"))
    with pytest.raises(ValueError, match="choose another folder"):
        distill(*i2v[:2], i2v[role], precomputed_data_dir=str(i2v[2]), **FEW)
    assert sorted(path for path in Path(i2v[role]).rglob("*")) == before


@pytest.mark.parametrize("name", ["README.md", "unet/pruning_plan.json", "unet/pruning_provenance.json"])
def test_a_student_without_one_of_its_files_is_refused_at_the_start(i2v, tmp_path, name):
    student = shutil.copytree(i2v[1], tmp_path / "student")
    (student / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        distill(i2v[0], student, tmp_path / "out", precomputed_data_dir=str(i2v[2]), **FEW)
    assert not (tmp_path / "out").exists()


def test_a_push_that_cannot_succeed_is_refused_before_a_model_is_loaded(i2v, tmp_path):
    with pytest.raises(OSError, match="`--push_to_hub`: out cannot be written to"):
        distill(*i2v[:2], tmp_path / "out", precomputed_data_dir=str(i2v[2]), push_to_hub=True, **FEW)
    assert not (tmp_path / "out").exists()
