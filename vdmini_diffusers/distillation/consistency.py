"""Consistency functions of text-to-video U-Nets, and the ODE along which they are consistent (Eq. 3).

Latents are `(batch, frames, channels, height, width)`, timesteps `(batch,)` integers. All arithmetic is in float32,
whatever the networks compute in: at the last timestep an error of theirs is multiplied by fifteen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate.utils import extract_model_from_parallel
from diffusers import UNet3DConditionModel
from torch import nn

from vdmini_diffusers.distillation.noise import per_sample
from vdmini_diffusers.pipelines.pipeline_vdmini_t2v import guidance_embedding


SIGMA_DATA = 0.5  # of LCMScheduler


class Prediction(NamedTuple):
    """What a network takes noisy latents for: clean latents and noise."""

    clean_latents: torch.Tensor
    noise: torch.Tensor


@dataclass(frozen=True)
class DiffusionSchedule:
    """Noise by timestep, as a diffusers scheduler has it.

    Attributes:
        alphas_cumprod: `(num_train_timesteps,)`.
        prediction_type: what the network puts out: `"epsilon"`, `"v_prediction"` or `"sample"`.
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
        """Of an `LCMScheduler`, or any other with `alphas_cumprod`.

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

    def coefficients(self, timesteps: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of signal and of noise, to be multiplied with `like`."""
        alphas_cumprod = self.alphas_cumprod.to(timesteps.device)[timesteps]
        return per_sample(alphas_cumprod.sqrt(), like), per_sample((1 - alphas_cumprod).sqrt(), like)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Also the DDIM step (eta 0), from a prediction to an earlier timestep."""
        signal, sigma = self.coefficients(timesteps, latents)
        return signal * latents + sigma * noise

    def read(self, output: torch.Tensor, noisy_latents: torch.Tensor, timesteps: torch.Tensor) -> Prediction:
        """What a network's output says."""
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


def predict(
    model: nn.Module,
    schedule: DiffusionSchedule,
    noisy_latents: torch.Tensor,
    timesteps: torch.Tensor,
    conditioning: Mapping[str, torch.Tensor],
) -> Prediction:
    """What `model` takes `noisy_latents` for; it is told as much of the conditioning as its config asks for.

    Args:
        conditioning: `prompt_embeds` `(batch, tokens, width)`; `guidance`, `motion_guidance` and `fps`, `(batch,)`.
    """
    bare = extract_model_from_parallel(model)
    dtype = next(bare.parameters()).dtype
    told = {}
    for name, argument, width in (
        ("guidance", "timestep_cond", "time_cond_proj_dim"),
        ("motion_guidance", "motion_cond", "motion_cond_proj_dim"),
    ):
        if bare.config.get(width) is not None:
            # In float32, and then cast: sinusoids of numbers in the thousands.
            told[argument] = guidance_embedding(conditioning[name].float(), bare.config[width], torch.float32).to(
                dtype
            )
    if bare.config.get("fps_cond"):
        told["fps"] = conditioning["fps"]
    output = model(
        noisy_latents.movedim(1, 2).to(dtype),
        timesteps,
        conditioning["prompt_embeds"].to(dtype),
        return_dict=False,
        **told,
    )[0]
    return schedule.read(output.movedim(2, 1).float(), noisy_latents, timesteps)


@dataclass(frozen=True)
class ODETeacher:
    """The frozen network whose ODE is followed by one DDIM step (Eq. 3's solver Psi, with guidance omega).

    A network that is told guidance (T2V-Turbo) estimates with the guidance embedded; any other, as VideoCrafter2, by
    classifier-free guidance, `cond + w (cond - uncond)`.

    Attributes:
        unet: in eval mode; it takes no gradient.
        uncond_prompt_embeds: `(1, tokens, width)`, of the empty prompt; None if `unet` is told guidance.
    """

    unet: UNet3DConditionModel
    schedule: DiffusionSchedule
    uncond_prompt_embeds: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.uncond_prompt_embeds is None and not self.is_told("time_cond_proj_dim"):
            raise ValueError("An ODE teacher that is not told guidance needs `uncond_prompt_embeds`, to be guided.")

    @property
    def embeds_motion_guidance(self) -> bool:
        return self.is_told("motion_cond_proj_dim")

    def is_told(self, width: str) -> bool:
        return self.unet.config.get(width) is not None

    @torch.no_grad()
    def estimate(
        self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Mapping[str, torch.Tensor]
    ) -> Prediction:
        """Clean latents and noise, guided."""
        if self.is_told("time_cond_proj_dim") or self.uncond_prompt_embeds is None:
            return predict(self.unet, self.schedule, noisy_latents, timesteps, conditioning)
        twice = {name: torch.cat([value, value]) for name, value in conditioning.items()}
        cond = conditioning["prompt_embeds"]
        uncond = self.uncond_prompt_embeds.to(cond.device, cond.dtype).expand_as(cond)
        twice["prompt_embeds"] = torch.cat([cond, uncond])
        both = predict(self.unet, self.schedule, torch.cat([noisy_latents] * 2), torch.cat([timesteps] * 2), twice)
        weight = per_sample(conditioning["guidance"], noisy_latents)
        guided = []
        for values in both:
            with_text, without = values.chunk(2)
            guided.append(with_text + weight * (with_text - without))
        return Prediction(*guided)
