"""Decoding in tiles on a GPU equals that on a CPU."""

import pytest
import torch
from tiny_clips import moving_latents, tiny_tiled_vae


pytestmark = pytest.mark.gpu


@pytest.fixture
def vae():
    vae = tiny_tiled_vae()
    vae.enable_tiling(24, 24, 4, 16, 16, 2)
    return vae


@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.float16, 0.01), (torch.bfloat16, 0.05)], ids=str
)
def test_tiles_are_those_of_the_cpu(dtype, tolerance, device, vae):
    latents = moving_latents(6, 16, 20)
    expected = vae.decode(latents, num_frames=6).sample
    vae.to(device, dtype)
    found = vae.decode(latents.to(device, dtype), num_frames=6).sample
    assert found.shape == expected.shape == (6, 3, 32, 40)
    error = (found.float().cpu() - expected).abs()
    assert error.mean() < tolerance * expected.std() and error.max() < 20 * tolerance * expected.std()
