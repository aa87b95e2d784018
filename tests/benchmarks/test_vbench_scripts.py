"""VBench's videos made by tiny pipelines, in one process and in several; and the table of its totals."""

import json

import numpy as np
import pytest
from PIL import Image
from scripts_run import ROOT, run
from tiny import randomise, tiny_svd_pipeline
from tiny_text_to_video import tiny_t2v_pipeline, tiny_t2v_student


SIZE = ("--height", 16, "--width", 16, "--num_frames", 2, "--num_inference_steps", 2, "--dtype", "float32")


def generate(tmp_path, out, *flags, processes=1, fails=False):
    script = [ROOT / "benchmarks" / "generate_vbench.py", "--output_dir", tmp_path / out]
    return run([*script, *flags, *SIZE], tmp_path / f"{out}.log", fails, processes)


@pytest.fixture
def t2v(tmp_path):
    tiny_t2v_pipeline().save_pretrained(tmp_path / "t2v")
    entries = [{"prompt_en": "a cat", "dimension": ["color"]}, {"prompt_en": "a dog", "dimension": ["scene"]}]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    return ("--pretrained_model_name_or_path", tmp_path / "t2v", "--prompts", tmp_path / "list.json")


@pytest.fixture
def i2v(tmp_path):
    tiny_svd_pipeline().save_pretrained(tmp_path / "svd")
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "images" / "a.png")
    (tmp_path / "list.json").write_text(
        json.dumps([{"prompt_en": "a", "dimension": ["i2v_subject"], "image_name": "a.png"}])
    )
    return ("--pretrained_model_name_or_path", tmp_path / "svd", "--prompts", tmp_path / "list.json")


def contents(folder):
    return {file.name: file.read_bytes() for file in (folder / "videos").iterdir()}


@pytest.mark.slow
def test_two_processes_that_are_stopped_and_go_on_make_the_videos_of_one(t2v, tmp_path):
    generate(tmp_path, "one", *t2v)
    whole = contents(tmp_path / "one")
    assert len(whole) == 10 and len(set(whole.values())) == 10
    generate(tmp_path, "two", *t2v, processes=2)
    assert contents(tmp_path / "two") == whole
    log = generate(tmp_path, "other", *t2v, "--max_guidance_scale", 2, fails=True)
    assert "takes no max_guidance_scale" in log and not (tmp_path / "other").exists()
    removed = tmp_path / "two" / "videos" / "a dog-3.mp4"
    removed.unlink()
    assert "9 of 10 videos are there" in generate(tmp_path, "two", *t2v)
    assert contents(tmp_path / "two") == whole
    removed.write_bytes(removed.read_bytes()[:-1])
    log = generate(tmp_path, "two", *t2v, fails=True)
    assert "holds 'a dog-3.mp4', damaged: remove them" in log and "videos are there." not in log


@pytest.mark.slow
def test_pictures_become_videos_and_those_of_another_ratio_are_refused(i2v, tmp_path):
    images = ("--image_dir", tmp_path / "images", "--max_guidance_scale", 1)
    assert "0 of 5 videos are there" in generate(tmp_path, "out", *i2v, *images)
    assert sorted(contents(tmp_path / "out")) == [f"a-{index}.mp4" for index in range(5)]
    made = contents(tmp_path / "out")
    assert len(set(made.values())) == 5
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "a.png")
    assert "other settings (pictures_sha256 of 'a.png')" in generate(tmp_path, "out", *i2v, *images, fails=True)
    assert contents(tmp_path / "out") == made
    Image.new("RGB", (32, 16)).save(tmp_path / "images" / "a.png")
    assert "crop/16-9" in generate(tmp_path, "wide", *i2v, *images, fails=True)
    assert "give --image_dir" in generate(tmp_path, "none", *i2v, fails=True)


@pytest.mark.slow
def test_other_weights_in_the_pipelines_folder_are_refused_and_nan_is_no_black_video(t2v, tmp_path):
    generate(tmp_path, "out", *t2v, "--dimensions", "color")
    made = contents(tmp_path / "out")
    unet = randomise(tiny_t2v_student(), seed=3)
    unet.save_pretrained(tmp_path / "t2v" / "unet")
    log = generate(tmp_path, "out", *t2v, fails=True)
    assert (
        "other settings (weights_sha256 of 'diffusion_pytorch_model.safetensors')" in log
        and contents(tmp_path / "out") == made
    )
    unet.conv_out.bias.data.fill_(float("nan"))
    unet.save_pretrained(tmp_path / "t2v" / "unet")
    assert "not finite of 'a cat'" in generate(tmp_path, "broken", *t2v, fails=True)
    assert not contents(tmp_path / "broken")


def test_results_become_a_table_and_a_file(tmp_path):
    results = {"dynamic_degree": [0.3213, [{}] * 1230], "motion_smoothness": [0.9811, []]}
    (tmp_path / "x_eval_results.json").write_text(json.dumps(results))
    script = [ROOT / "benchmarks" / "score_vbench.py", "--results", tmp_path, "--suite", "i2v"]
    log = run([*script, "--output", tmp_path / "out" / "totals.json"], tmp_path / "log")
    assert "| dynamic_degree | quality | 32.13 | 32.13 | 1230 of 1230 |" in log and "Missing: i2v_subject" in log
    record = json.loads((tmp_path / "out" / "totals.json").read_text())
    assert record["scores"] == {"motion_smoothness": 0.9811, "dynamic_degree": 0.3213}
    assert record["per_cent"] == {"motion_smoothness": pytest.approx(98.11), "dynamic_degree": pytest.approx(32.13)}
    assert record["parts"]["i2v"] == [0.0, 100.0] and len(record["missing"]) == 7
    assert "Fewer videos than VBench takes: motion_smoothness." in log
    assert record["videos"] == "not all in motion_smoothness"
