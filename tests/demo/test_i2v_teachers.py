import hashlib
import json
import re

import numpy as np
import pytest
from accelerate import init_empty_weights
from diffusers import StableVideoDiffusionPipeline

from vdmini_diffusers.demo.measures import HeldOutImages
from vdmini_diffusers.demo.teachers import I2V_TEACHER, MULTI_STEP, T2V_BASE, T2V_TEACHER, load_examples
from vdmini_diffusers.pruning import VDMINI_UNET
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


FOLDERS = (I2V_TEACHER, T2V_TEACHER, T2V_BASE)


def test_the_teachers_are_small_and_hold_no_pickles():
    files = [path for folder in FOLDERS for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) <= 45e6
    assert {path.suffix for path in files} <= {".json", ".md", ".safetensors"}


@pytest.mark.parametrize(
    ("card", "folders", "num_files"),
    [(I2V_TEACHER, [I2V_TEACHER], 4), (T2V_TEACHER, [T2V_TEACHER, T2V_BASE], 4)],
    ids=["i2v", "t2v"],
)
def test_the_card_names_the_hash_of_every_weight_file(card, folders, num_files):
    card = (card / "README.md").read_text()
    hashes = {
        str(path.relative_to(folder.parent if len(folders) > 1 else folder)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for folder in folders
        for path in folder.rglob("*.safetensors")
    }
    assert len(hashes) == num_files
    assert dict(re.findall(r"`(\S+\.safetensors)` \| `([0-9a-f]{64})`", card)) == hashes


def test_the_teacher_has_the_four_stages_of_svd_so_that_the_papers_plan_applies_unchanged():
    pipe = StableVideoDiffusionPipeline.from_pretrained(I2V_TEACHER)
    with init_empty_weights():
        stock = type(pipe.unet)()
    for field in ("down_block_types", "up_block_types"):
        assert list(pipe.unet.config[field]) == list(stock.config[field])
    assert pipe.unet.config["layers_per_block"] == stock.config["layers_per_block"]
    assert VDMINI_UNET.student_config(pipe.unet.config)["layers_per_block"] == (1, 1, 2)


def test_the_one_step_teacher_names_the_multi_step_one_that_critics_stand_on():
    origin = json.loads((I2V_TEACHER / "training.json").read_text())
    assert (origin["teacher"], origin["teacher_variant"]) == (".", MULTI_STEP)


def test_examples_are_clips_of_the_teachers_size():
    examples = load_examples()
    assert len(examples) == 4
    assert all(example.frames.shape == (16, 64, 64, 3) for example in examples)


@pytest.fixture(scope="module")
def measure():
    return HeldOutImages(24, seed=2)  # not the clips of the gates


@pytest.fixture(scope="module")
def teacher_videos(measure):
    return measure.generate(I2V_TEACHER, 1)


@pytest.mark.slow
def test_the_teacher_moves_as_its_pictures_allow_either_way(measure, teacher_videos):
    figures = {name: values.mean() for name, values in measure.per_clip(teacher_videos).items()}
    assert figures["right_way"] > 0.6 and figures["moves"] > 0.7
    other_noise = measure.generate(I2V_TEACHER, 1, noise_seed=77)
    ways = [(a.way, b.way) for a, b in zip(teacher_videos.motions, other_noise.motions, strict=True)]
    assert np.mean([a != b for a, b in ways]) > 0.2  # noise decides among the ways


@pytest.mark.slow
def test_pruned_and_unpruned_can_be_told_apart_by_number(measure, teacher_videos, tmp_path):
    pruned = measure.generate(prune_pipeline(I2V_TEACHER, tmp_path / "student"), 1)
    figures = {name: values.mean() for name, values in measure.per_clip(pruned, teacher_videos).items()}
    assert figures["motion_cosine"] < 0.5
    assert figures["right_way"] < measure.per_clip(teacher_videos)["right_way"].mean() - 0.2
