"""What `VDMiniI2VPipeline` computes, and what it refuses to compute."""

import copy
import inspect
import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableVideoDiffusionPipeline,
)
from diffusers.callbacks import SDCFGCutoffCallback
from PIL import Image
from tiny import tiny_image

from vdmini_diffusers import VDMiniI2VPipeline


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def own_pipe(student_pipe):
    """A student pipeline whose components no other test sees."""
    return quiet(VDMiniI2VPipeline(**copy.deepcopy(student_pipe.components)))


def test_the_arguments_are_those_of_the_stock_pipeline_in_the_same_order_with_four_other_defaults():
    ours = inspect.signature(VDMiniI2VPipeline.__call__).parameters
    stock = inspect.signature(StableVideoDiffusionPipeline.__call__).parameters
    assert list(ours) == list(stock)
    assert {name: ours[name].default for name in ours if ours[name].default != stock[name].default} == {
        "height": None,
        "width": None,
        "num_inference_steps": 1,
        "max_guidance_scale": 1.0,
    }
    assert ours["min_guidance_scale"].default == 1.0


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_one_step_is_the_denoiser_of_equation_2_at_the_highest_noise_level(role, student_pipe, teacher_pipe):
    pipe = student_pipe if role == "student" else quiet(VDMiniI2VPipeline(**teacher_pipe.components))
    image, eps = tiny_image(), torch.randn(1, 2, 4, 8, 8, generator=seeded())
    found = pipe(image, latents=eps, generator=seeded(), output_type="latent").frames

    sigma = 700.0
    c_skip, c_out = 1 / (sigma**2 + 1), -sigma / math.sqrt(sigma**2 + 1)
    c_in, c_noise = 1 / math.sqrt(sigma**2 + 1), 0.25 * math.log(sigma)
    x = sigma * eps  # (batch, frames, channels, height, width)
    with torch.no_grad():
        context = pipe._encode_image(image, "cpu", 1, False)
        pixels = pipe.video_processor.preprocess(image, height=16, width=16)
        pixels = pixels + 0.02 * torch.randn(pixels.shape, generator=seeded())
        first_frame = pipe.vae.encode(pixels).latent_dist.mode()
        unet_input = torch.cat([c_in * x, first_frame.unsqueeze(1).expand(-1, 2, -1, -1, -1)], dim=2)
        conditions = torch.tensor([[7 - 1, 127, 0.02]])
        output = pipe.unet(unet_input, torch.tensor(c_noise), context, added_time_ids=conditions).sample
    # Euler's step goes from x = 700 eps to x0 by differences of that size, in float32.
    torch.testing.assert_close(found, c_skip * x + c_out * output, atol=5e-4, rtol=0)
    assert found.std() > 0.05


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    "guidance",
    [{"max_guidance_scale": 1.0}, {"max_guidance_scale": 3.0}, {"min_guidance_scale": 1.5, "max_guidance_scale": 4.0}],
    ids=["none", "to-3", "1.5-to-4"],
)
def test_with_steps_and_guidance_it_is_bit_equal_to_the_stock_pipeline(role, guidance, student_pipe, teacher_pipe):
    components = (student_pipe if role == "student" else teacher_pipe).components
    arguments = {"num_inference_steps": 3, "num_frames": 3, "fps": 9, "motion_bucket_id": 60, "decode_chunk_size": 2}
    stock, ours = (
        quiet(cls(**components))(tiny_image(), 16, 32, generator=seeded(), output_type="np", **arguments, **guidance)
        for cls in (StableVideoDiffusionPipeline, VDMiniI2VPipeline)
    )
    assert type(ours) is type(stock)
    assert ours.frames.shape == (1, 3, 16, 32, 3)
    assert np.array_equal(ours.frames, stock.frames)


@pytest.mark.parametrize(
    ("sample_size", "size"),
    [(8, (16, 16)), ((8, 16), (16, 32)), ([8, 16], (16, 32)), (96, (192, 192)), (None, (576, 1024))],
)
def test_the_default_size_is_that_of_the_loaded_unet(sample_size, size, student_pipe):
    student_pipe.unet.register_to_config(sample_size=sample_size)
    assert student_pipe.default_size == size


def test_the_sample_size_in_svds_own_config_is_not_taken_for_its_resolution(student_pipe):
    student_pipe.unet.register_to_config(sample_size=96)
    student_pipe.vae_scale_factor = 8
    assert student_pipe.default_size == (576, 1024)


