"""What networks that predict a velocity are trained on: how noise is added, and which velocity is the target.

Both kinds have the methods of [`VelocityPath`]. Levels are in a unit of their own, `(batch,)`; latents are `(batch,
frames, channels, height, width)`. All arithmetic is in float32.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling

from vdmini_diffusers.distillation.noise import choose, instance_noise_probabilities, per_sample
from vdmini_diffusers.distillation.ode_teacher import DiffusionSchedule
from vdmini_diffusers.distillation.tasks.base import Generators


NUM_TRAIN_TIMESTEPS = 1000


class VelocityPath(Protocol):
    """From clean latents to noise, and back by a network's velocity."""

    def draw_levels(self, generators: Generators) -> torch.Tensor:
        """Noise levels to train on, one per generator, on the CPU."""
        ...

    def draw_instance_levels(self, generators: Generators) -> torch.Tensor:
        """Levels of the critics' noise, one per generator: noise over signal has Eq. 5's log-normal distribution."""
        ...

    def timesteps(self, levels: torch.Tensor) -> torch.Tensor:
        """The levels as the network is conditioned on them."""
        ...

    def log_sigmas(self, levels: torch.Tensor) -> torch.Tensor:
        """The logarithm of noise over signal, which EDM models are conditioned on."""
        ...

    def coefficients(self, levels: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Coefficients of signal and noise in noisy latents, to be multiplied with `like`."""
        ...

    def velocity(self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """What the network is to predict."""
        ...

    def clean_latents(self, noisy_latents: torch.Tensor, velocity: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """The clean latents that a velocity stands for."""
        ...


@dataclass(frozen=True)
class FlowMatchingPath:
    """`x_t = (1 - sigma) x_0 + sigma n`, and the velocity `n - x_0` (Lipman et al., 2023). A level is sigma.

    Args:
        shift: of the levels towards noise, `s sigma / (1 + (s - 1) sigma)`.
        density: of the levels before the shift, by the names of SD3's paper.
        logit_mean, logit_std: of the density `"logit_normal"`.
        mode_scale: of the density `"mode"`.
        instance_noise_mean, instance_noise_std: P_mean and P_std of sigma_t' (Eq. 5).
    """

    shift: float = 1.0
    density: Literal["uniform", "logit_normal", "mode"] = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    instance_noise_mean: float = -1.0
    instance_noise_std: float = 1.0

    def draw_levels(self, generators: Generators) -> torch.Tensor:
        drawn = [
            compute_density_for_timestep_sampling(
                self.density, 1, self.logit_mean, self.logit_std, self.mode_scale, generator=generator
            )
            for generator in generators
        ]
        # As FastVideo and diffusers' scripts draw: one of a thousand levels, counted from pure noise.
        index = (NUM_TRAIN_TIMESTEPS * torch.cat(drawn)).long().clamp(max=NUM_TRAIN_TIMESTEPS - 1)
        sigmas = (NUM_TRAIN_TIMESTEPS - index) / NUM_TRAIN_TIMESTEPS
        return self.shift * sigmas / (1 + (self.shift - 1) * sigmas)

    def draw_instance_levels(self, generators: Generators) -> torch.Tensor:
        # EDM's x_0 + sigma' n, scaled by 1 / (1 + sigma'), is this path at t' = sigma' / (1 + sigma'). With a
        # log-normal sigma', t' is the logistic function of a normal variable.
        normal = torch.cat([torch.randn(1, generator=generator) for generator in generators])
        return torch.sigmoid(self.instance_noise_mean + self.instance_noise_std * normal)

    def timesteps(self, levels: torch.Tensor) -> torch.Tensor:
        return NUM_TRAIN_TIMESTEPS * levels

    def log_sigmas(self, levels: torch.Tensor) -> torch.Tensor:
        return torch.logit(levels)

    def coefficients(self, levels: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return per_sample(1 - levels, like), per_sample(levels, like)

    def velocity(self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        return noise - latents

    def clean_latents(self, noisy_latents: torch.Tensor, velocity: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        return noisy_latents - per_sample(levels, noisy_latents) * velocity


@dataclass(frozen=True)
class VPredictionPath:
    """`x_t = alpha x_0 + sigma n`, and `v = alpha n - sigma x_0` (Salimans and Ho, 2022). A level is a timestep.

    The mean square error of `v` is what CogVideoX trains on: that of `x_0`, weighted by `1 / (1 - alphas_cumprod)`.

    Args:
        instance_noise_mean, instance_noise_std: P_mean and P_std of sigma_t' (Eq. 5).

    Raises:
        ValueError: if the schedule is that of another prediction.
    """

    schedule: DiffusionSchedule
    instance_noise_mean: float = -1.0
    instance_noise_std: float = 1.0

    def __post_init__(self) -> None:
        if self.schedule.prediction_type != "v_prediction":
            raise ValueError(
                f"The scheduler's `prediction_type` is {self.schedule.prediction_type!r}; velocities are trained"
                " where it is 'v_prediction', or by flow matching."
            )

    def draw_levels(self, generators: Generators) -> torch.Tensor:
        return choose(torch.arange(len(self.schedule.alphas_cumprod)), None, generators).long()

    def draw_instance_levels(self, generators: Generators) -> torch.Tensor:
        return choose(*self._instance_levels, generators).long()

    @cached_property
    def _instance_levels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Timesteps and their probabilities."""
        sigmas, probabilities = instance_noise_probabilities(self.instance_noise_mean, self.instance_noise_std)
        return self.schedule.timesteps_of(sigmas), probabilities

    def timesteps(self, levels: torch.Tensor) -> torch.Tensor:
        return levels

    def log_sigmas(self, levels: torch.Tensor) -> torch.Tensor:
        return self.schedule.sigmas.to(levels.device)[levels].log()

    def coefficients(self, levels: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.schedule.coefficients(levels, like)

    def velocity(self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        signal, sigma = self.coefficients(levels, latents)
        return signal * noise - sigma * latents

    def clean_latents(self, noisy_latents: torch.Tensor, velocity: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        return self.schedule.read(velocity, noisy_latents, levels).clean_latents
