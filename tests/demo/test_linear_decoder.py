"""Frames from latents by one matrix."""

import numpy as np
import pytest
import torch

from vdmini_diffusers.demo.linear_decoder import LinearDecoder
from vdmini_diffusers.demo.scenes import draw_hidden_clip


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    return np.stack([draw_hidden_clip(np.random.default_rng(i))[0] for i in range(44)])


def means_of_patches(clips: np.ndarray, size: int) -> torch.Tensor:
    """`(clips, frames, 3, height / size, width / size)`, in place of a VAE's latents."""
    pixels = torch.from_numpy(clips).movedim(-1, 2).float() / 255
    return pixels.unfold(3, size, size).unfold(4, size, size).mean(dim=(-1, -2))


def test_what_is_linear_in_the_latents_around_is_found(clips):
    rng = torch.Generator().manual_seed(0)
    latents = torch.rand(4, 3, 2, 8, 8, generator=rng)
    shifted = torch.cat([latents[..., :1], latents[..., :-1]], dim=-1)  # of the neighbour on the left
    frames = torch.stack([latents[:, :, 0], shifted[:, :, 1], latents[:, :, 1]], dim=-1)
    frames = frames.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    as_bytes = (frames * 255).round().to(torch.uint8).numpy()
    found = LinearDecoder(latents[:3], as_bytes[:3])(latents[3:])
    assert found.dtype == np.uint8
    assert found.shape == as_bytes[3:].shape
    assert np.abs(found.astype(int) - as_bytes[3:]).max() <= 1


def test_clips_of_other_scenes_are_decoded_better_than_by_repeating_what_the_latents_average(clips):
    latents = means_of_patches(clips, 8)
    found = LinearDecoder(latents[:40], clips[:40])(latents[40:])
    repeated = (latents[40:].movedim(2, -1) * 255).round().repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    errors = [np.square(decoded - clips[40:].astype(float)).mean() for decoded in (found, repeated.numpy())]
    assert errors[0] < 0.8 * errors[1]
