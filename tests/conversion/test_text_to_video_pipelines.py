"""Text-to-video teachers, ours and stock ones, become students that equal them without the blocks, bit for bit."""

import json
import os
import shutil

import forked_scripts
import huggingface_hub
import pytest
import safetensors.torch
import torch
from checkout import ROOT
from diffusers import DiffusionPipeline, TextToVideoSDPipeline, UNet3DConditionModel
from tiny import cut_by_hand, randomise
from tiny_text_to_video import (
    CLIP_EXCERPT,
    STOCK_CONFIG,
    VIDEOCRAFTER2,
    tiny_t2v_components,
    tiny_t2v_inputs,
    tiny_t2v_pipeline,
    tiny_t2v_teacher,
)

from vdmini_diffusers import VDMiniT2VPipeline, VDMiniUNet3DConditionModel, VDMiniVideoCrafterDDIMScheduler
from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.families.videocrafter import VIDEOCRAFTER
from vdmini_diffusers.pruning import VDMINI_UNET
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline, survey_pipeline
from vdmini_diffusers.serialization.hashes import sha256_of
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError


SCRIPT = ROOT / "conversion/convert_t2v_to_vdmini.py"
UNET_FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def modelscope_folder(tmp_path_factory):
    """A tiny `TextToVideoSDPipeline` with every tensor random; its tokenizer as the Hub has it, in two files."""
    folder = tmp_path_factory.mktemp("modelscope") / "tiny-modelscope"
    unet = randomise(UNet3DConditionModel(**STOCK_CONFIG)).eval()
    TextToVideoSDPipeline(**tiny_t2v_components(unet)).save_pretrained(folder)
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(CLIP_EXCERPT / name, folder / "tokenizer" / name)
    config = {"tokenizer_class": "CLIPTokenizer", "pad_token": "!"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def student_folder(t2v_teacher_folder, tmp_path_factory):
    return prune_pipeline(t2v_teacher_folder, tmp_path_factory.mktemp("students") / "tiny-vdmini")


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@torch.no_grad()
def check_unet(teacher, student_folder):
    """Tensors of the student's file, and what it computes, against the teacher's with its blocks cut out by hand."""
    tensors = teacher.state_dict()
    written = safetensors.torch.load_file(student_folder / "unet" / UNET_FILE)
    for new, old in VDMINI_UNET.weight_map(written).items():
        assert torch.equal(written[new], tensors[old]), new
    student = VDMiniUNet3DConditionModel.from_pretrained(student_folder / "unet").eval()
    inputs = tiny_t2v_inputs(student)
    expected = cut_by_hand(teacher, VDMINI_UNET)(**inputs).sample
    assert expected.std() > 0.01
    torch.testing.assert_close(student(**inputs).sample, expected, rtol=1e-5, atol=1e-6)


def test_a_student_of_t2v_turbo_is_the_teacher_without_the_blocks(t2v_teacher_folder, student_folder):
    check_unet(VDMiniUNet3DConditionModel.from_pretrained(t2v_teacher_folder / "unet").eval(), student_folder)


def test_a_student_of_modelscope_is_the_teacher_without_the_blocks(modelscope_folder, tmp_path):
    folder = prune_pipeline(modelscope_folder, tmp_path / "student")
    check_unet(UNet3DConditionModel.from_pretrained(modelscope_folder / "unet").eval(), folder)
    teacher, student = files_of(modelscope_folder), files_of(folder)
    others = [name for name in teacher if "/" in name and not name.startswith("unet/")]
    assert "tokenizer/merges.txt" in others
    assert {name: student[name] for name in others} == {name: teacher[name] for name in others}
    pipe = VDMiniT2VPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    video = pipe("A corgi surfs!", height=16, width=16, num_frames=2, num_inference_steps=2, output_type="pt").frames
    assert video.shape == (1, 2, 3, 16, 16) and video.isfinite().all()


def test_a_student_of_videocrafter2_has_its_scheduler_with_the_code_of_the_package(tmp_path):
    tiny_t2v_pipeline(tiny_t2v_teacher(**VIDEOCRAFTER2)).save_pretrained(tmp_path / "teacher")
    (tmp_path / "teacher/scheduler/scheduling_ddim_videocrafter_vdmini.py").write_text("raise SystemExit('run')")
    folder = prune_pipeline(tmp_path / "teacher", tmp_path / "student")
    assert type(VDMiniT2VPipeline.from_pretrained(folder).scheduler) is VDMiniVideoCrafterDDIMScheduler
    trusted = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert type(trusted.scheduler).__module__ == "diffusers_modules.local.scheduling_ddim_videocrafter_vdmini"


def test_both_doors_open_the_folder_and_give_the_same_video(student_folder):
    videos = []
    for pipe in (
        VDMiniT2VPipeline.from_pretrained(student_folder, optimize=False),
        DiffusionPipeline.from_pretrained(student_folder, trust_remote_code=True),
    ):
        assert type(pipe).__name__ == "VDMiniT2VPipeline"
        pipe.set_progress_bar_config(disable=True)
        settings = {"height": 16, "width": 16, "num_frames": 2, "num_inference_steps": 2, "output_type": "pt"}
        videos.append(pipe("A corgi surfs!", **settings, generator=torch.Generator().manual_seed(0)).frames)
    assert videos[0].std() > 0.01
    assert torch.equal(*videos)


def test_index_and_code_are_what_the_pipeline_itself_saves(student_folder, tmp_path):
    VDMiniT2VPipeline.from_pretrained(student_folder).save_pretrained(tmp_path / "again")
    again, student = files_of(tmp_path / "again"), files_of(student_folder)
    assert again.keys() == student.keys()
    for name in student:
        if name.endswith("config.json") or name == "model_index.json":  # diffusers adds where it was loaded from
            saved = {key: value for key, value in json.loads(again[name]).items() if key != "_name_or_path"}
            wanted = {key: value for key, value in json.loads(student[name]).items() if key != "_name_or_path"}
            assert saved == wanted, name
        elif not name.startswith("tokenizer/"):
            assert again[name] == student[name], name


def test_fp16_variant_keeps_dtype_and_name(tmp_path):
    tiny_t2v_pipeline(tiny_t2v_teacher()).to(torch.float16).save_pretrained(tmp_path / "teacher", variant="fp16")
    prune_pipeline(tmp_path / "teacher", tmp_path / "student", variant="fp16", max_shard_size="1MB")
    shards = sorted((tmp_path / "student/unet").glob("diffusion_pytorch_model.fp16-*.safetensors"))
    assert len(shards) > 1
    assert {t.dtype for t in safetensors.torch.load_file(shards[0]).values()} == {torch.float16}
    VDMiniT2VPipeline.from_pretrained(tmp_path / "student", variant="fp16")


@pytest.mark.slow
def test_a_pickled_text_encoder_needs_consent_and_gives_the_same_student(t2v_teacher_folder, student_folder, tmp_path):
    folder = shutil.copytree(t2v_teacher_folder, tmp_path / "pickled")
    file = folder / "text_encoder/model.safetensors"
    torch.save(safetensors.torch.load_file(file), folder / "text_encoder/pytorch_model.bin")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"text_encoder/pytorch_model\.bin is a pickle.*--allow_pickle"):
        prune_pipeline(folder, tmp_path / "student")
    prune_pipeline(folder, tmp_path / "student", allow_pickle=True)
    name = "text_encoder/model.safetensors"
    assert (tmp_path / "student" / name).read_bytes() == (student_folder / name).read_bytes()


