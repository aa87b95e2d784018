"""A saved T2V folder and the ways it opens. What it shares with I2V folders is the same text (`test_house.py`)."""

import filecmp
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, UNet3DConditionModel
from diffusers.pipelines.deprecated.text_to_video_synthesis import TextToVideoSDPipeline
from fake_hub import FakeHub
from fresh_python import refusal, run_python, video_digest
from tiny import randomise
from tiny_text_to_video import (
    STOCK_CONFIG,
    T2V_TURBO,
    VIDEOCRAFTER2,
    tiny_t2v_components,
    tiny_t2v_pipeline,
    tiny_t2v_student,
    tiny_t2v_teacher,
)

from vdmini_diffusers import VDMiniT2VPipeline, VDMiniUNet3DConditionModel
from vdmini_diffusers.models import unet_3d_vdmini
from vdmini_diffusers.pipelines import pipeline_vdmini_t2v


CODE = {
    "pipeline_vdmini_t2v.py": pipeline_vdmini_t2v.__file__,
    "unet/unet_3d_vdmini.py": unet_3d_vdmini.__file__,
}


@pytest.fixture(scope="module")
def student_pipe():
    return tiny_t2v_pipeline()


@pytest.fixture(scope="module")
def student_folder(student_pipe, tmp_path_factory):
    """Read only."""
    folder = tmp_path_factory.mktemp("student") / "tiny-vdmini"
    student_pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(student_folder, tmp_path):
    """A copy of the student's folder, to spoil."""
    return Path(shutil.copytree(student_folder, tmp_path / "copy"))


