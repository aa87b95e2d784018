"""Prompts and pictures are encoded once, and the videos are bit-equal to those of the pipeline itself."""

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image
from tiny import randomise, tiny_svd_pipeline
from tiny_text_to_video import tiny_t2v_pipeline
from tiny_wan import tiny_wan_pipeline

from vdmini_diffusers.analysis.encodings import Encodings
from vdmini_diffusers.analysis.generation import FixedVideos
from vdmini_diffusers.analysis.parts import removable_parts, removed


def pictures():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    return [{"image": Image.fromarray(picture)} for picture in pixels]


def svd():
    pipe = tiny_svd_pipeline()
    settings = {"num_frames": 2, "num_inference_steps": 1, "max_guidance_scale": 1.5, "height": 16, "width": 16}
    return pipe, pipe.unet, pictures(), settings, "D.1.R.0", [pipe.image_encoder, pipe.vae.encoder]


def text_to_video():
    pipe = tiny_t2v_pipeline()
    settings = {"num_frames": 2, "num_inference_steps": 2, "height": 16, "width": 16}
    return pipe, pipe.unet, [{"prompt": "a"}, {"prompt": "b"}], settings, "U.1.R.0", [pipe.text_encoder]


def wan_image_to_video():
    """It encodes its picture in `prepare_latents`."""
    parts = {k: v for k, v in tiny_wan_pipeline(("transformer",)).components.items() if k != "scheduler"}
    config = {**parts["transformer"].config, "in_channels": 2 * parts["vae"].config.z_dim + 4}
    config["out_channels"] = parts["vae"].config.z_dim
    parts["transformer"] = randomise(WanTransformer3DModel.from_config(config)).eval()
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe = WanImageToVideoPipeline(**parts, scheduler=scheduler)
    settings = {"num_frames": 5, "num_inference_steps": 1, "height": 16, "width": 16, "max_sequence_length": 8}
    inputs = [{**given, "prompt": "a"} for given in pictures()]
    return pipe, pipe.transformer, inputs, settings, "blocks.1", [pipe.text_encoder, pipe.vae.encoder]


def videos_of(pipe, inputs, settings):
    """By the pipeline's own calls."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(inputs))]
    frames = [
        pipe(**settings, **given, generator=generator, output_type="np").frames[0]
        for given, generator in zip(inputs, generators, strict=True)
    ]
    return (np.clip(frames, 0, 1) * 255).round().astype(np.uint8)


@pytest.mark.parametrize("make", [svd, wan_image_to_video, pytest.param(text_to_video, marks=pytest.mark.slow)])
def test_encoders_run_at_the_first_call_only_and_videos_are_the_same(make):
    pipe, denoiser, inputs, settings, part, encoders = make()
    pipe.set_progress_bar_config(disable=True)
    runs = []
    for encoder in encoders:
        encoder.register_forward_hook(lambda module, args, output: runs.append(module))
    generate = FixedVideos(pipe, inputs, settings=settings)
    whole = generate()
    assert all(runs.count(encoder) >= 1 for encoder in encoders)
    first = len(runs)
    with removed(denoiser, removable_parts(denoiser)[part]):
        without = generate()
    assert np.array_equal(generate(), whole) and len(runs) == first
    assert np.array_equal(videos_of(pipe, inputs, settings), whole) and len(runs) > first
    with removed(denoiser, removable_parts(denoiser)[part]):
        assert np.array_equal(videos_of(pipe, inputs, settings), without)
    assert not np.array_equal(whole, without)


class Encoding:
    """A pipeline's encoder, which counts its calls."""

    def __init__(self):
        self.calls = 0

    def encode_image(self, image, generator=None, scale=1):
        self.calls += 1
        return {"image": image * scale, "none": None}


def test_results_are_copies_by_content_and_calls_with_a_generator_are_not_kept():
    pipe, encodings, picture = Encoding(), Encodings(), torch.arange(3.0)
    with encodings.remembered(pipe):
        pipe.encode_image(picture)["image"].add_(1)
        assert pipe.encode_image(picture.clone())["image"].tolist() == [0, 1, 2] and pipe.calls == 1
        assert pipe.encode_image(picture, scale=2)["image"].tolist() == [0, 2, 4] and pipe.calls == 2
        assert pipe.encode_image(picture + 1)["image"].tolist() == [1, 2, 3] and pipe.calls == 3
        assert pipe.encode_image(picture.double())["image"].dtype == torch.float64 and pipe.calls == 4
        for _ in range(2):
            pipe.encode_image(picture, generator=torch.Generator())
        assert pipe.calls == 6
    pipe.encode_image(picture)
    assert pipe.calls == 7 and "encode_image" not in vars(pipe)
