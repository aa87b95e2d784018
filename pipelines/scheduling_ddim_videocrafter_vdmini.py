"""DDIM for VideoCrafter2, whose noisy latents hold less of the video than DDPM's.

Noisy latents are `sqrt(alphas_cumprod) s x_0 + sqrt(1 - alphas_cumprod) eps`, where `s` falls from 1 at timestep 0 to
`SIGNAL_SCALE` at timestep 399 and stays there: `use_scale` and `scale_b` of its `inference_t2v_512_v2.0.yaml`, which
its sampler heeds. T2V-Turbo, though distilled from VideoCrafter2, is trained and sampled without (`no_scale_pred_x0`).

This file is published beside the scheduler's config; it needs diffusers only.
"""

import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

# Not used below: diffusers takes a component for a scheduler if the module of its class holds `SchedulerMixin`.
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401 - see above


SIGNAL_SCALE = 0.7
NUM_SCALED_TIMESTEPS = 400


class VDMiniVideoCrafterDDIMScheduler(DDIMScheduler):
    """[`DDIMScheduler`], with the same config, for networks trained on noisy latents as described above.

    Its `pred_original_sample` is `x_0`, without the factor.
    """

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """As the parent's, which takes the video for scaled alike at all timesteps."""
        output = super().step(model_output, timestep, sample, eta, use_clipped_model_output, generator, variance_noise)
        previous = timestep - self.config.num_train_timesteps // self.num_inference_steps
        alpha_cumprod = self.alphas_cumprod[previous] if previous >= 0 else self.final_alpha_cumprod
        scaled, original = output.pred_original_sample, output.pred_original_sample / signal_scale(timestep)
        prev_sample = output.prev_sample + alpha_cumprod**0.5 * (signal_scale(previous) * original - scaled)
        return DDIMSchedulerOutput(prev_sample, original) if return_dict else (prev_sample, original)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.IntTensor
    ) -> torch.Tensor:
        scales = signal_scale(timesteps).to(original_samples).view(-1, *[1] * (original_samples.ndim - 1))
        return super().add_noise(scales * original_samples, noise, timesteps)


def signal_scale(timestep: int | torch.Tensor) -> torch.Tensor:
    """`s` of timesteps; 1 before the first."""
    share = torch.as_tensor(timestep).clamp(0, NUM_SCALED_TIMESTEPS - 1) / (NUM_SCALED_TIMESTEPS - 1)
    return 1 - (1 - SIGNAL_SCALE) * share