def test_default_outputs_are_pil_images_of_the_default_size(student_pipe):
    frames = student_pipe(tiny_image()).frames
    assert [len(video) for video in frames] == [2]
    assert all(frame.size == (16, 16) for frame in frames[0])
    assert student_pipe(tiny_image(), return_dict=False, output_type="pt").shape == (1, 2, 3, 16, 16)


def test_videos_of_one_image_are_neighbours_and_share_its_first_frame_and_context(student_pipe):
    other = Image.fromarray(255 - np.asarray(tiny_image()))
    latents = torch.randn(4, 2, 4, 8, 8, generator=seeded())
    common = {"noise_aug_strength": 0.0, "output_type": "latent", "max_guidance_scale": 2.0}
    together = student_pipe([tiny_image(), other], num_videos_per_prompt=2, latents=latents, **common).frames
    for index, image in enumerate([tiny_image(), tiny_image(), other, other]):
        alone = student_pipe(image, latents=latents[index : index + 1], **common).frames
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_each_video_is_that_of_its_image_and_its_generator_alone(student_pipe, as_tensor):
    images = [tiny_image(), Image.fromarray(255 - np.asarray(tiny_image()))]
    if as_tensor:
        images = torch.rand(2, 3, 224, 224, generator=seeded())
    common = {"noise_aug_strength": 0.5, "output_type": "latent"}
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    together = student_pipe(images, num_videos_per_prompt=2, generator=generators, **common).frames
    for index, which in enumerate([0, 0, 1, 1]):
        image = images[which : which + 1] if as_tensor else images[which]
        alone = student_pipe(image, generator=torch.Generator().manual_seed(index), **common).frames
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-3, rtol=1e-3)


def test_a_tensor_of_the_image_encoders_size_is_an_image(student_pipe):
    image = torch.rand(2, 3, 224, 224, generator=seeded())
    assert student_pipe(image, output_type="pt").frames.shape == (2, 2, 3, 16, 16)


def test_a_stock_pipeline_becomes_ours(teacher_pipe):
    pipe = VDMiniI2VPipeline.from_pipe(teacher_pipe)
    assert pipe.unet is teacher_pipe.unet
    assert len(pipe(tiny_image()).frames[0]) == 2


WRONG = [
    ({"image": None}, TypeError, "`image` must be"),
    ({"image": np.zeros((16, 16, 3))}, TypeError, "ndarray"),
    ({"image": "first_frame.png"}, TypeError, "str"),
    ({"image": [tiny_image(), torch.zeros(3, 16, 16)]}, TypeError, "Tensor"),
    ({"image": []}, ValueError, "one size"),
    ({"image": [tiny_image(), tiny_image().resize((8, 8))]}, ValueError, "one size"),
    ({"image": tiny_image().convert("RGBA")}, ValueError, "convert"),
    ({"image": torch.zeros(1, 3, 224, 224, dtype=torch.uint8)}, TypeError, "floats"),
    ({"image": torch.zeros(3, 224, 224)}, ValueError, "batch, 3, 224, 224"),
    ({"image": torch.zeros(1, 3, 16, 16)}, ValueError, "batch, 3, 224, 224"),
    ({"image": torch.full((1, 3, 224, 224), math.nan)}, ValueError, "finite"),
    ({"image": Image.new("RGB", (1, 16))}, ValueError, "at least 2 x 2 pixels, not 1 x 16"),
    ({"height": 13}, ValueError, "multiples of 2, which the VAE downsamples by"),
    ({"width": 21}, ValueError, "multiples of 2, which the VAE downsamples by"),
    ({"height": 0}, ValueError, "`height` must be at least 1"),
    ({"width": 16.0}, TypeError, "`width` must be an integer"),
    ({"num_frames": 0}, ValueError, "`num_frames` must be at least 1"),
    ({"num_frames": 2**31}, ValueError, "`num_frames` must be at most"),
    ({"num_frames": 2.5}, TypeError, "`num_frames` must be an integer"),
    ({"num_inference_steps": 0}, ValueError, "`num_inference_steps` must be at least 1"),
    ({"decode_chunk_size": 0}, ValueError, "`decode_chunk_size`"),
    ({"num_videos_per_prompt": None}, TypeError, "`num_videos_per_prompt`"),
    ({"fps": 0}, ValueError, "`fps`"),
    ({"motion_bucket_id": -1}, ValueError, "`motion_bucket_id`"),
    ({"noise_aug_strength": math.nan}, ValueError, "`noise_aug_strength`"),
    ({"noise_aug_strength": math.inf}, ValueError, "`noise_aug_strength`"),
    ({"min_guidance_scale": math.nan}, ValueError, "`min_guidance_scale`"),
    ({"max_guidance_scale": math.inf}, ValueError, "`max_guidance_scale`"),
    ({"min_guidance_scale": -1.0}, ValueError, "`min_guidance_scale` must be at least 0"),
    ({"min_guidance_scale": 3.0, "max_guidance_scale": 1.0}, ValueError, "`max_guidance_scale` .1.0. must be above 1"),
    ({"max_guidance_scale": 3.0, "num_frames": 1}, ValueError, "the 1 frames have scales from 1 to 1"),
    ({"sigmas": [0.0]}, TypeError, "`sigmas` must be a list of two or more numbers"),
    ({"sigmas": 700.0}, TypeError, "`sigmas` must be a list"),
    ({"sigmas": [1.0, 700.0, 0.0]}, ValueError, "`sigmas` must fall"),
    ({"sigmas": [math.inf, 0.0]}, ValueError, "`sigmas` must fall"),
    ({"sigmas": [math.nan, 0.0]}, ValueError, "`sigmas` must fall"),
    ({"sigmas": [700.0, -1.0]}, ValueError, "`sigmas` must fall"),
    ({"output_type": "gif"}, ValueError, "`output_type`"),
    ({"callback_on_step_end_tensor_inputs": ["noise"]}, ValueError, "noise"),
    ({"callback_on_step_end_tensor_inputs": "latents"}, TypeError, "list of names"),
    ({"callback_on_step_end_tensor_inputs": None}, TypeError, "list of names"),
    ({"callback_on_step_end": "print"}, TypeError, "must be callable"),
    ({"callback_on_step_end": SDCFGCutoffCallback(0.5, None)}, ValueError, "prompt_embeds"),
    ({"generator": 3}, TypeError, "`generator`"),
    ({"generator": [torch.Generator()] * 2}, ValueError, "2 generators for 1 videos"),
    ({"latents": torch.zeros(2, 4, 8, 8)}, ValueError, r"shape \(1, 2, 4, 8, 8\)"),
    ({"latents": torch.zeros(1, 3, 4, 8, 8)}, ValueError, r"shape \(1, 2, 4, 8, 8\)"),
    ({"latents": torch.zeros(1, 2, 4, 8, 8, dtype=torch.int64)}, TypeError, "`latents` must hold floats"),
    ({"latents": torch.full((1, 2, 4, 8, 8), math.inf)}, ValueError, "`latents` must hold finite numbers"),
    ({"latents": np.zeros((1, 2, 4, 8, 8))}, TypeError, "`latents` must be a `torch.Tensor`"),
]


