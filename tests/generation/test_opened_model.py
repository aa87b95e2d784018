"""A model that stays open: the same clips as its pipeline's, sizes that do not fit, and stopping."""

import os
import re
import threading

import numpy as np
import pytest
from tiny import TWO_STAGES, tiny_image, tiny_svd_pipeline
from tiny_text_to_video import TWO_STAGES as TWO_T2V_STAGES
from tiny_text_to_video import tiny_t2v_pipeline, tiny_t2v_teacher

from vdmini_diffusers import VDMiniAnimateLCMSVDScheduler, VDMiniI2VPipeline
from vdmini_diffusers.demo.students import demo_model, demo_teacher
from vdmini_diffusers.generation.memory import GIB, SHARE
from vdmini_diffusers.generation.opened_model import ClipStoppedError, OpenedModel
from vdmini_diffusers.generation.pipeline_call import make_clip
from vdmini_diffusers.generation.production import ModelToOpen


SMALL = {"num_frames": 3, "height": 16, "width": 16}
MIB = 2**20
THREE = {"num_inference_steps": 3}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_svd_pipeline(**TWO_STAGES).save_pretrained(folder)
    return OpenedModel.open(ModelToOpen(str(folder), device="cpu", memory=0.3), SMALL)


def test_what_it_says_of_itself(opened, tmp_path):
    assert (opened.name, opened.takes_image, opened.needs_image, opened.takes_prompt) == ("tiny", True, True, False)
    assert {name: opened.options[name] for name in SMALL} == SMALL and opened.fps == 7
    parts = ("unet", "vae", "image_encoder")
    parameters = sum(p.numel() for name in parts for p in getattr(opened.pipe, name).parameters())
    assert opened.weight_bytes == 4 * parameters
    tiny_t2v_pipeline(tiny_t2v_teacher(**TWO_T2V_STAGES)).save_pretrained(tmp_path / "t2v")
    other = OpenedModel.open(ModelToOpen(str(tmp_path / "t2v"), device="cpu"), {"num_frames": 2})
    assert (other.takes_image, other.takes_prompt) == (False, True)
    assert demo_teacher("image").is_dir() and demo_model("text").folder.is_dir()


def test_animatelcm_opens_with_the_steps_that_it_is_made_for(tmp_path):
    components = tiny_svd_pipeline(**TWO_STAGES).components | {"scheduler": VDMiniAnimateLCMSVDScheduler()}
    VDMiniI2VPipeline(**components).save_pretrained(tmp_path)
    model = ModelToOpen(str(tmp_path), device="cpu", memory=0.3)
    opened = OpenedModel.open(model, SMALL)
    assert opened.num_steps == opened.make(0, {}, tiny_image()).num_steps == 8
    assert OpenedModel.open(model, {**SMALL, **THREE}).num_steps == 3


def test_the_first_clip_of_a_size_is_known_as_such(opened):
    options, image = {"num_inference_steps": 1, "num_frames": 4}, tiny_image()
    assert [opened.make(seed, options, image).is_first for seed in (1, 1, 2)] == [True, False, False]


def test_a_clip_is_what_the_pipeline_makes_alone_also_after_one_was_stopped(opened):
    image, steps = tiny_image(), []
    clip = opened.make(5, THREE, image, progress=lambda *at: steps.append(at))
    assert steps == [(1, 3), (2, 3), (3, 3)] and clip.num_steps == 3 and clip.seconds > 0
    assert np.array_equal(clip.frames, make_clip(opened.pipe, 5, {**opened.options, **THREE}, image))
    assert not np.array_equal(clip.frames, opened.make(6, THREE, image).frames)

    stop, seen = threading.Event(), []

    def stop_at_once(step, num_steps):
        seen.append(step)
        stop.set()

    with pytest.raises(ClipStoppedError):
        opened.make(5, THREE, image, stop=stop, progress=stop_at_once)
    assert seen == [1]  # the step that ran was the last
    with pytest.raises(ClipStoppedError):  # one that waits does not even begin
        opened.make(5, THREE, image, stop=stop, progress=stop_at_once)
    assert seen == [1]
    again = opened.make(5, THREE, image)
    assert np.array_equal(again.frames, clip.frames)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak is read on Linux")
def test_the_second_clip_takes_as_much_memory_as_the_first(opened):
    size = {"num_frames": 8, "height": 64, "width": 64}
    _, first, second = (opened.make(0, size, tiny_image()).peak for _ in range(3))  # the first compiles kernels
    assert 8 * MIB < 0.7 * first < second < 1.4 * first


def test_a_size_that_does_not_fit_is_refused_with_the_largest_that_do(opened):
    opened.check_fits(3, 16, 16)
    with pytest.raises(ValueError, match="200 frames of 128 x 128 pixels need about") as refused:
        opened.make(0, {"num_frames": 200, "height": 128, "width": 128}, tiny_image())
    fewer, frames, width, height = map(int, re.findall(
        r"What fits: (\d+) frames? of that size, or (\d+) frames of (\d+) x (\d+)\.", str(refused.value)
    )[0])  # fmt: skip
    free = SHARE * 0.3 * GIB
    assert opened.need(fewer, 128, 128) <= free < opened.need(fewer + 1, 128, 128)
    assert frames == 200 and opened.need(200, height, width) <= free < opened.need(200, height + 16, width + 16)


def test_a_pipeline_that_makes_no_videos_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no folder"):
        OpenedModel.open(ModelToOpen(str(tmp_path / "none")))
