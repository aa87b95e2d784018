"""What is given instead of a teacher's pipeline folder: one sentence says what it is, and what to do."""

import shutil

import pytest
import safetensors.torch
import torch

from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.families.videocrafter import VIDEOCRAFTER
from vdmini_diffusers.pruning import VDMINI_UNET
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline, survey_pipeline
from vdmini_diffusers.pruning.prune_vae_decoder import prune_vae_decoder
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError


FAMILY = pytest.mark.parametrize("family", [None, SVD], ids=["any-family", "svd"])


def refused(path, match, family=None):
    for verb in (lambda: prune_pipeline(path, path.parent / "out", family=family), lambda: survey_pipeline(path)):
        with pytest.raises(CheckpointError, match=match):
            verb()
    assert not (path.parent / "out").exists()


@FAMILY
@pytest.mark.parametrize("name", ["svd_xt.safetensors", "model.ckpt"])
def test_an_original_single_file(tmp_path, name, family):
    safetensors.torch.save_file({"model.diffusion_model.x": torch.ones(1)}, tmp_path / name)
    refused(tmp_path / name, f"{name} is a single file.*model_index.json.*stabilityai/.*convert_t2v_turbo", family)


@FAMILY
def test_a_bare_unet_s_folder(teacher, family):
    refused(teacher / "unet", r"unet is a model alone \('UNetSpatioTemporal.*model_index.json is missing", family)


def test_a_vae_s_folder_is_sent_to_its_own_script(teacher):
    refused(teacher / "vae", "conversion/prune_vae_decoder.py")


def test_a_transformers_model(teacher):
    refused(teacher / "image_encoder", "is a model alone .*CLIPVisionModelWithProjection")


def test_a_lora(tmp_path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "pytorch_lora_weights.safetensors").touch()
    refused(tmp_path / "lora", "is a LoRA.*Merge it")


def test_a_folder_of_original_files_and_one_of_anything(tmp_path):
    (tmp_path / "files").mkdir()
    refused(tmp_path / "files", "a folder of another kind")
    (tmp_path / "files" / "svd.safetensors").touch()
    refused(tmp_path / "files", "a folder of weight files .'svd.safetensors'")


def test_a_broken_link(tmp_path):
    (tmp_path / "teacher").symlink_to("nowhere")
    refused(tmp_path / "teacher", "a broken link")


def test_a_name_that_no_file_can_have(tmp_path):
    with pytest.raises(ValueError, match="neither a folder nor the id"):
        prune_pipeline("a\0b", tmp_path / "out")


def test_the_folder_of_another_family(t2v_teacher_folder, tmp_path):
    for verb in (lambda **k: prune_pipeline(t2v_teacher_folder, tmp_path / "out", **k),):
        with pytest.raises(CheckpointError, match=f"This is {VIDEOCRAFTER.name}, not {SVD.name}: use the script"):
            verb(family=SVD)


@pytest.mark.parametrize("kind", ["i2v", "t2v"], indirect=True)
def test_a_student_given_again(kind, tmp_path):
    student = prune_pipeline(kind.folder, tmp_path / "student")
    with pytest.raises(CheckpointError, match=r"student already|pruned already"):
        prune_pipeline(student, tmp_path / "again")


def test_a_folder_without_a_vae_in_the_subfolder(teacher):
    with pytest.raises(CheckpointError, match=r"unet/vae/config.json is missing.*--subfolder"):
        prune_vae_decoder(teacher / "unet", teacher.parent / "out")


class TestOutputApartFromInputs:
    def test_the_plan_s_file_is_not_replaced(self, teacher_folder, tmp_path):
        old = tmp_path / "old"
        shutil.copytree(teacher_folder, old)
        plan = old / "plan.json"
        plan.write_text(VDMINI_UNET.to_json_string())
        with pytest.raises(ValueError, match=r"holds the plan, .*plan\.json"):
            prune_pipeline(teacher_folder, old, plan, overwrite=True)
        assert plan.exists()

    def test_an_output_within_the_teacher(self, teacher):
        with pytest.raises(ValueError, match="lies in the"):
            prune_pipeline(teacher, teacher / "student")
        with pytest.raises(ValueError, match="lies in the"):
            prune_vae_decoder(teacher, teacher / "student")
        assert not (teacher / "student").exists()

    def test_a_plan_by_name_is_no_input(self, teacher_folder, tmp_path):
        student = prune_pipeline(teacher_folder, tmp_path / "vdmini", "vdmini")
        assert (student / "unet" / "pruning_plan.json").read_text() == VDMINI_UNET.to_json_string()