def test_provenance_has_real_hashes_and_the_card_is_of_this_conversion(t2v_teacher_folder, student_folder):
    record = json.loads((student_folder / "unet/pruning_provenance.json").read_text())
    for name, entry in record["teacher"]["files"].items():
        file = t2v_teacher_folder / name
        assert entry == {"size": file.stat().st_size, "sha256": sha256_of(file)}
    weights = {name for name in files_of(t2v_teacher_folder) if not name.endswith(".py")}
    assert set(record["teacher"]["files"]) == weights
    counts, dropped = record["num_parameters"], record["dropped_blocks"]
    assert counts["teacher"] == counts["student"] + sum(dropped.values())
    blocks = "D.0.A.1 D.0.R.1 D.1.A.1 D.1.R.1 D.2.downsamplers D.3 M U.0 U.2.A.1 U.2.R.1 U.3.A.1 U.3.R.1"
    assert list(dropped) == blocks.split()
    card = huggingface_hub.ModelCard.load(student_folder / "README.md")
    assert card.data.pipeline_tag == "text-to-video"
    assert f"{counts['student']:,}" in card.text and "VDMiniT2VPipeline.from_pretrained" in card.text
    assert "$" not in card.text


def test_full_size_survey_has_the_papers_numbers(t2v_teacher_folder, tmp_path):
    folder = shutil.copytree(t2v_teacher_folder, tmp_path / "teacher")
    config = {
        "down_block_types": ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
        "up_block_types": ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "mid_block_type": "UNetMidBlock3DCrossAttn",
        "time_cond_proj_dim": 256,
        "motion_cond_proj_dim": 256,
    }
    with torch.device("meta"):
        VDMiniUNet3DConditionModel(**config).save_config(folder / "unet")
    survey = survey_pipeline(folder)["unet"]
    assert survey.num_teacher_parameters == 1_413_653_060
    assert survey.num_student_parameters == 817_019_780


