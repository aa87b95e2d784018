"""The text-to-video demo teacher's networks before training, against the image-to-video ones they start from."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from diffusers.models.attention_processor import Attention
from tiny import randomise
from torch import nn

from vdmini_diffusers import VDMiniT2VPipeline, VDMiniUNet3DConditionModel
from vdmini_diffusers.demo.captioned_clips import all_scenes
from vdmini_diffusers.demo.held_out import HeldOutPrompts
from vdmini_diffusers.demo.teachers import I2V_TEACHER, MULTI_STEP, T2V_BASE, T2V_TEACHER
from vdmini_diffusers.demo.text_to_video_networks import (
    GUIDANCE_SCALE,
    build_t2v_scheduler,
    build_t2v_unet,
    build_text_encoder,
    build_tokenizer,
    frame_by_frame,
    start_from_image_to_video,
)
from vdmini_diffusers.pruning import VDMINI_UNET
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(scene.caption for scene in all_scenes())


@pytest.fixture(scope="module")
def image_to_video():
    return UNetSpatioTemporalConditionModel.from_pretrained(
        I2V_TEACHER, subfolder="unet", variant=MULTI_STEP, dtype=torch.float32
    )


def test_every_word_of_the_captions_is_one_token(tokenizer):
    for scene in all_scenes():
        assert len(tokenizer(scene.caption).input_ids) == 2 + len(scene.caption.split())


def test_words_have_the_ids_of_the_shipped_tokenizer_whenever_it_is_built(tokenizer):
    shipped = type(tokenizer).from_pretrained(T2V_TEACHER / "tokenizer")
    for scene in all_scenes():
        assert shipped(scene.caption).input_ids == tokenizer(scene.caption).input_ids


def test_words_that_no_caption_has_are_spelled_and_the_padding_is_no_word(tokenizer):
    ids = tokenizer("zebra!").input_ids
    assert tokenizer.decode(ids[1:-1]).strip() == "zebra !"
    assert 0 not in ids  # "!" at the end of a word is another token
    assert build_text_encoder(tokenizer).config.eos_token_id == ids[-1]


def test_the_tokenizer_comes_back_from_its_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again("a bus moves left").input_ids == tokenizer("a bus moves left").input_ids


def test_the_decoder_without_time_is_the_others_layers_in_space():
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 32), layers_per_block=1
    )
    randomise(vae).eval()
    for name, parameter in vae.named_parameters():  # layers in time have no say
        if "mix_factor" in name:
            nn.init.constant_(parameter, -100.0)
    nn.init.zeros_(vae.decoder.time_conv_out.weight)
    with torch.no_grad():
        vae.decoder.time_conv_out.weight[:, :, 1, 0, 0] = torch.eye(3)
    nn.init.zeros_(vae.decoder.time_conv_out.bias)
    images, latents = torch.randn(2, 3, 16, 16), torch.randn(2, 4, 8, 8)
    made = frame_by_frame(vae).eval()
    with torch.no_grad():
        torch.testing.assert_close(made.encode(images).latent_dist.mean, vae.encode(images).latent_dist.mean)
        wanted = vae.decode(latents, num_frames=2).sample
        torch.testing.assert_close(made.decode(latents).sample, wanted, atol=1e-4, rtol=1e-4)


def test_the_unet_starts_at_what_the_other_does_in_space_with_neither_image_nor_text(image_to_video):
    unet = build_t2v_unet().eval()
    start_from_image_to_video(unet, image_to_video)
    spatial = UNetSpatioTemporalConditionModel(**image_to_video.config).eval()
    spatial.load_state_dict(image_to_video.state_dict())
    for model in (spatial, unet):  # no text: cross-attention adds nothing
        for name, module in model.named_modules():
            if isinstance(module, Attention) and name.endswith("attn2") and "temp" not in name:
                nn.init.zeros_(module.to_out[0].weight)
                nn.init.zeros_(module.to_out[0].bias)
    for module in spatial.modules():
        if hasattr(module, "mix_factor"):
            nn.init.constant_(module.mix_factor, 100.0)  # all of space, nothing of time
    t = 400
    sigma = ((1 - build_t2v_scheduler().alphas_cumprod[t]) / build_t2v_scheduler().alphas_cumprod[t]) ** 0.5
    latents = torch.randn(1, 2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = spatial(
            torch.cat([latents, torch.zeros_like(latents)], dim=2),
            0.25 * sigma.log(),
            torch.zeros(1, 1, 64),
            torch.tensor([[6.0, 127.0, 0.02]]),
        ).sample
        made = unet(latents.transpose(1, 2), t, torch.zeros(1, 3, 64), fps=8).sample.transpose(1, 2)
    # The timestep's embedding is learned, not copied.
    assert (made - wanted).std() < 0.1 * wanted.std()


# The trained teachers


SAMPLING = {"num_inference_steps": 4, "guidance_scale": GUIDANCE_SCALE}


@pytest.fixture(scope="module")
def measure():
    return HeldOutPrompts(16, seed=2)


@pytest.fixture(scope="module")
def teacher_videos(measure):
    return measure.generate(T2V_TEACHER, **SAMPLING)


def test_the_papers_plan_applies_to_the_teacher_unchanged():
    unet = VDMiniUNet3DConditionModel.from_pretrained(T2V_TEACHER, subfolder="unet")
    assert VDMINI_UNET.student_config(unet.config)["layers_per_block"] == (1, 1, 2)
    assert VDMINI_UNET.feature_pairs(unet.config)


@pytest.mark.slow  # 16 videos
def test_the_teacher_films_what_captions_say_of_pairs_it_was_not_shown(measure, teacher_videos):
    numbers = measure(teacher_videos)
    assert numbers["background_accuracy"] >= 0.6  # by chance 0.13
    assert numbers["object_accuracy"] >= 0.4  # the same


@pytest.mark.slow
def test_the_same_noise_becomes_other_videos_by_other_captions(measure):
    pipe = VDMiniT2VPipeline.from_pretrained(T2V_TEACHER, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    captions = ["a red car moves left past an eye", "a balloon moves up past the stars"]
    frames = pipe(
        captions,
        num_frames=8,
        generator=[torch.Generator().manual_seed(0) for _ in captions],
        output_type="np",
        **SAMPLING,
    ).frames
    seen = [measure.recognise((video * 255).round().astype(np.uint8), "red car").background for video in frames]
    assert seen == ["retina", "hubble_deep_field"]


@pytest.mark.slow  # 32 videos
def test_pruned_and_unpruned_can_be_told_apart_by_number(measure, teacher_videos, tmp_path):
    pruned = measure.generate(prune_pipeline(T2V_TEACHER, tmp_path / "student"), **SAMPLING)
    assert measure(pruned)["background_accuracy"] < measure(teacher_videos)["background_accuracy"] - 0.3


def test_the_base_opens_with_what_the_two_share():
    shared = VDMiniT2VPipeline.from_pretrained(T2V_TEACHER, unet=None, scheduler=None)
    parts = {name: getattr(shared, name) for name in ("vae", "text_encoder", "tokenizer")}
    base = VDMiniT2VPipeline.from_pretrained(T2V_BASE, **parts)
    assert not base.embeds_guidance
    assert base.unet.config.fps_cond
