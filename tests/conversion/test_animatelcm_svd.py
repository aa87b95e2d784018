"""AnimateLCM-SVD's file, a U-Net alone, put into Stable Video Diffusion by the script."""

import json

import pytest
import torch
from checkout import ROOT
from diffusers import DiffusionPipeline
from forked_scripts import start
from safetensors.torch import save_file
from tiny import randomise, tiny_image, tiny_svd_pipeline, tiny_teacher_unet

from vdmini_diffusers import VDMiniAnimateLCMSVDScheduler, VDMiniI2VPipeline


SCRIPT = ROOT / "conversion/convert_animatelcm_svd_to_diffusers.py"


@pytest.fixture
def convert(tmp_path):
    tiny_svd_pipeline().save_pretrained(tmp_path / "svd")

    def run(file, **flags):
        settings = {"pretrained_model_name_or_path": tmp_path / "svd", "unet_checkpoint": file} | flags
        settings |= {"output_dir": tmp_path / "out", "dtype": "float32"}
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        process = start([SCRIPT, *arguments], log=tmp_path / "log")
        process.join()
        return process.exitcode, (tmp_path / "log").read_text(), tmp_path / "out"

    return run


@pytest.mark.slow
def test_what_is_written_opens_samples_and_saves_as_the_file_s_unet(convert, tmp_path):
    unet = randomise(tiny_teacher_unet(), 7).eval()
    save_file(unet.state_dict(), tmp_path / "AnimateLCM-SVD-xt.safetensors")
    status, log, folder = convert(tmp_path / "AnimateLCM-SVD-xt.safetensors")
    assert status == 0, log
    assert json.loads((folder / "model_index.json").read_text())["scheduler"] == [
        "scheduling_animatelcm_svd_vdmini",
        "VDMiniAnimateLCMSVDScheduler",
    ]
    pipe = VDMiniI2VPipeline.from_pretrained(folder, dtype=torch.float32, optimize=False)
    assert isinstance(pipe.scheduler, VDMiniAnimateLCMSVDScheduler) and pipe.scheduler.config.sigma_max == 700
    assert all(torch.equal(a, b) for a, b in zip(pipe.unet.parameters(), unet.parameters(), strict=True))
    remote = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    videos = []
    for each in (pipe, remote):
        each.set_progress_bar_config(disable=True)
        generator = torch.manual_seed(0)
        videos.append(each(tiny_image(), 16, 16, num_inference_steps=8, generator=generator, output_type="pt").frames)
    assert torch.equal(*videos)


def test_another_model_s_file_is_refused_and_nothing_is_written(convert, tmp_path):
    tensors = dict(tiny_teacher_unet().state_dict())
    tensors["conv_in.bias"] = torch.zeros(7)
    save_file(tensors, tmp_path / "other.safetensors")
    status, log, folder = convert(tmp_path / "other.safetensors")
    assert status and "1 tensor(s) differ, first conv_in.bias of shape (7,), expected (32,)" in log
    assert not folder.exists()
