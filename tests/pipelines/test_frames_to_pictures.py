"""Frames become bytes on their device, and the pictures are the stock processor's."""

import numpy as np
import pytest
import torch
from diffusers.video_processor import VideoProcessor

from vdmini_diffusers.pipelines import pipeline_vdmini_i2v, pipeline_vdmini_t2v


def bytes_of(videos):
    return np.stack([np.stack([np.asarray(frame) for frame in frames]) for frames in videos])


@pytest.mark.parametrize("module", [pipeline_vdmini_i2v, pipeline_vdmini_t2v], ids=["i2v", "t2v"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 6, 10), (1, 3, 1, 1, 1), (1, 1, 2, 4, 4)], ids=["clips", "pixel", "grey"])
def test_pictures_are_those_of_the_stock_processor(module, dtype, shape):
    video = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    video[0, 0, 0, 0, 0] = 1 / 255  # half-way between two bytes after denormalising
    expected = VideoProcessor().postprocess_video(video, output_type="pil")
    output = module.UInt8VideoProcessor().postprocess_video(video, output_type="pil")
    np.testing.assert_array_equal(bytes_of(output), bytes_of(expected))
    assert {frame.mode for frames in output for frame in frames} == {expected[0][0].mode}


@pytest.mark.parametrize("output_type", ["np", "pt"])
def test_other_outputs_are_the_stock_ones(output_type):
    video = torch.randn(1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = VideoProcessor().postprocess_video(video, output_type=output_type)
    output = pipeline_vdmini_i2v.UInt8VideoProcessor().postprocess_video(video, output_type=output_type)
    np.testing.assert_array_equal(np.asarray(output), np.asarray(expected))
