"""What `VDMiniI2VPipeline` computes, and what it refuses to compute."""

import inspect
import math

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
from PIL import Image
from tiny import tiny_image

from vdmini_diffusers import VDMiniI2VPipeline


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


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
    ({"height": 12}, ValueError, "multiples of 8"),
    ({"width": 20}, ValueError, "multiples of 8"),
    ({"height": 0}, ValueError, "`height` must be at least 1"),
    ({"width": 16.0}, TypeError, "`width` must be an integer"),
    ({"num_frames": 0}, ValueError, "`num_frames` must be at least 1"),
    ({"num_frames": 2.5}, TypeError, "`num_frames` must be an integer"),
    ({"num_inference_steps": 0}, ValueError, "`num_inference_steps` must be at least 1"),
    ({"decode_chunk_size": 0}, ValueError, "`decode_chunk_size`"),
    ({"num_videos_per_prompt": None}, TypeError, "`num_videos_per_prompt`"),
    ({"fps": 0}, ValueError, "`fps`"),
    ({"motion_bucket_id": -1}, ValueError, "`motion_bucket_id`"),
    ({"noise_aug_strength": float("nan")}, ValueError, "`noise_aug_strength`"),
    ({"output_type": "gif"}, ValueError, "`output_type`"),
    ({"callback_on_step_end_tensor_inputs": ["noise"]}, ValueError, "noise"),
    ({"generator": [torch.Generator()] * 2}, ValueError, "2 generators for 1 videos"),
    ({"latents": torch.zeros(2, 4, 8, 8)}, ValueError, r"shape \(1, 2, 4, 8, 8\)"),
    ({"latents": torch.zeros(1, 3, 4, 8, 8)}, ValueError, r"shape \(1, 2, 4, 8, 8\)"),
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


def test_the_teachers_fourth_stage_asks_for_larger_multiples(teacher_pipe):
    with pytest.raises(ValueError, match="multiples of 16"):
        VDMiniI2VPipeline(**teacher_pipe.components)(tiny_image(), height=24)


def test_the_first_noise_level_is_the_schedulers(student_pipe):
    student_pipe.scheduler = EulerDiscreteScheduler.from_config(student_pipe.scheduler.config, sigma_max=80.0)
    student_pipe(tiny_image())
    assert student_pipe.scheduler.sigmas.tolist() == [80.0, 0.0]
