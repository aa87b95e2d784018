"""Clips of tiny pipelines of every kind, from what a person has to files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_hub import FakeHub
from fresh_python import run_python
from PIL import Image
from tiny import TWO_STAGES, randomise, student_of, tiny_svd_pipeline, tiny_teacher_unet
from tiny_hunyuan_video import tiny_hunyuan_pipeline
from tiny_text_to_video import TWO_STAGES as TWO_T2V_STAGES
from tiny_text_to_video import tiny_t2v_pipeline, tiny_t2v_teacher

from vdmini_diffusers import VDMiniAnimateLCMSVDScheduler, VDMiniI2VPipeline
from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.families.videocrafter import VIDEOCRAFTER
from vdmini_diffusers.families.wan import FAMILY as WAN
from vdmini_diffusers.generation import opening
from vdmini_diffusers.generation.clip_files import read_record
from vdmini_diffusers.generation.jobs import derived_seed, request_of
from vdmini_diffusers.generation.opening import choose_device, choose_dtype, open_pipeline, recognise
from vdmini_diffusers.generation.pipeline_call import chosen_options, file_fps, make_clip
from vdmini_diffusers.generation.production import ModelToOpen, produce, say_what_fitting_does
from vdmini_diffusers.pruning import VDMINI_UNET


SMALL = {"height": 16, "width": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pipelines: a stock teacher, a student in half precision, text to video by a U-Net and by a transformer."""
    folder = tmp_path_factory.mktemp("models")
    teacher = tiny_svd_pipeline(**TWO_STAGES)
    teacher.save_pretrained(folder / "teacher")
    unet = student_of(randomise(tiny_teacher_unet()), VDMINI_UNET)
    student = VDMiniI2VPipeline(**teacher.components | {"unet": unet})
    student.save_pretrained(folder / "student", variant="fp16")
    tiny_t2v_pipeline(tiny_t2v_teacher(**TWO_T2V_STAGES)).save_pretrained(folder / "t2v")
    tiny_hunyuan_pipeline().save_pretrained(folder / "hunyuan")
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    (folder / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(noise).save(folder / "pictures" / name)
    return folder


def run(model: Path, image=None, prompt=None, out=None, seed=0, overwrite=False, dtype=None, memory=None, **options):
    """Lines that were said, and what was wrong."""
    said: list[str] = []
    request = request_of(image, prompt, out, seed)
    opened = ModelToOpen(str(model), dtype=dtype, device="cpu", memory=memory)
    wrong = produce(opened, request, options, overwrite, said.append)
    return said, wrong


def test_a_picture_becomes_what_the_pipeline_itself_makes_of_it(folder, tmp_path):
    image = folder / "pictures" / "a.png"
    said, wrong = run(folder / "student", image, out=tmp_path / "x.png", seed=3, num_frames=3, **SMALL)
    assert not wrong and said[0].startswith("On cpu, ") and said[0].endswith("float32: no memory needs to be saved.")
    assert said[1].startswith(f"{tmp_path / 'x.png'}: 3 frames of 16 x 16, 7 a second; seed 3, 1 step, ")
    record = read_record(tmp_path / "x.png")
    assert record is not None and (record["model"], record["steps"], record["image"]) == ("student", 1, "a.png")
    assert str(tmp_path) not in json.dumps(record)
    pipe = VDMiniI2VPipeline.from_pretrained(folder / "student", variant="fp16", dtype=torch.float32)
    shown = Image.open(image).resize((16, 16), Image.Resampling.LANCZOS, box=(0, 5, 30, 35))
    video = pipe(shown, num_frames=3, **SMALL, generator=torch.manual_seed(3), output_type="np").frames[0]
    sheet = np.asarray(Image.open(tmp_path / "x.png").convert("RGB"))
    assert np.array_equal(sheet[:16, :16], (video[0] * 255).round().astype(np.uint8))


def test_a_folder_goes_on_where_it_was_and_says_each_seed(folder, tmp_path):
    prompts, out, first = tmp_path / "p.txt", tmp_path / "clips", "0001-a-dog.mp4"
    prompts.write_text("A dog\nA cat\n")
    options = {"num_frames": 2, "num_inference_steps": 1}
    said, _ = run(folder / "t2v", prompt=str(prompts), out=out, seed=5, **options)
    assert said[0] == "0 of 2 clips are there." and len(list(out.iterdir())) == 2
    record = read_record(out / first)
    assert record is not None and record["seed"] == derived_seed(5, first.removesuffix(".mp4"))
    (out / "0002-a-cat.mp4").unlink()
    before = (out / first).stat().st_mtime_ns
    said, _ = run(folder / "t2v", prompt=str(prompts), out=out, seed=5, **options)
    assert said[0] == "1 of 2 clips are there." and (out / first).stat().st_mtime_ns == before
    # One clip alone, from the seed that the file says
    run(folder / "t2v", prompt="A dog", out=tmp_path / "x.mp4", seed=record["seed"], **options)
    assert (tmp_path / "x.mp4").read_bytes() == (out / first).read_bytes()


def test_a_picture_of_a_folder_that_cannot_be_read_is_told_and_the_others_are_made(folder, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_text("no picture")
    Image.new("RGB", (9, 9)).save(pictures / "b.png")
    _, wrong = run(folder / "teacher", pictures, out=tmp_path / "clips", num_frames=2, **SMALL)
    assert list(wrong) == [pictures / "a.png"] and "none of the kinds" in wrong[pictures / "a.png"]
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["b.mp4"]


def test_prompts_by_a_unet_and_by_a_transformer(folder, tmp_path):
    said, _ = run(folder / "t2v", prompt="A dog", out=tmp_path / "a.gif", num_frames=2, num_inference_steps=4)
    assert "2 frames of" in said[-1] and "8 a second; seed 0, 4 steps" in said[-1]
    options = {"num_frames": 5, "num_inference_steps": 2, "guidance_scale": 6.0, "fps": 15, "height": 32, "width": 32}
    said, _ = run(folder / "hunyuan", prompt="A dog", out=tmp_path / "b.mp4", dtype="float32", **options)
    assert "5 frames of 32 x 32, 15 a second; seed 0, 2 steps" in said[-1]


def test_animatelcm_without_steps_is_worth_a_word_and_a_model_that_may_have_one_step_is_not(folder, tmp_path):
    components: Any = tiny_svd_pipeline(**TWO_STAGES).components | {"scheduler": VDMiniAnimateLCMSVDScheduler()}
    VDMiniI2VPipeline(**components).save_pretrained(tmp_path / "animatelcm")
    options = {"image": folder / "pictures" / "a.png", "num_frames": 2, **SMALL}

    def notes(model, name, **more):
        said, _ = run(model, out=tmp_path / name, **options, **more)
        return [line for line in said if "--steps" in line]

    (note,) = notes(tmp_path / "animatelcm", "a.gif")
    assert "VDMiniAnimateLCMSVDScheduler, and made for 8 steps; VDMiniI2VPipeline takes 1" in note
    assert "Pass --steps 8" in note
    assert notes(tmp_path / "animatelcm", "b.gif", num_inference_steps=1) == []
    assert notes(folder / "teacher", "c.gif") == []


@pytest.mark.parametrize(
    ("model", "given", "options", "message"),
    [
        ("t2v", "image", {}, "takes no picture"),
        ("teacher", "prompt", {}, "takes no prompt"),
        ("teacher", "image", {"height": 15, "width": 16}, "multiples of 2"),
        ("hunyuan", "prompt", {"motion_bucket_id": 3}, "takes no motion_bucket_id"),
        ("pictures", "image", {}, "model_index.json is missing"),
        ("none", "image", {}, "There is no folder"),
    ],
)
def test_what_a_model_cannot_do_is_refused_and_nothing_is_written(folder, tmp_path, model, given, options, message):
    inputs = {"image": folder / "pictures" / "a.png"} if given == "image" else {"prompt": "A dog"}
    with pytest.raises(ValueError, match=message):
        run(folder / model, **inputs, out=tmp_path / "x.mp4", **options)
    assert not list(tmp_path.iterdir())


def test_memory_that_does_not_suffice_is_found_before_anything_runs(folder, tmp_path):
    image = folder / "pictures" / "a.png"
    with pytest.raises(ValueError, match="99 frames of 64 x 64 pixels need about"):
        run(folder / "teacher", image, out=tmp_path / "x.mp4", memory=0.19, num_frames=99, height=64, width=64)
    said, _ = run(folder / "teacher", image, out=tmp_path / "y.mp4", memory=0.19, num_frames=12, height=32, width=32)
    assert said[0].endswith("GiB allowed, float32: no memory needs to be saved.")


def test_a_model_that_is_not_finite_writes_no_clip(folder):
    pipe = tiny_svd_pipeline()
    pipe.unet.conv_out.bias.data.fill_(float("nan"))
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="not finite"):
        make_clip(pipe, 0, {**SMALL, "num_frames": 2, "num_inference_steps": 1}, Image.new("RGB", (8, 8)))


def test_options_have_the_pipelines_names():
    assert chosen_options({"guidance_scale": 3.0, "fps": 5, "height": None}, SVD.pipeline) == {
        "max_guidance_scale": 3.0,
        "fps": 5,
    }
    assert chosen_options({"guidance_scale": 3.0, "fps": 5}, WAN.pipeline) == {"guidance_scale": 3.0}
    assert (file_fps(SVD.pipeline, None), file_fps(WAN.pipeline, None), file_fps(WAN.pipeline, 16)) == (7, 8, 16)


def test_the_device_and_the_precision_that_suit():
    assert choose_device("cpu") == "cpu" and choose_device(None) in {"cpu", "cuda", "mps", "xpu"}
    with pytest.raises(ValueError, match="no device 'nosuch' that torch can use here"):
        choose_device("nosuch")
    chosen = [choose_dtype(name, device, family) for name, device, family in [
        (None, "cpu", SVD), (None, "cuda", SVD), (None, "mps", WAN), (None, "cuda", None), ("float32", "cuda", SVD),
    ]]  # fmt: skip
    assert chosen == [torch.float32, torch.float16, torch.bfloat16, torch.bfloat16, torch.float32]


def test_a_pipeline_that_brings_code_needs_consent(folder):
    index = json.loads((folder / "student" / "model_index.json").read_text())
    assert index["_class_name"][0] == "pipeline_vdmini_i2v"  # its code lies beside it, and is not run:
    pipe = open_pipeline(str(folder / "student"), recognise(str(folder / "student")), torch.float32)
    assert type(pipe) is VDMiniI2VPipeline
    with pytest.raises(ValueError, match="trust_remote_code"):
        open_pipeline(str(folder / "student"), None, torch.float32)
    remote = open_pipeline(str(folder / "student"), None, torch.float32, trust_remote_code=True)
    assert type(remote).__module__.startswith("diffusers_modules")


def test_the_only_variant_of_a_folder_is_found(folder):
    assert opening._only_variant(folder / "student") == "fp16"
    assert opening._only_variant(folder / "teacher") is None


def test_a_picture_that_hardly_fits_is_worth_a_word():
    said: list[str] = []
    for size in ((64, 64), (640, 480), (16, 16)):
        say_what_fitting_does(size, (64, 64), said.append)
    assert said == []
    say_what_fitting_does((15, 15), (64, 64), said.append)
    say_what_fitting_does((3000, 1000), (64, 64), said.append)
    assert "15 x 15 pixels and is enlarged 4 times" in said[0] and "66 % of the picture lies outside" in said[1]


ASK_THE_HUB = """
import json, sys
from vdmini_diffusers.generation.opening import recognise
answers = []
for name, revision in json.loads(sys.argv[1]):
    try:
        answers.append(recognise(name, revision).name)
    except (OSError, ValueError) as error:
        answers.append(f"{type(error).__name__}: {error}")
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_what_the_hub_does_not_give_is_said_in_plain_words(folder, tmp_path):
    asked = [["org/t2v", None], ["org/none", None], ["org/t2v", "nosuch"], ["org/data", None]]
    with FakeHub(tmp_path / "hub") as hub:
        hub.commit("org/t2v", {"model_index.json": (folder / "t2v" / "model_index.json").read_bytes()})
        hub.commit("org/data", {"README.md": b"data"})
        answers = run_python(ASK_THE_HUB, json.dumps(asked), home=tmp_path, endpoint=hub.endpoint)
    assert answers[0] == VIDEOCRAFTER.name
    assert "There is no model org/none on the Hub" in answers[1] and "no branch, tag or commit nosuch" in answers[2]
    assert answers[3].startswith("FileNotFoundError: org/data on the Hub has no model_index.json")
    (offline,) = run_python(ASK_THE_HUB, json.dumps([["org/none", None]]), home=tmp_path)
    assert offline.startswith("ConnectionError: org/none is not in the cache, and the Hub cannot be reached")
