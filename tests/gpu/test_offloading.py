"""Pipelines whose weights wait on the CPU, and come to the device in parts, give the same video."""

import copy

import pytest
import torch
from runs import video


pytestmark = pytest.mark.gpu


def assert_same_video(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.fixture
def expected(pipe, device):
    return video(copy.deepcopy(pipe).to(device))


def test_whole_models_come_and_go(gpu, pipe, expected):
    pipe.enable_model_cpu_offload(device=gpu)
    for _ in range(2):
        assert_same_video(video(pipe), expected)
    assert {p.device.type for part in (pipe.unet, pipe.vae) for p in part.parameters()} == {"cpu"}


def test_layers_come_and_go(gpu, pipe, expected):
    pipe.enable_sequential_cpu_offload(device=gpu)
    for _ in range(2):
        assert_same_video(video(pipe), expected)
    assert {p.device.type for p in pipe.unet.parameters()} == {"meta"}


@pytest.mark.parametrize("use_stream", [False, True], ids=["in turn", "ahead on a stream"])
@pytest.mark.parametrize(
    "how", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}], ids=str
)
def test_groups_of_layers_come_and_go(how, use_stream, device, pipe, expected):
    if use_stream and device.type == "cpu":
        pytest.skip("streams are a GPU's")
    pipe.to(device)
    pipe.unet.to("cpu")
    pipe.unet.enable_group_offload(onload_device=device, use_stream=use_stream, **how)
    for _ in range(2):
        assert_same_video(video(pipe), expected)
    if not use_stream:  # which may have begun with the next ones
        assert {p.device.type for p in pipe.unet.parameters()} == {"cpu"}
