"""Noise and velocities of both kinds, against diffusers' schedulers and against what a velocity must satisfy."""

import math

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from vdmini_diffusers.distillation.noise import per_sample
from vdmini_diffusers.distillation.ode_teacher import DiffusionSchedule
from vdmini_diffusers.distillation.velocity import FlowMatchingPath, VPredictionPath


def cogvideox_scheduler() -> CogVideoXDDIMScheduler:
    """As the 2B model's: no signal at the last timestep."""
    return CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
    )


PATHS = {"flow": FlowMatchingPath(), "v": VPredictionPath(DiffusionSchedule.of(cogvideox_scheduler()))}
LEVELS = {"flow": torch.tensor([0.001, 0.4, 1.0]), "v": torch.tensor([0, 500, 999])}


@pytest.fixture
def latents_and_noise():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, 4, 2, 2, generator=generator), torch.randn(3, 2, 4, 2, 2, generator=generator)


def noisy(path, latents, noise, levels):
    signal, sigma = path.coefficients(levels, latents)
    return signal * latents + sigma * noise


def draws(path, count: int) -> torch.Tensor:
    return path.draw_levels([torch.Generator().manual_seed(0)] * count)  # one after the other


@pytest.mark.parametrize("kind", PATHS)
def test_the_true_velocity_leads_back_to_the_clip_from_any_level(kind, latents_and_noise):
    path, levels = PATHS[kind], LEVELS[kind]
    velocity = path.velocity(*latents_and_noise, levels)
    clean = path.clean_latents(noisy(path, *latents_and_noise, levels), velocity, levels)
    torch.testing.assert_close(clean, latents_and_noise[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 7.0])
def test_flow_matching_has_the_levels_of_the_scheduler(shift, latents_and_noise):
    """Without shift, FastVideo's first trainer; with 7, its present one for HunyuanVideo."""
    scheduler, path = FlowMatchEulerDiscreteScheduler(shift=shift), FlowMatchingPath(shift)
    levels = draws(path, 300)
    distances = (scheduler.sigmas[None] - levels[:, None]).abs()
    assert distances.min(dim=1).values.max() < 1e-6
    timesteps = scheduler.timesteps[distances.argmin(dim=1)]
    assert torch.allclose(path.timesteps(levels), timesteps, atol=1e-3)
    latents, noise = latents_and_noise
    expected = scheduler.scale_noise(latents[:1], timesteps[:1], noise[:1])
    torch.testing.assert_close(noisy(path, latents[:1], noise[:1], levels[:1]), expected)


def test_densities_before_the_shift():
    uniform, normal, mode = (
        draws(FlowMatchingPath(density=density), 4000) for density in ("uniform", "logit_normal", "mode")
    )
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.02)
    assert uniform.std().item() == pytest.approx(12**-0.5, abs=0.01)
    assert torch.logit(normal[normal < 1]).std().item() == pytest.approx(1, abs=0.05)
    assert mode.std() < uniform.std()
    assert min(levels.min() for levels in (uniform, normal, mode)) >= 1e-3  # never divided by zero


def test_v_prediction_is_the_scheduler_s(latents_and_noise):
    latents, noise = latents_and_noise
    path, levels = PATHS["v"], LEVELS["v"]
    scheduler = cogvideox_scheduler()
    expected = scheduler.add_noise(latents, noise, levels)
    torch.testing.assert_close(noisy(path, latents, noise, levels), expected)
    # Its `get_velocity` is what turns a velocity into clean latents, with noisy latents in the place of the clean.
    velocity = path.velocity(latents, noise, levels)
    torch.testing.assert_close(
        path.clean_latents(expected, velocity, levels), scheduler.get_velocity(velocity, expected, levels)
    )
    assert draws(path, 2000).float().mean().item() == pytest.approx(499.5, abs=20)


def test_the_error_of_v_is_the_weighted_error_that_cogvideox_is_trained_on(latents_and_noise):
    latents, noise = latents_and_noise
    path, levels = PATHS["v"], torch.tensor([10, 500, 990])
    predicted = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    clean = path.clean_latents(noisy(path, latents, noise, levels), predicted, levels)
    weights = 1 / (1 - path.schedule.alphas_cumprod[levels])
    weighted = (per_sample(weights, latents) * (clean - latents).square()).mean()
    error = (predicted - path.velocity(latents, noise, levels)).square().mean()
    assert weighted.item() == pytest.approx(error.item(), rel=1e-4)


@pytest.mark.parametrize("kind", PATHS)
def test_noise_over_signal_of_the_critics_is_log_normal(kind):
    path = PATHS[kind]
    levels = path.draw_instance_levels([torch.Generator().manual_seed(0)] * 4000)
    log_sigmas = path.log_sigmas(levels)
    assert log_sigmas.mean().item() == pytest.approx(-1, abs=0.06)
    assert log_sigmas.std().item() == pytest.approx(1, abs=0.06)


def test_flow_matching_at_t_is_edm_s_noise_scaled(latents_and_noise):
    """t' = sigma' / (1 + sigma')."""
    latents, noise = latents_and_noise
    sigmas = torch.tensor([0.1, 1.0, 20.0])
    path, levels = PATHS["flow"], sigmas / (1 + sigmas)
    edm = (latents + per_sample(sigmas, latents) * noise) / per_sample(1 + sigmas, latents)
    torch.testing.assert_close(noisy(path, latents, noise, levels), edm)
    torch.testing.assert_close(path.log_sigmas(levels), sigmas.log())
    assert path.log_sigmas(torch.tensor([0.5])).item() == pytest.approx(math.log(1), abs=1e-6)


def test_a_schedule_of_another_prediction_is_refused():
    with pytest.raises(ValueError, match="`prediction_type` is 'epsilon'"):
        VPredictionPath(DiffusionSchedule.of(DDPMScheduler()))
