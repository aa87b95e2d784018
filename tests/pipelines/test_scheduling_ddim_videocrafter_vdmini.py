"""VideoCrafter2's DDIM: videos whose noisy latents are held at 0.7 of their strength come out at all of it."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from vdmini_diffusers import VDMiniVideoCrafterDDIMScheduler


CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
CONFIG |= {"set_alpha_to_one": False, "steps_offset": 1}
SCALES = torch.from_numpy(np.append(np.linspace(1.0, 0.7, 400), np.full(600, 0.7)))


def sampled(scheduler, noise, predict_noise, num_steps=50):
    scheduler.set_timesteps(num_steps)
    for t in scheduler.timesteps:
        noise = scheduler.step(predict_noise(noise, t), t, noise).prev_sample
    return noise


def test_a_perfect_network_gives_the_spread_of_its_data_and_with_the_stock_scheduler_less():
    spread = 3.0
    alphas_cumprod = VDMiniVideoCrafterDDIMScheduler(**CONFIG).alphas_cumprod.double()

    def predict_noise(noisy, t):
        """The best guess for Gaussian data."""
        signal, noise = alphas_cumprod[t].sqrt() * SCALES[t] * spread, (1 - alphas_cumprod[t]).sqrt()
        return noisy * noise / (signal**2 + noise**2)

    noise = torch.randn(1, 4, 2, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = sampled(VDMiniVideoCrafterDDIMScheduler(**CONFIG), noise, predict_noise, 250)
    stock = sampled(DDIMScheduler(**CONFIG), noise, predict_noise, 250)
    assert float(ours.std()) == pytest.approx(spread, rel=0.05)
    assert float(stock.std()) < 0.85 * spread


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_each_step_is_that_of_videocrafter2s_own_sampler(eta):
    scheduler = VDMiniVideoCrafterDDIMScheduler(**CONFIG)
    scheduler.set_timesteps(50)
    alphas_cumprod = scheduler.alphas_cumprod.double()
    timesteps = scheduler.timesteps.tolist()
    assert timesteps == list(range(981, 0, -20))
    generator = torch.Generator().manual_seed(0)
    for t, previous in zip(timesteps, [*timesteps[1:], 0], strict=True):
        x, eps, fresh = torch.randn(3, 1, 4, 2, 8, 8, generator=generator, dtype=torch.float64)
        now, then = alphas_cumprod[t], alphas_cumprod[previous]
        sigma = eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
        x0 = (x - (1 - now).sqrt() * eps) / now.sqrt() / SCALES[t]
        expected = then.sqrt() * SCALES[previous] * x0 + (1 - then - sigma**2).sqrt() * eps + sigma * fresh
        found = scheduler.step(eps, t, x, eta=eta, variance_noise=fresh if eta else None)
        torch.testing.assert_close(found.prev_sample, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.pred_original_sample, x0, rtol=1e-5, atol=1e-5)
        parts = scheduler.step(eps, t, x, eta=eta, variance_noise=fresh if eta else None, return_dict=False)
        assert torch.equal(parts[0], found.prev_sample) and torch.equal(parts[1], found.pred_original_sample)


def test_noise_is_added_to_the_scaled_video():
    scheduler = VDMiniVideoCrafterDDIMScheduler(**CONFIG)
    timesteps = torch.tensor([0, 200, 999])
    clean, noise = torch.randn(2, 3, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    scaled = SCALES[timesteps].float().view(3, 1, 1, 1, 1) * clean
    expected = DDIMScheduler(**CONFIG).add_noise(scaled, noise, timesteps)
    torch.testing.assert_close(scheduler.add_noise(clean, noise, timesteps), expected)


def test_its_config_is_that_of_the_stock_scheduler():
    stock = DDIMScheduler(**CONFIG)
    ours = VDMiniVideoCrafterDDIMScheduler.from_config(stock.config)
    assert torch.equal(ours.alphas_cumprod, stock.alphas_cumprod)
    assert type(DDIMScheduler.from_config(ours.config)) is DDIMScheduler
