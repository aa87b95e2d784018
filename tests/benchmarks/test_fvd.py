"""`benchmarks/fvd.py` to its end: a tiny image-to-video pipeline, and a tiny VideoMAE as the detector."""

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scripts_run import ROOT, run
from tiny import TWO_STAGES, randomise, tiny_svd_pipeline
from transformers import VideoMAEConfig, VideoMAEModel

from vdmini_diffusers import VDMiniAnimateLCMSVDScheduler, VDMiniI2VPipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fvd")
    sizes = {"hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = VideoMAEConfig(image_size=16, patch_size=8, num_frames=2, tubelet_size=2, **sizes)
    randomise(VideoMAEModel(config)).save_pretrained(folder / "videomae")
    rng = np.random.default_rng(0)
    for index in range(8):
        (folder / "real" / f"class{index % 2}" / f"v{index}").mkdir(parents=True)
        for frame in range(3 if index else 1):  # the first is too short
            picture = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            picture.save(folder / "real" / f"class{index % 2}" / f"v{index}" / f"{frame}.png")
    tiny_svd_pipeline(**TWO_STAGES).save_pretrained(folder / "pipeline")
    return folder


def fvd(folder, name, processes=1, fails=False, **settings):
    flags = {
        "real": folder / "real",
        "generated": folder / name,
        "output": folder / "results" / f"{name}.json",
        "cache_dir": folder / "caches" / name,
        "pipeline": folder / "pipeline",
        "num_clips": 6,
        "num_frames": 2,
        "height": 12,
        "width": 16,
        "generation_height": 16,
        "generation_width": 16,
        "num_resamples": 10,
        "detector": "videomae",
        "detector_weights": folder / "videomae",
    } | settings
    arguments = [part for flag, value in flags.items() if value is not None for part in (f"--{flag}", value)]
    return run([ROOT / "benchmarks" / "fvd.py", *arguments], folder / "printed.log", fails, processes)


def test_two_folders_of_videos(folder):
    printed = fvd(folder, "real/class1", pipeline=None, num_clips=3)
    assert "FVD " in printed and "3 clips of 2 frames" in printed and "Note: 3 clips are too few" in printed
    assert "Note: 1 of the real videos could not be used (1 too short), such as class0/v0: others were" in printed
    result = json.loads((folder / "results" / "real" / "class1.json").read_text())
    assert result["generated"]["num_videos"] == 4 and result["real"]["num_videos"] == 8


@pytest.mark.slow
def test_one_process_and_two_come_to_one_result_from_generation_on(folder):
    printed = fvd(folder, "one")
    assert "FVD " in printed and "6 clips of 2 frames" in printed
    fvd(folder, "two", processes=2)
    fvd(folder, "one", processes=2, pipeline=None, output=folder / "shared.json", cache_dir=folder / "shared")
    one, two = (json.loads((folder / "results" / f"{name}.json").read_text()) for name in ("one", "two"))
    shared = json.loads((folder / "shared.json").read_text())
    assert shared["fvd"] == pytest.approx(one["fvd"], rel=1e-6)
    assert shared["kvd"] == pytest.approx(one["kvd"], rel=1e-5)
    assert one["generation"] == two["generation"]
    assert one["generation"]["call"]["num_inference_steps"] == 1
    assert one["real"]["num_discarded"] in ({}, {"too short": 1})
    assert one["real"]["names_sha256"] == two["real"]["names_sha256"]
    clips = {path.relative_to(folder / "one") for path in (folder / "one").rglob("*.jpg")}
    assert clips == {path.relative_to(folder / "two") for path in (folder / "two").rglob("*.jpg")}
    assert len(clips) == 12
    for clip in clips:  # a float that rounds otherwise in another process changes a block of a JPEG by little
        pixels, others = (np.asarray(Image.open(folder / name / clip)).astype(int) for name in ("one", "two"))
        assert np.abs(pixels - others).mean() < 1

    # What is there is not made again, and stands for itself without the pipeline.
    before = json.loads((folder / "results" / "one.json").read_text())
    fvd(folder, "one", pipeline=None)
    assert json.loads((folder / "results" / "one.json").read_text()) == before

    (folder / "one" / "notes.txt").write_text("x")
    printed = fvd(folder, "one", pipeline=None, fails=True)
    assert "ValueError: " in printed and "no clips of these videos, such as notes.txt" in printed.splitlines()[-1]


def make_folder(folder, files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("foreign", {"thesis.txt": b"x"}, "is not empty and has no generation.json"),
        ("mixed", {"generation.json": b"{}", "notes.txt": b"x"}, "no clips of these videos, such as notes.txt"),
        (
            "damaged",
            {"generation.json": b"{}", "class1/v1/000.jpg": b"x", "class1/v1/001.jpg": b"x"},
            "damaged/class1/v1 is damaged",
        ),
        ("other", {"generation.json": b'{"seed": 1}'}, "seed 1 and not 0"),
    ],
)
def test_a_folder_that_cannot_be_filled_is_refused_before_any_video_is_measured(folder, name, files, message):
    make_folder(folder / name, files)
    assert message in fvd(folder, name, fails=True).splitlines()[-1]
    assert not (folder / "caches" / name).exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "fp16"}, "fp16"),
        ({"pipeline": None, "generated": "{folder}/few"}, "has 1 videos for clips of 2 frames, and 6 are needed"),
        ({"pipeline": None, "generated": "{folder}/videomae/model.safetensors"}, "holds no statistics of features"),
        ({"generated": "{folder}/videomae/model.safetensors"}, "needs a folder to fill as --generated"),
        ({"generated": "{folder}/videomae/model.safetensors/x"}, "Not a directory"),
        ({"jpeg_quality": 0}, "stores what it makes as JPEG"),
    ],
)
def test_what_cannot_become_a_generated_set_is_refused_before_any_video_is_measured(folder, settings, message):
    if not (folder / "few").exists():
        make_folder(folder / "few", {"v/0.png": b"x"})
    printed = fvd(folder, "late", fails=True, **{k: v and str(v).format(folder=folder) for k, v in settings.items()})
    assert message in printed.splitlines()[-1]
    assert not (folder / "caches" / "late").exists() and not (folder / "late").exists()