def test_a_saved_folder_holds_the_code_files_and_its_index_names_them(student_folder):
    for path, source in CODE.items():
        assert filecmp.cmp(student_folder / path, source, shallow=False)
    assert sorted(path.relative_to(student_folder).as_posix() for path in student_folder.rglob("*.py")) == sorted(CODE)
    index = json.loads((student_folder / "model_index.json").read_text())
    assert {name: entry for name, entry in index.items() if name != "_diffusers_version"} == {
        "_class_name": ["pipeline_vdmini_t2v", "VDMiniT2VPipeline"],
        "scheduler": ["diffusers", "LCMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["unet_3d_vdmini", "VDMiniUNet3DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def test_the_package_opens_the_folder_without_a_trust_flag_and_without_touching_its_code_files(folder, student_pipe):
    for path in CODE:
        (folder / path).write_text("raise SystemExit('the code of the folder was run')")
    pipe = VDMiniT2VPipeline.from_pretrained(folder, optimize=False)
    assert (type(pipe), type(pipe.unet)) == (VDMiniT2VPipeline, VDMiniUNet3DConditionModel)
    assert pipe.scheduler.config.original_inference_steps == 200
    assert video_digest(pipe) == video_digest(student_pipe)


def test_diffusers_opens_the_folder_with_the_trust_flag_only_and_runs_its_code_files(student_folder, student_pipe):
    assert "trust_remote_code" in refusal(DiffusionPipeline.from_pretrained, student_folder)
    for _ in range(2):  # the second runs the files again
        pipe = DiffusionPipeline.from_pretrained(student_folder, trust_remote_code=True)
        assert type(pipe).__module__ == "diffusers_modules.local.pipeline_vdmini_t2v"
        assert type(pipe.unet).__module__ == "diffusers_modules.local.unet_3d_vdmini"
        assert video_digest(pipe) == video_digest(student_pipe)


@pytest.mark.parametrize(
    ("make", "config"),
    [(tiny_t2v_teacher, T2V_TURBO), (tiny_t2v_student, VIDEOCRAFTER2)],
    ids=["T2V-Turbo", "student of VideoCrafter2"],
)
def test_the_rest_of_the_family_is_saved_and_opens_again(make, config, tmp_path):
    pipe = tiny_t2v_pipeline(make(**config))
    pipe.save_pretrained(tmp_path)
    again = VDMiniT2VPipeline.from_pretrained(tmp_path, optimize=False)
    assert type(again.scheduler) is type(pipe.scheduler)
    assert video_digest(again) == video_digest(pipe)


def test_a_folder_of_the_stock_pipeline_opens_and_one_of_its_objects_becomes_ours(tmp_path):
    components = tiny_t2v_components(randomise(UNet3DConditionModel(**STOCK_CONFIG)).eval())
    stock = TextToVideoSDPipeline(**components)
    stock.save_pretrained(tmp_path)
    pipe = VDMiniT2VPipeline.from_pretrained(tmp_path, optimize=False)
    assert (type(pipe), type(pipe.unet)) == (VDMiniT2VPipeline, UNet3DConditionModel)
    assert video_digest(pipe) == video_digest(VDMiniT2VPipeline.from_pipe(stock))
    pipe.save_pretrained(tmp_path / "ours")
    assert [path.name for path in (tmp_path / "ours").rglob("*.py")] == ["pipeline_vdmini_t2v.py"]


def test_it_loads_in_half_precision_as_a_variant_and_with_components_by_hand(folder):
    half = VDMiniT2VPipeline.from_pretrained(folder, dtype=torch.float16)
    assert {model.dtype for model in (half.unet, half.vae, half.text_encoder)} == {torch.float16}
    half.save_pretrained(folder, variant="fp16")
    for model in ("unet", "vae"):  # only the variant is left
        (folder / model / "diffusion_pytorch_model.safetensors").unlink()
    by_hand = VDMiniT2VPipeline.from_pretrained(folder, variant="fp16", unet=half.unet)
    assert by_hand.unet is half.unet
    # Also where the dtypes differ, as without `dtype` transformers goes by the config.
    assert by_hand.vae.dtype == torch.float32
    frames = by_hand("a corgi", num_frames=2, num_inference_steps=1, output_type="pt").frames
    assert frames.dtype == torch.float32 and frames.isfinite().all()


@pytest.mark.parametrize("cls", [VDMiniT2VPipeline, DiffusionPipeline])
def test_weights_that_do_not_fill_the_student_are_refused(cls, folder):
    student = tiny_t2v_student()
    config = (folder / "unet/config.json").read_text()
    tiny_t2v_student(**T2V_TURBO).save_pretrained(folder / "unet")  # without motion guidance
    (folder / "unet/config.json").write_text(config)
    trust = {"trust_remote_code": cls is DiffusionPipeline}
    message = refusal(cls.from_pretrained, folder, **trust)
    assert "does not fit VDMiniUNet3DConditionModel" in message and "missing tensors" in message
    student.save_pretrained(folder / "unet")
    assert cls.from_pretrained(folder, **trust).unet.num_parameters() == student.num_parameters()


def test_card_and_plan_travel_with_the_pipeline(folder, tmp_path):
    (folder / "README.md").write_text("the card")
    (folder / "unet/pruning_plan.json").write_text("the plan")
    VDMiniT2VPipeline.from_pretrained(folder).save_pretrained(tmp_path / "new")
    assert (tmp_path / "new/README.md").read_text() == "the card"
    assert (tmp_path / "new/unet/pruning_plan.json").read_text() == "the plan"


@pytest.mark.slow
def test_a_pushed_pipeline_opens_by_its_name_with_the_package_and_without(student_folder, tmp_path):
    for name in ("hub", "with", "without"):
        (tmp_path / name).mkdir()
    digest = video_digest(VDMiniT2VPipeline.from_pretrained(student_folder, optimize=False))
    with FakeHub(tmp_path / "hub") as hub:
        found = run_python(
            """
import json, sys
from fresh_python import video_digest
from vdmini_diffusers import VDMiniT2VPipeline

VDMiniT2VPipeline.from_pretrained(sys.argv[1]).push_to_hub("org/vdmini-t2v-v1.0")
pipe = VDMiniT2VPipeline.from_pretrained("org/vdmini-t2v-v1.0", optimize=False)
print(json.dumps([type(pipe).__module__, type(pipe.unet).__module__, video_digest(pipe)]))
""",
            student_folder,
            home=tmp_path / "with",
            endpoint=hub.endpoint,
        )
        package = "vdmini_diffusers"
        assert found == [f"{package}.pipelines.pipeline_vdmini_t2v", f"{package}.models.unet_3d_vdmini", digest]
        assert set(CODE) <= set(hub.files("org/vdmini-t2v-v1.0"))

        found = run_python(
            """
import json, sys
from fresh_python import DiffusionPipeline, refusal, video_digest

name, again = "org/vdmini-t2v-v1.0", sys.argv[1]
refused = refusal(DiffusionPipeline.from_pretrained, name)
pipe = DiffusionPipeline.from_pretrained(name, trust_remote_code=True)
pipe.save_pretrained(again)
print(json.dumps([refused, type(pipe).__name__, video_digest(pipe)]))
""",
            tmp_path / "again",
            home=tmp_path / "without",
            endpoint=hub.endpoint,
            package=False,
        )
    assert "trust_remote_code" in found[0]
    assert found[1:] == ["VDMiniT2VPipeline", digest]
    # What was saved without the package opens with it.
    assert video_digest(VDMiniT2VPipeline.from_pretrained(tmp_path / "again", optimize=False)) == digest
