"""A saved folder, and the two ways it opens: with our package, and with the code files beside the weights."""

import filecmp
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableVideoDiffusionPipeline
from fresh_python import refusal, run_python, video_digest
from tiny import student_of

from vdmini_diffusers import VDMiniI2VPipeline, VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.models import unet_spatio_temporal_vdmini
from vdmini_diffusers.pipelines import pipeline_vdmini_i2v
from vdmini_diffusers.pruning import UNetPruningPlan


CODE = {
    "pipeline_vdmini_i2v.py": pipeline_vdmini_i2v.__file__,
    "unet/unet_spatio_temporal_vdmini.py": unet_spatio_temporal_vdmini.__file__,
}


@pytest.fixture
def folder(student_folder, tmp_path):
    """A copy of the student's folder, to spoil."""
    return Path(shutil.copytree(student_folder, tmp_path / "copy"))


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def assert_runs_installed_code(pipe):
    assert type(pipe) is VDMiniI2VPipeline
    assert type(pipe.unet) is VDMiniUNetSpatioTemporalConditionModel


def assert_loads(cls, folder, **arguments):
    assert type(cls.from_pretrained(folder, **arguments)).__name__ == "VDMiniI2VPipeline"


def test_a_saved_folder_holds_the_code_files_byte_for_byte_and_its_index_names_them(student_folder):
    assert files_of(student_folder) == [
        "feature_extractor/preprocessor_config.json",
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
        "model_index.json",
        "pipeline_vdmini_i2v.py",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/unet_spatio_temporal_vdmini.py",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    for path, source in CODE.items():
        assert filecmp.cmp(student_folder / path, source, shallow=False)
    index = json.loads((student_folder / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_vdmini_i2v", "VDMiniI2VPipeline"]
    assert index["unet"] == ["unet_spatio_temporal_vdmini", "VDMiniUNetSpatioTemporalConditionModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKLTemporalDecoder"]
    # Without torchvision its class here is CLIPImageProcessorPil, which older versions of transformers lack.
    assert index["feature_extractor"] == ["transformers", "CLIPImageProcessor"]


def test_the_package_opens_the_folder_without_a_trust_flag_and_without_touching_its_code_files(folder):
    for path in CODE:
        (folder / path).write_text("raise SystemExit('the code of the folder was run')")
    assert_runs_installed_code(VDMiniI2VPipeline.from_pretrained(folder))
    assert_runs_installed_code(VDMiniI2VPipeline.from_pretrained(folder, trust_remote_code=True))


def test_a_loaded_pipeline_makes_the_videos_of_the_saved_one(student_pipe, student_folder):
    pipe = VDMiniI2VPipeline.from_pretrained(student_folder, optimize=False)
    assert video_digest(pipe) == video_digest(student_pipe)


def test_from_pretrained_takes_what_that_of_the_stock_pipeline_takes(folder, teacher_pipe):
    half = VDMiniI2VPipeline.from_pretrained(folder, torch_dtype=torch.float16)
    assert {model.dtype for model in (half.unet, half.vae, half.image_encoder)} == {torch.float16}
    half.save_pretrained(folder, variant="fp16")
    for model in ("unet", "vae"):  # only the variant is left
        (folder / model / "diffusion_pytorch_model.safetensors").unlink()
    assert_runs_installed_code(VDMiniI2VPipeline.from_pretrained(folder, variant="fp16"))
    by_hand = VDMiniI2VPipeline.from_pretrained(folder, variant="fp16", unet=half.unet)
    assert by_hand.unet is half.unet
    # Also a teacher's, and the folder need not have one.
    shutil.rmtree(folder / "unet")
    by_hand = VDMiniI2VPipeline.from_pretrained(folder, variant="fp16", unet=teacher_pipe.unet)
    assert by_hand.unet is teacher_pipe.unet


def test_a_teachers_folder_opens_too(teacher_folder, teacher_pipe):
    pipe = VDMiniI2VPipeline.from_pretrained(teacher_folder)
    assert type(pipe) is VDMiniI2VPipeline
    assert type(pipe.unet) is type(teacher_pipe.unet)


class OwnPipeline(VDMiniI2VPipeline):
    """A user's."""


def test_a_subclass_opens_the_folder_as_well(student_folder):
    pipe = OwnPipeline.from_pretrained(student_folder)
    assert type(pipe) is OwnPipeline
    assert type(pipe.unet) is VDMiniUNetSpatioTemporalConditionModel


@pytest.mark.parametrize("cls", [DiffusionPipeline, StableVideoDiffusionPipeline])
def test_a_class_of_diffusers_opens_the_folder_with_the_trust_flag_only_and_runs_its_code_files(cls, student_folder):
    assert "trust_remote_code" in refusal(cls.from_pretrained, student_folder)
    pipe = cls.from_pretrained(student_folder, trust_remote_code=True)
    assert type(pipe).__module__ == "diffusers_modules.local.pipeline_vdmini_i2v"
    assert type(pipe.unet).__module__ == "diffusers_modules.local.unet_spatio_temporal_vdmini"


def test_code_that_the_package_does_not_have_needs_the_trust_flag(folder):
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["unet_other", "OtherUNet"]
    source = (folder / "unet/unet_spatio_temporal_vdmini.py").read_text()
    (folder / "unet/unet_other.py").write_text(source.replace("class VDMiniUNetSpatioTemporal", "class OtherUNet#"))
    (folder / "model_index.json").write_text(json.dumps(index))
    message = refusal(VDMiniI2VPipeline.from_pretrained, folder)
    assert "unet_other.py" in message and "trust_remote_code" in message
    # A name that the package has, for a file that it has not, is not enough.
    index["unet"] = ["unet_other", "VDMiniUNetSpatioTemporalConditionModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert "trust_remote_code" in refusal(VDMiniI2VPipeline.from_pretrained, folder)


def test_a_folder_of_another_custom_pipeline_is_not_taken_for_ours(folder):
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = ["pipeline_other", "OtherPipeline"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "pipeline_other.py").write_text("class OtherPipeline: pass")
    assert "pipeline_other.py" in refusal(VDMiniI2VPipeline.from_pretrained, folder)


@pytest.mark.parametrize("cls", [VDMiniI2VPipeline, DiffusionPipeline])
def test_weights_of_the_teacher_in_a_students_folder_are_refused(cls, folder, teacher_folder, teacher_pipe):
    weights = "unet/diffusion_pytorch_model.safetensors"
    trust = {"trust_remote_code": cls is DiffusionPipeline}
    shutil.copyfile(teacher_folder / weights, folder / weights)
    assert "shape" in refusal(cls.from_pretrained, folder, **trust)  # diffusers' own check

    # Where all shapes agree, as without the mid block only, diffusers would drop what the student does not have.
    plan = replace(UNetPruningPlan.keep_everything(teacher_pipe.unet.config), keep_mid=False)
    student_of(teacher_pipe.unet, plan).save_pretrained(folder / "unet")
    assert_loads(cls, folder, **trust)
    shutil.copyfile(teacher_folder / weights, folder / weights)
    message = refusal(cls.from_pretrained, folder, **trust)
    assert "does not fit VDMiniUNetSpatioTemporalConditionModel" in message
    assert "unexpected tensors (mid_block" in message


def test_weights_of_a_student_for_the_config_of_a_teacher_are_refused(folder):
    """Where diffusers would fill the mid block at random."""
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps({**config, "mid_block_type": "UNetMidBlockSpatioTemporal"}))
    assert "missing tensors (mid_block" in refusal(VDMiniI2VPipeline.from_pretrained, folder)


def test_saving_a_loaded_pipeline_gives_the_same_folder_also_into_itself(folder, tmp_path):
    pipe = VDMiniI2VPipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path / "again")
    pipe.save_pretrained(folder)
    for copy in (tmp_path / "again", folder):
        assert files_of(copy) == files_of(tmp_path / "again")
        for path in files_of(copy):
            if not path.endswith("config.json"):  # where `_name_or_path` goes
                assert filecmp.cmp(copy / path, tmp_path / "again" / path, shallow=False), path
    assert_runs_installed_code(VDMiniI2VPipeline.from_pretrained(folder))
    again = VDMiniI2VPipeline.from_pretrained(tmp_path / "again")
    assert video_digest(again) == video_digest(pipe)


def test_model_card_and_pruning_plan_travel_with_a_pipeline_from_a_folder(folder, tmp_path, teacher_folder):
    (folder / "README.md").write_text("the card")
    (folder / "unet/pruning_plan.json").write_text("the plan")
    (folder / "unet/pruning_provenance.json").write_text("the provenance")
    pipe = VDMiniI2VPipeline.from_pretrained(folder)
    (tmp_path / "target/unet").mkdir(parents=True)
    (tmp_path / "target/README.md").write_text("a card that was there")
    (tmp_path / "target/unet/pruning_plan.json").write_text("the plan of other weights")
    for target, card in (("new", "the card"), ("target", "a card that was there")):
        pipe.save_pretrained(tmp_path / target)
        assert (tmp_path / target / "README.md").read_text() == card
        assert (tmp_path / target / "unet/pruning_plan.json").read_text() == "the plan"
        assert (tmp_path / target / "unet/pruning_provenance.json").read_text() == "the provenance"
    # The plan belongs to the U-Net.
    teacher = StableVideoDiffusionPipeline.from_pretrained(teacher_folder)
    VDMiniI2VPipeline.from_pretrained(folder, unet=teacher.unet).save_pretrained(tmp_path / "teacher")
    assert "unet/pruning_plan.json" not in files_of(tmp_path / "teacher")


def test_an_interrupted_save_leaves_the_old_index_and_nothing_half_written(student_pipe, folder):
    index = (folder / "model_index.json").read_bytes()
    before = files_of(folder)
    (folder / "pipeline_vdmini_i2v.py").unlink()
    (folder / "pipeline_vdmini_i2v.py").mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError):
        student_pipe.save_pretrained(folder)
    (folder / "pipeline_vdmini_i2v.py").rmdir()
    assert (folder / "model_index.json").read_bytes() == index
    assert set(files_of(folder)) == set(before) - {"pipeline_vdmini_i2v.py"}


def test_json_of_another_name_is_only_json(student_pipe, tmp_path):
    student_pipe.to_json_file(tmp_path / "config.json")
    assert files_of(tmp_path) == ["config.json"]


def test_two_folders_open_in_one_process_each_with_its_own_weights(student_pipe, student_folder, tmp_path):
    for parameter in student_pipe.unet.conv_out.parameters():
        parameter.data *= 2
    student_pipe.save_pretrained(tmp_path / "second")
    folders = student_folder, tmp_path / "second"
    digests = [video_digest(VDMiniI2VPipeline.from_pretrained(folder, optimize=False)) for folder in folders]
    assert digests[0] != digests[1]
    pipes = [DiffusionPipeline.from_pretrained(folder, trust_remote_code=True) for folder in folders]
    assert [video_digest(pipe) for pipe in pipes] == digests


def test_without_the_package_the_folder_opens_by_its_code_files_and_saves_to_one_that_opens_both_ways(
    student_folder, tmp_path
):
    found = run_python(
        """
import json, sys
from fresh_python import DiffusionPipeline, refusal, video_digest

folder, again = sys.argv[1:]
message = refusal(DiffusionPipeline.from_pretrained, folder)
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
pipe.save_pretrained(again)
reopened = DiffusionPipeline.from_pretrained(again, trust_remote_code=True)
print(json.dumps([message, type(pipe).__name__, video_digest(pipe), video_digest(reopened)]))
""",
        student_folder,
        tmp_path / "again",
        home=tmp_path,
        package=False,
    )
    digest = video_digest(VDMiniI2VPipeline.from_pretrained(student_folder, optimize=False))
    assert "trust_remote_code" in found[0]
    assert found[1:] == ["VDMiniI2VPipeline", digest, digest]
    again = tmp_path / "again"
    assert files_of(again) == files_of(student_folder)
    index = json.loads((again / "model_index.json").read_text())
    assert index.pop("_name_or_path") == str(student_folder)  # as diffusers writes it
    assert index == json.loads((student_folder / "model_index.json").read_text())
    for path, source in CODE.items():
        assert filecmp.cmp(again / path, source, shallow=False)
    pipe = VDMiniI2VPipeline.from_pretrained(again, optimize=False)
    assert_runs_installed_code(pipe)
    assert video_digest(pipe) == digest
