"""Multi-step consistency sampling for AnimateLCM-SVD (arXiv 2402.00769), the 8-step row of the paper's Table 2.

A step is `x_0 = c_skip x + c_out F`, and the next sample is `x_0` with fresh noise of the next level:

    c_skip = sd^2 / (sigma^2 + sd^2)     c_out = -sigma sd / sqrt(sigma^2 + sd^2)     sd = sigma_data = 1
    c_in = 1 / sqrt(sigma^2 + sd^2)      c_noise = ln(sigma) / 4

These are the coefficients of Stable Video Diffusion, whose U-Net predicts v. `CMStochasticIterativeScheduler` has
`c_out` of the other sign, shifts sigma by `sigma_min` in both, multiplies the timestep by 1000, starts from
`sigma_max` instead of `sqrt(sigma_max^2 + sd^2)`, and adds `sqrt(sigma^2 - sigma_min^2)` of noise, so no config makes
it equal.

This file is published beside the scheduler's config; it needs diffusers only.
"""

import numpy as np
import torch
from diffusers import CMStochasticIterativeScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeSchedulerOutput

# Not used below: diffusers takes a component for a scheduler if the module of its class holds `SchedulerMixin`.
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401 - see above
from diffusers.utils.torch_utils import randn_tensor


class VDMiniAnimateLCMSVDScheduler(CMStochasticIterativeScheduler):
    """The scheduler of AnimateLCM-SVD: every n-th of `num_train_timesteps` Karras noise levels, down to 0.

    `StableVideoDiffusionPipeline` gives `step` no generator, so the noise between steps is torch's global one, as with
    the authors' own scheduler: call `torch.manual_seed` before the pipeline for a video that can be made again.

    Args:
        num_train_timesteps: number of Karras levels, of which a schedule takes every n-th.
        sigma_min, sigma_max, rho: the Karras levels, SVD's.
        sigma_data: of EDM's preconditioning; SVD's is 1.
        s_noise: factor of the noise that is added between steps.
        clip_denoised: whether `x_0` is clipped to -1 to 1, which latents are not.
        prediction_type: always `"v_prediction"`; it tells pipelines which U-Nets this scheduler suits.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 40,
        sigma_min: float = 0.002,
        sigma_max: float = 700.0,
        sigma_data: float = 1.0,
        s_noise: float = 1.0,
        rho: float = 7.0,
        clip_denoised: bool = False,
        prediction_type: str = "v_prediction",
    ) -> None:
        if prediction_type != "v_prediction":
            raise ValueError(f"`prediction_type` can only be 'v_prediction', not {prediction_type!r}.")
        super().__init__(num_train_timesteps, sigma_min, sigma_max, sigma_data, s_noise, rho, clip_denoised)
        self.init_noise_sigma = (sigma_max**2 + sigma_data**2) ** 0.5

    def sigma_to_t(self, sigmas: float | np.ndarray) -> np.ndarray:
        """`c_noise`, as SVD's U-Net takes it."""
        return 0.25 * np.log(np.asarray(sigmas, dtype=np.float64))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """As the parent's; the last level is 0, so that the last step returns `x_0`."""
        super().set_timesteps(num_inference_steps, device, timesteps)  # pyright: ignore[reportArgumentType] - None is its default
        self.sigmas[-1] = 0

    def get_scalings_for_boundary_condition(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`c_skip` and `c_out`, which hold `x_0 = x` at sigma 0."""
        c_skip, c_out = self.get_scalings(sigma)
        return c_skip, -c_out

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> CMStochasticIterativeSchedulerOutput | tuple[torch.Tensor]:
        """The sample of the next level, from the U-Net's output at this one.

        Args:
            model_output: v, as the U-Net predicts it.
            timestep: one of `timesteps`.
            generator: of the noise; by default torch's global one.
        """
        if self.step_index is None:
            self._init_step_index(timestep)
        sigma, next_sigma = self.sigmas[self.step_index], self.sigmas[self.step_index + 1]
        self._step_index = self.step_index + 1
        c_skip, c_out = self.get_scalings_for_boundary_condition(sigma)
        prev_sample = c_skip * sample + c_out * model_output
        if self.config.clip_denoised:
            prev_sample = prev_sample.clamp(-1, 1)
        if next_sigma > 0:
            noise = randn_tensor(sample.shape, generator, sample.device, sample.dtype)
            prev_sample = prev_sample + self.config.s_noise * next_sigma * noise
        return CMStochasticIterativeSchedulerOutput(prev_sample) if return_dict else (prev_sample,)
