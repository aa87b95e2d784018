"""The device that the tests in this folder run on: a GPU, or with VDMINI_TEST_DEVICE=cpu, as far as it can, a CPU."""

import os

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from runs import forget_accelerator
from tiny import randomise, student_of, tiny_svd_pipeline, tiny_teacher_unet
from tiny_text_to_video import tiny_t2v_pipeline, tiny_t2v_student

from vdmini_diffusers import VDMiniI2VPipeline
from vdmini_diffusers.pruning import VDMINI_UNET


@pytest.fixture(scope="session")
def device():
    name = os.environ.get("VDMINI_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device; VDMINI_TEST_DEVICE=cpu runs what a CPU can")
    return torch.device(name)


@pytest.fixture
def gpu(device):
    if device.type != "cuda":
        pytest.skip("a CPU cannot")
    return device


@pytest.fixture(autouse=True)
def float32_is_whole(monkeypatch):
    """A GPU's convolutions would otherwise round to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def nothing_stays():
    """Reset what accelerate, the attention dispatcher and the compiler keep for the process."""
    backend = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry.set_active_backend(backend)
    torch.compiler.reset()
    forget_accelerator()


def i2v_student():
    return student_of(randomise(tiny_teacher_unet()), VDMINI_UNET)


def i2v_pipeline():
    pipe = VDMiniI2VPipeline(**tiny_svd_pipeline().components | {"unet": i2v_student()})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(params=["i2v", "t2v"])
def task(request):
    return request.param


@pytest.fixture
def student(task):
    return i2v_student() if task == "i2v" else tiny_t2v_student()


@pytest.fixture
def pipe(task):
    return i2v_pipeline() if task == "i2v" else tiny_t2v_pipeline()
