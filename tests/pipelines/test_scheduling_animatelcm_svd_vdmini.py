"""AnimateLCM-SVD's sampling against the formulas of EDM and of consistency models, written out."""

import math

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler
from tiny import randomise, tiny_image, tiny_svd_pipeline, tiny_teacher_unet

from vdmini_diffusers import VDMiniAnimateLCMSVDScheduler, VDMiniI2VPipeline


def karras(i: int, n: int = 40) -> float:
    low, high = 0.002 ** (1 / 7), 700 ** (1 / 7)
    return (high + i / (n - 1) * (low - high)) ** 7


@pytest.mark.parametrize(("num_steps", "indices"), [(8, range(0, 40, 5)), (4, range(0, 40, 10)), (1, [0])])
def test_the_levels_are_every_nth_of_40_karras_levels_and_then_zero(num_steps, indices):
    scheduler = VDMiniAnimateLCMSVDScheduler()
    scheduler.set_timesteps(num_steps)
    sigmas = [karras(i) for i in indices]
    assert scheduler.sigmas.tolist() == pytest.approx([*sigmas, 0], rel=1e-6)
    assert scheduler.timesteps.tolist() == pytest.approx([math.log(sigma) / 4 for sigma in sigmas], rel=1e-9)
    assert scheduler.init_noise_sigma == pytest.approx(math.sqrt(700**2 + 1))


def written_out(unet, noise, image_latents, embeds, time_ids, num_steps, generator):
    """Algorithm 1 of consistency models (arXiv 2303.01469) with the network in EDM's coordinates."""
    sigmas = [karras(i) for i in range(0, 40, 40 // num_steps)][:num_steps]
    x = noise * math.sqrt(700**2 + 1)
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        x_in = torch.cat([x / math.sqrt(sigma**2 + 1), image_latents], dim=2)
        v = unet(x_in, math.log(sigma) / 4, embeds, time_ids).sample
        x = x / (sigma**2 + 1) - sigma / math.sqrt(sigma**2 + 1) * v
        if following:
            x = x + following * torch.randn(x.shape, generator=generator)
    return x


def test_a_random_unet_is_sampled_as_written_out():
    unet = randomise(tiny_teacher_unet()).eval()
    draw = torch.Generator().manual_seed(1)
    noise, image_latents = torch.randn(2, 1, 2, 4, 8, 8, generator=draw)
    given = torch.randn(1, 1, 16, generator=draw), torch.rand(1, 3, generator=draw)
    with torch.no_grad():
        expected = written_out(unet, noise, image_latents, *given, 8, torch.Generator().manual_seed(2))
        scheduler, generator = VDMiniAnimateLCMSVDScheduler(), torch.Generator().manual_seed(2)
        scheduler.set_timesteps(8)
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            v = unet(torch.cat([scheduler.scale_model_input(x, t), image_latents], dim=2), t, *given).sample
            x = scheduler.step(v, t, x, generator=generator).prev_sample
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1  # the network decides, not a constant


def test_in_one_step_it_is_sf_vs_sampler_and_in_more_it_is_not_svds():
    # One step from sigma_max is D(x; 700) for both; then Euler goes on along the ODE, this one draws noise anew.
    pipe = VDMiniI2VPipeline(**tiny_svd_pipeline().components)
    pipe.set_progress_bar_config(disable=True)
    videos = {}
    for scheduler in (pipe.scheduler, VDMiniAnimateLCMSVDScheduler()):
        pipe.scheduler = scheduler
        for num_steps in (1, 2):
            options = {"num_inference_steps": num_steps, "generator": torch.manual_seed(0), "output_type": "latent"}
            videos[type(scheduler).__name__, num_steps] = pipe(tiny_image(), 16, 16, **options).frames
    euler, euler_2, ours, ours_2 = videos.values()
    torch.testing.assert_close(ours, euler, rtol=1e-3, atol=1e-3)
    assert (ours_2 - euler_2).abs().max() > 0.1


def test_a_video_is_made_again_after_the_same_manual_seed():
    pipe = VDMiniI2VPipeline(**tiny_svd_pipeline().components | {"scheduler": VDMiniAnimateLCMSVDScheduler()})
    pipe.set_progress_bar_config(disable=True)
    first, second, other = (
        pipe(tiny_image(), 16, 16, num_inference_steps=2, generator=torch.manual_seed(s), output_type="latent").frames
        for s in (0, 0, 1)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_the_stock_consistency_scheduler_is_another_with_any_config():
    stock = CMStochasticIterativeScheduler(sigma_max=700.0, sigma_data=1.0, clip_denoised=False)
    ours = VDMiniAnimateLCMSVDScheduler()
    assert ours.get_scalings_for_boundary_condition(torch.tensor(3.0))[1] < 0
    assert stock.get_scalings_for_boundary_condition(torch.tensor(3.0))[1] > 0
    with pytest.raises(ValueError, match="v_prediction"):
        VDMiniAnimateLCMSVDScheduler(prediction_type="epsilon")
