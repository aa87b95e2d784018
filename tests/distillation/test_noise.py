import math

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_svd_pipeline

from vdmini_diffusers.distillation.noise import (
    choose,
    edm_coefficients,
    gaussian_like,
    instance_noise_probabilities,
    karras_sigmas,
)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_karras_levels_are_those_of_svds_scheduler():
    scheduler: EulerDiscreteScheduler = tiny_svd_pipeline().scheduler
    scheduler.set_timesteps(4)
    assert torch.allclose(scheduler.sigmas[:-1], karras_sigmas(4).float(), rtol=1e-5)
    assert karras_sigmas(4)[:3].tolist() == pytest.approx([700, 70.5408, 2.2691], rel=1e-4)  # what SF-V trains on


def test_coefficients_at_their_limits():
    clean, noisy = edm_coefficients(torch.tensor([1e-4, 1e4], dtype=torch.float64)).skip
    assert clean == pytest.approx(1) and noisy == pytest.approx(0, abs=1e-7)
    assert edm_coefficients(torch.tensor([1e4])).out.item() == pytest.approx(-1)
    assert edm_coefficients(torch.tensor([700.0])).noise.item() == pytest.approx(0.25 * math.log(700))


@given(st.floats(0.002, 700))
def test_model_inputs_have_unit_variance_and_the_true_velocity_denoises(sigma):
    torch.manual_seed(0)
    sigmas = torch.tensor([sigma], dtype=torch.float64)
    c = edm_coefficients(sigmas)
    assert (c.in_**2 * (1 + sigmas**2)).item() == pytest.approx(1)
    x, noise = torch.randn(2, 100, dtype=torch.float64)
    # v-prediction: alpha noise - sigma x in the variance-preserving frame
    velocity = c.in_ * noise - c.in_ * sigmas * x
    assert torch.allclose(c.skip * (x + sigmas * noise) + c.out * velocity, x)


def test_instance_noise_levels_have_the_quantiles_of_sf_vs_distribution():
    sigmas, probabilities = instance_noise_probabilities()
    assert len(sigmas) == 999 and probabilities.sum().item() == pytest.approx(1)
    quantiles = [sigmas[int((probabilities.cumsum(0) < q).sum())].item() for q in (0.05, 0.25, 0.5, 0.75, 0.95)]
    assert quantiles == pytest.approx([0.071, 0.189, 0.369, 0.725, 1.93], rel=0.02)


def test_instance_noise_asks_for_a_positive_deviation():
    with pytest.raises(ValueError, match="must be positive, not -1"):
        instance_noise_probabilities(p_std=-1)


def test_choices_follow_their_probabilities():
    values = choose(torch.tensor([1.0, 2.0]), torch.tensor([0.25, 0.75]), generators(*range(2000)))
    assert (values == 2).float().mean().item() == pytest.approx(0.75, abs=0.04)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_what_a_sample_draws_does_not_depend_on_its_neighbours(seeds):
    together = gaussian_like(torch.empty(len(seeds), 2, 3), generators(*seeds))
    alone = [gaussian_like(torch.empty(1, 2, 3), generators(seed)) for seed in seeds]
    assert torch.equal(together, torch.cat(alone))