@pytest.mark.parametrize(
    ("arguments", "error", "message"), WRONG, ids=[f"{i}-{'-'.join(case[0])}" for i, case in enumerate(WRONG)]
)
def test_bad_input_is_refused_before_anything_is_computed(arguments, error, message, student_pipe):
    def computing(*args):
        raise AssertionError("computed")

    hooks = [
        model.register_forward_pre_hook(computing)
        for model in (student_pipe.image_encoder, student_pipe.vae.encoder, student_pipe.unet)
    ]
    try:
        with pytest.raises(error, match=message):
            student_pipe(**{"image": tiny_image(), **arguments})
    finally:
        for hook in hooks:
            hook.remove()


def test_a_pipeline_saved_in_half_precision_and_loaded_without_a_dtype_says_what_to_do(student_pipe):
    student_pipe.unet.to(torch.float16)
    with pytest.raises(ValueError, match="pass `dtype`"):
        student_pipe(tiny_image())
    with torch.autocast("cpu", dtype=torch.float16):
        student_pipe(tiny_image())


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("size", [(24, 24), (8, 40)])
def test_sizes_that_the_stock_pipeline_takes_are_taken_with_the_same_result(role, size, student_pipe, teacher_pipe):
    components = (student_pipe if role == "student" else teacher_pipe).components
    stock, ours = (
        quiet(cls(**components))(
            tiny_image(), *size, num_inference_steps=1, max_guidance_scale=1.0, generator=seeded(), output_type="np"
        ).frames
        for cls in (StableVideoDiffusionPipeline, VDMiniI2VPipeline)
    )
    assert ours.shape == (1, 2, *size, 3)
    assert np.array_equal(ours, stock)


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("size", [(4, 4), (6, 26), (18, 4)])
def test_any_multiple_of_the_vaes_factor_is_a_size(role, size, student_pipe, teacher_pipe):
    pipe = student_pipe if role == "student" else quiet(VDMiniI2VPipeline(**teacher_pipe.components))
    assert pipe(tiny_image(), *size, output_type="pt").frames.shape == (1, 2, 3, *size)


