"""Noise by timestep, the consistency function, and the network whose ODE is followed (Eq. 3).

Latents are `(batch, frames, channels, height, width)`, timesteps `(batch,)` integers. All arithmetic is in float32,
whatever the networks compute in: at the last timestep their errors are multiplied by fifteen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from vdmini_diffusers.distillation.noise import per_sample
from vdmini_diffusers.families.base import Predict


SIGMA_DATA = 0.5  # of LCMScheduler


class Prediction(NamedTuple):
    """Clean latents and noise, as a network estimates them from noisy latents."""

    clean_latents: torch.Tensor
    noise: torch.Tensor


@dataclass(frozen=True)
class DiffusionSchedule:
    """The noise level of each timestep, as a diffusers scheduler defines it.

    Attributes:
        alphas_cumprod: `(num_train_timesteps,)`.
        prediction_type: what the network predicts: `"epsilon"`, `"v_prediction"` or `"sample"`.
        timestep_scaling: how soon after timestep 0 the consistency function leaves the identity (LCM: 10).
    """

    alphas_cumprod: torch.Tensor
    prediction_type: str = "epsilon"
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        if self.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(
                f"`prediction_type` must be epsilon, v_prediction or sample, not {self.prediction_type!r}."
            )

    @classmethod
    def of(cls, scheduler: Any) -> "DiffusionSchedule":
        """The schedule of an `LCMScheduler`, or of any other with `alphas_cumprod`.

        Raises:
            ValueError: if the scheduler has none, as those of EDM and flow matching.
        """
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(f"{type(scheduler).__name__} has no `alphas_cumprod`: its noise is not that of DDPM.")
        config = scheduler.config
        return cls(scheduler.alphas_cumprod.float(), config.prediction_type, config.get("timestep_scaling", 10.0))

    @property
    def sigmas(self) -> torch.Tensor:
        """Noise over signal, `(num_train_timesteps,)`: the sigma of EDM models with as much noise."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    def timesteps_of(self, sigmas: torch.Tensor) -> torch.Tensor:
        """The timestep with as much noise over signal, for each of these levels."""
        distances = (self.sigmas.double().log()[None] - sigmas.log()[:, None]).abs()
        return distances.argmin(dim=1)

    def coefficients(self, timesteps: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Coefficients of signal and noise, to be multiplied with `like`."""
        alphas_cumprod = self.alphas_cumprod.to(timesteps.device)[timesteps]
        return per_sample(alphas_cumprod.sqrt(), like), per_sample((1 - alphas_cumprod).sqrt(), like)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Noise latents to these timesteps. With a prediction, this is the DDIM step (eta 0) to an earlier one."""
        signal, sigma = self.coefficients(timesteps, latents)
        return signal * latents + sigma * noise

    def read(self, output: torch.Tensor, noisy_latents: torch.Tensor, timesteps: torch.Tensor) -> Prediction:
        """Convert a network's output to clean latents and noise."""
        signal, sigma = self.coefficients(timesteps, noisy_latents)
        if self.prediction_type == "epsilon":
            return Prediction((noisy_latents - sigma * output) / signal, output)
        if self.prediction_type == "v_prediction":
            return Prediction(signal * noisy_latents - sigma * output, sigma * noisy_latents + signal * output)
        return Prediction(output, (noisy_latents - signal * output) / sigma)

    def at_boundary(
        self, clean_latents: torch.Tensor, noisy_latents: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """`f = c_skip z + c_out x_0`, which is the identity at timestep 0."""
        scaled = self.timestep_scaling * timesteps.float()
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
        return per_sample(skip, noisy_latents) * noisy_latents + per_sample(out, noisy_latents) * clean_latents


@dataclass(frozen=True)
class ODETeacher:
    """The frozen network whose ODE is followed by one DDIM step (Eq. 3's solver Psi, with guidance omega).

    A network with an embedding of guidance (T2V-Turbo) is conditioned on w; any other (VideoCrafter2) is run with
    classifier-free guidance, `cond + w (cond - uncond)`.

    Attributes:
        predict: the `predict` of the network's family.
        unet: in eval mode; it takes no gradient.
        uncond_prompt_embeds: embeddings of the empty prompt, `(1, tokens, width)`; None if `unet` embeds guidance.
    """

    predict: Predict
    unet: Any
    schedule: DiffusionSchedule
    uncond_prompt_embeds: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.uncond_prompt_embeds is None and not self._embeds("time_cond_proj_dim"):
            raise ValueError(
                "An ODE teacher without an embedding of guidance needs `uncond_prompt_embeds`, to be guided."
            )

    @property
    def embeds_motion_guidance(self) -> bool:
        return self._embeds("motion_cond_proj_dim")

    def _embeds(self, field: str) -> bool:
        return self.unet.config.get(field) is not None

    @torch.no_grad()
    def estimate(
        self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Mapping[str, torch.Tensor]
    ) -> Prediction:
        """Clean latents and noise, with guidance."""
        if self._embeds("time_cond_proj_dim") or self.uncond_prompt_embeds is None:
            output = self.predict(self.unet, noisy_latents, timesteps, conditioning)
            return self.schedule.read(output, noisy_latents, timesteps)
        twice = {name: torch.cat([value, value]) for name, value in conditioning.items()}
        cond = conditioning["prompt_embeds"]
        uncond = self.uncond_prompt_embeds.to(cond.device, cond.dtype).expand_as(cond)
        twice["prompt_embeds"] = torch.cat([cond, uncond])
        noisy_twice, timesteps_twice = torch.cat([noisy_latents] * 2), torch.cat([timesteps] * 2)
        output = self.predict(self.unet, noisy_twice, timesteps_twice, twice)
        both = self.schedule.read(output, noisy_twice, timesteps_twice)
        weight = per_sample(conditioning["guidance"], noisy_latents)
        guided = []
        for values in both:
            with_text, without = values.chunk(2)
            guided.append(with_text + weight * (with_text - without))
        return Prediction(*guided)
