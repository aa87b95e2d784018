"""Half weights are loaded as such, and give the videos of the float32 ones."""

import pytest
import torch
from runs import video

from vdmini_diffusers import VDMiniI2VPipeline, VDMiniT2VPipeline


pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_the_fp16_variant_gives_a_finite_video_near_that_of_float32(dtype, task, device, pipe, tmp_path):
    expected = video(pipe.to(device))
    pipe.to("cpu", torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert list(tmp_path.glob("unet/*.fp16.safetensors")) and not list(tmp_path.glob("unet/*model.safetensors"))
    cls = VDMiniI2VPipeline if task == "i2v" else VDMiniT2VPipeline
    loaded = cls.from_pretrained(tmp_path, dtype=dtype, variant="fp16").to(device)
    loaded.set_progress_bar_config(disable=True)
    parameters = [p for part in (loaded.unet, loaded.vae) for p in part.parameters()]
    assert {(p.device.type, p.dtype) for p in parameters} == {(device.type, dtype)}
    found = video(loaded)
    assert found.shape == expected.shape and found.isfinite().all() and found.std() > 0.01
    assert (found - expected).abs().mean() < 0.02