def test_statistics_of_other_settings_are_refused_before_the_real_videos_are_measured(folder):
    fvd(folder, "real/class1", pipeline=None, num_clips=3)
    (statistics,) = (folder / "caches" / "real/class1").glob("class1-*/statistics.safetensors")
    printed = fvd(folder, "later", pipeline=None, generated=statistics, fails=True)
    assert "were measured with num_clips 3 and not 6" in printed.splitlines()[-1]
    assert not (folder / "caches" / "later").exists()


@pytest.mark.slow
def test_animatelcm_in_its_pipeline_s_one_step_is_worth_a_word_before_the_work(folder):
    settings = {"pipeline": folder / "animatelcm", "num_clips": 2}
    components: Any = tiny_svd_pipeline(**TWO_STAGES).components | {"scheduler": VDMiniAnimateLCMSVDScheduler()}
    VDMiniI2VPipeline(**components).save_pretrained(folder / "animatelcm")
    printed = fvd(folder, "one_step", **settings)
    note = "made for 8 steps; VDMiniI2VPipeline takes 1 where none are given. Pass --steps 8"
    assert note in printed and printed.index(note) < printed.index("FVD ")
    assert note not in fvd(folder, "told", num_inference_steps=1, **settings)
    one_step, told = (json.loads((folder / "results" / f"{name}.json").read_text()) for name in ("one_step", "told"))
    assert one_step["generation"] == told["generation"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_clips": 9}, "has 8 videos for clips of 2 frames, and 9 are needed"),
        ({"num_clips": 8}, "has 7 videos for clips of 2 frames, and 8 are needed. 1 skipped: 1 too short"),
        ({"num_frames": 3}, "takes clips of exactly 2 frames, not of 3"),
        ({"pipeline": None}, "or a pipeline that makes them"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_leaves_no_result(folder, settings, message):
    printed = fvd(folder, "wrong", fails=True, **settings)
    assert message in printed.splitlines()[-1]
    assert not (folder / "results" / "wrong.json").exists() and not (folder / "wrong").exists()
