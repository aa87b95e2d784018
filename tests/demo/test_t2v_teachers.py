"""The text-to-video demo teachers that ship."""

import numpy as np
import pytest
import torch

from vdmini_diffusers import VDMiniT2VPipeline, VDMiniUNet3DConditionModel
from vdmini_diffusers.demo.measures import HeldOutPrompts
from vdmini_diffusers.demo.networks import build_text_encoder, build_tokenizer
from vdmini_diffusers.demo.scenes import all_captioned_scenes
from vdmini_diffusers.demo.teachers import T2V_BASE, T2V_SAMPLING, T2V_TEACHER
from vdmini_diffusers.pruning import VDMINI_UNET
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(scene.caption for scene in all_captioned_scenes())


def test_every_word_of_the_captions_is_one_token(tokenizer):
    for scene in all_captioned_scenes():
        assert len(tokenizer(scene.caption).input_ids) == 2 + len(scene.caption.split())


def test_words_have_the_ids_of_the_shipped_tokenizer_whenever_it_is_built(tokenizer):
    shipped = type(tokenizer).from_pretrained(T2V_TEACHER / "tokenizer")
    for scene in all_captioned_scenes():
        assert shipped(scene.caption).input_ids == tokenizer(scene.caption).input_ids


def test_words_that_no_caption_has_are_spelled_and_the_padding_is_no_word(tokenizer):
    ids = tokenizer("zebra!").input_ids
    assert tokenizer.decode(ids[1:-1]).strip() == "zebra !"
    assert 0 not in ids  # "!" at the end of a word is another token
    assert build_text_encoder(tokenizer).config.eos_token_id == ids[-1]


def test_the_tokenizer_comes_back_from_its_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again("a car moves left").input_ids == tokenizer("a car moves left").input_ids


def test_the_papers_plan_applies_to_the_teacher_unchanged():
    unet = VDMiniUNet3DConditionModel.from_pretrained(T2V_TEACHER, subfolder="unet")
    assert VDMINI_UNET.student_config(unet.config)["layers_per_block"] == (1, 1, 2)
    assert VDMINI_UNET.feature_pairs(unet.config)


def test_the_base_opens_with_what_the_two_share():
    shared = VDMiniT2VPipeline.from_pretrained(T2V_TEACHER, unet=None, scheduler=None)
    parts = {name: getattr(shared, name) for name in ("vae", "text_encoder", "tokenizer")}
    base = VDMiniT2VPipeline.from_pretrained(T2V_BASE, **parts)
    assert not base.embeds_guidance
    assert base.unet.config.fps_cond


@pytest.fixture(scope="module")
def measure():
    return HeldOutPrompts(16, seed=2)  # not the clips of the gates


@pytest.fixture(scope="module")
def teacher_figures(measure):
    return figures(measure, measure.generate(T2V_TEACHER, **T2V_SAMPLING))


def figures(measure, videos):
    return {name: values.mean() for name, values in measure.per_clip(videos).items()}


@pytest.mark.slow  # 16 videos
def test_the_teacher_films_what_captions_say_of_pairs_it_was_not_shown(teacher_figures):
    assert teacher_figures["place"] >= 0.6  # by chance 0.13
    assert teacher_figures["object"] >= 0.4  # the same
    assert teacher_figures["right_way"] >= 0.4  # by chance 0.14


@pytest.mark.slow
def test_the_same_noise_becomes_other_videos_by_other_captions(measure):
    pipe = VDMiniT2VPipeline.from_pretrained(T2V_TEACHER, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    scenes = [scene for scene in measure.scenes if scene.place in ("retina", "hubble_deep_field")][:2]
    frames = pipe(
        [scene.caption for scene in scenes],
        generator=[torch.Generator().manual_seed(0) for _ in scenes],
        output_type="np",
        **T2V_SAMPLING,
    ).frames
    videos = [(video * 255).round().astype(np.uint8) for video in frames]
    seen = [measure.recognise(video, scene).place for video, scene in zip(videos, scenes, strict=True)]
    assert seen == [scene.place for scene in scenes]


@pytest.mark.slow  # 32 videos
def test_pruned_and_unpruned_can_be_told_apart_by_number(measure, teacher_figures, tmp_path):
    pruned = figures(measure, measure.generate(prune_pipeline(T2V_TEACHER, tmp_path / "student"), **T2V_SAMPLING))
    assert pruned["place"] < teacher_figures["place"] - 0.3
