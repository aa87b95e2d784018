"""Every test: offline, one thread, fixed seed, module caches of its own."""

import gc
import os
import shutil
import tempfile


# Before torch, diffusers and huggingface_hub read them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="vdmini-tests-hf-")
os.environ["HF_MODULES_CACHE"] = os.path.join(os.environ["HF_HOME"], "modules")
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
import torch
from hypothesis import settings
from tiny import randomise, tiny_svd_pipeline, tiny_teacher_unet


settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.load_profile("fixed")


def pytest_collection_finish():
    # Half a million objects of imported modules: each full collection would look through them for 0.3 s.
    gc.freeze()


def pytest_unconfigure():
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def gradients_stay_on():
    yield
    assert torch.is_grad_enabled(), "a test has left gradients off for those after it"


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory):
    """A tiny SVD-style pipeline folder with every tensor random, one safetensors file per model. Read only."""
    folder = tmp_path_factory.mktemp("teacher") / "tiny-svd"
    tiny_svd_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def teacher_unet():
    return randomise(tiny_teacher_unet()).eval()