def test_guidance_may_fall_from_the_first_frame_to_the_last(teacher_pipe):
    arguments = {"min_guidance_scale": 3.0, "max_guidance_scale": 1.5, "num_inference_steps": 2, "output_type": "np"}
    stock, ours = (
        quiet(cls(**teacher_pipe.components))(tiny_image(), 16, 16, generator=seeded(), **arguments).frames
        for cls in (StableVideoDiffusionPipeline, VDMiniI2VPipeline)
    )
    assert np.array_equal(ours, stock)


def test_guidance_that_half_precision_rounds_away_is_refused(own_pipe):
    own_pipe.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"scales from 1 to 1 in torch\.bfloat16"):
        own_pipe(tiny_image(), max_guidance_scale=1.001)


def test_conditioning_that_half_precision_cannot_hold_is_refused(own_pipe):
    own_pipe.to(torch.float16)
    with pytest.raises(ValueError, match="`motion_bucket_id` must be at most 65504"):
        own_pipe(tiny_image(), motion_bucket_id=70_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_latents_of_another_precision_are_cast(dtype, own_pipe):
    own_pipe.to(torch.bfloat16)
    eps = torch.randn(1, 2, 4, 8, 8, generator=seeded()).to(torch.bfloat16)
    found, expected = (
        own_pipe(tiny_image(), latents=latents, generator=seeded(), output_type="latent").frames
        for latents in (eps.to(dtype), eps)
    )
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(),
        DDIMScheduler(prediction_type="v_prediction"),
        EulerDiscreteScheduler(prediction_type="v_prediction"),
        EulerDiscreteScheduler(timestep_type="continuous"),
        EulerAncestralDiscreteScheduler(prediction_type="v_prediction"),
        HeunDiscreteScheduler(prediction_type="v_prediction"),
        FlowMatchEulerDiscreteScheduler(),
        EDMEulerScheduler(),
        EDMEulerScheduler(sigma_min=0.002, sigma_max=700.0, sigma_data=1.0),
        EDMEulerScheduler(sigma_min=0.002, sigma_max=700.0, prediction_type="v_prediction"),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_scheduler_with_another_meaning_of_timestep_is_refused(scheduler, num_steps, student_pipe):
    student_pipe.scheduler = scheduler
    with pytest.raises(ValueError, match=rf"{type(scheduler).__name__} .*does not suit"):
        student_pipe(tiny_image(), num_inference_steps=num_steps)


def test_edm_with_svds_constants_is_the_same_sampler(student_pipe):
    arguments = {"num_inference_steps": 3, "output_type": "latent"}
    expected = student_pipe(tiny_image(), generator=seeded(), **arguments).frames
    student_pipe.scheduler = EDMEulerScheduler(
        sigma_min=0.002, sigma_max=700.0, sigma_data=1.0, prediction_type="v_prediction"
    )
    found = student_pipe(tiny_image(), generator=seeded(), **arguments).frames
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_noise_levels_may_be_given(student_pipe):
    student_pipe(tiny_image(), sigmas=[80.0, 1.0, 0.0])
    assert student_pipe.scheduler.sigmas.tolist() == [80.0, 1.0, 0.0]


@pytest.mark.parametrize("result", [None, torch.zeros(1), {"latents": None}, {"latents": torch.zeros(1, 2, 4, 8, 7)}])
def test_a_callback_must_return_a_dictionary_with_latents_of_their_shape(result, student_pipe):
    with pytest.raises(ValueError, match="`callback_on_step_end` must return"):
        student_pipe(tiny_image(), callback_on_step_end=lambda *args: result)


def test_a_callback_may_change_nothing_or_the_latents_in_any_precision(own_pipe):
    own_pipe.to(torch.bfloat16)
    arguments = {"num_inference_steps": 2, "output_type": "latent"}
    plain = own_pipe(tiny_image(), generator=seeded(), **arguments).frames
    same = own_pipe(tiny_image(), generator=seeded(), callback_on_step_end=lambda *args: {}, **arguments).frames
    assert torch.equal(same, plain)

    def zeros(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"], dtype=torch.float32)}

    changed = own_pipe(tiny_image(), generator=seeded(), callback_on_step_end=zeros, **arguments).frames
    assert changed.dtype == torch.bfloat16 and not changed.any()


def test_the_first_noise_level_is_the_schedulers(student_pipe):
    student_pipe.scheduler = EulerDiscreteScheduler.from_config(student_pipe.scheduler.config, sigma_max=80.0)
    student_pipe(tiny_image())
    assert student_pipe.scheduler.sigmas.tolist() == [80.0, 0.0]