class TestRefusals:
    def refused(self, teacher, match, error=CheckpointError):
        before = {path.name for path in teacher.parent.iterdir()}
        with pytest.raises(error, match=match):
            prune_pipeline(teacher, teacher.parent / "student")
        assert {path.name for path in teacher.parent.iterdir()} == before

    def test_a_student_does_not_fit_the_plan_again(self, student_folder):
        self.refused(student_folder, "it is a student already")

    def test_a_teacher_of_the_other_kind(self, teacher_folder, t2v_teacher_folder, tmp_path):
        with pytest.raises(CheckpointError, match="'StableVideoDiffusionPipeline'; a teacher is a VDMiniT2VPipeline"):
            prune_pipeline(teacher_folder, tmp_path / "student", family=VIDEOCRAFTER)
        with pytest.raises(CheckpointError, match="'VDMiniT2VPipeline'; a teacher is a StableVideoDiffusionPipeline"):
            prune_pipeline(t2v_teacher_folder, tmp_path / "student", family=SVD)
        assert not list(tmp_path.iterdir())

    def test_merges_that_are_a_link_out_of_the_folder(self, modelscope_folder, tmp_path, tmp_path_factory):
        teacher = shutil.copytree(modelscope_folder, tmp_path / "teacher")
        secret = tmp_path_factory.mktemp("elsewhere") / "secret.txt"
        secret.write_text("secret")
        (teacher / "tokenizer/merges.txt").unlink()
        (teacher / "tokenizer/merges.txt").symlink_to(secret)
        self.refused(teacher, r"tokenizer/merges\.txt is a link that leads out of the folder")

    def test_merges_that_would_never_end(self, modelscope_folder, tmp_path):
        teacher = shutil.copytree(modelscope_folder, tmp_path / "teacher")
        (teacher / "tokenizer/merges.txt").unlink()
        os.mkfifo(teacher / "tokenizer/merges.txt")
        self.refused(teacher, r"tokenizer/merges\.txt is not a regular file")

    def test_code_beside_the_weights_is_neither_run_nor_copied(self, t2v_teacher_folder, tmp_path):
        teacher = shutil.copytree(t2v_teacher_folder, tmp_path / "teacher")
        for name in ("pipeline_vdmini_t2v.py", "unet/unet_3d_vdmini.py", "vae/evil.py"):
            (teacher / name).write_text("raise SystemExit('run')")
        student = prune_pipeline(teacher, tmp_path / "student")
        assert not any(b"SystemExit('run')" in content for content in files_of(student).values())


def test_script_dry_run_prints_and_writes_nothing(t2v_teacher_folder, tmp_path):
    flags = ["--pretrained_model_name_or_path", t2v_teacher_folder, "--output_dir", tmp_path / "student", "--dry_run"]
    process = forked_scripts.start((SCRIPT, *flags), log=tmp_path / "log")
    process.join()
    printed = (tmp_path / "log").read_text()
    assert process.exitcode == 0, printed
    assert "student " in printed and "removes D.3 (" in printed
    assert not (tmp_path / "student").exists()
