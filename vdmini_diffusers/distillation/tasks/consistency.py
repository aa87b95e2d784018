"""T2V-Turbo's objective (Eq. 3; Li et al., 2024): consistency along an ODE, and rewards. Text to video."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

from vdmini_diffusers.distillation.losses import consistency_loss
from vdmini_diffusers.distillation.noise import (
    choose,
    gaussian_like,
    instance_noise_probabilities,
    per_sample,
)
from vdmini_diffusers.distillation.ode_teacher import DiffusionSchedule, ODETeacher
from vdmini_diffusers.distillation.rewards import RewardMixture
from vdmini_diffusers.distillation.tasks.base import Encode, Generators, ModelInputs
from vdmini_diffusers.families.base import UNetFamily


MOTION_GUIDANCE = ("motion_score", "noisy_latents", "timestep_index", "use_motion_guide")


@dataclass(frozen=True)
class ConsistencyInputs(ModelInputs):
    """Model inputs, and what the losses need besides.

    Attributes:
        motion_score: like the latents, zero where a sample has none; None if no sample has.
        is_motion_guided: `(batch,)`, whether a sample is guided by motion where its noise is high enough.
        captions: one per sample, where there are rewards.
        reward_frames: `(batch, n)` indices for each kind of reward.
    """

    motion_score: torch.Tensor | None = None
    is_motion_guided: torch.Tensor | None = None
    captions: Sequence[str] = ()
    reward_frames: Mapping[str, torch.Tensor] = field(default_factory=dict)


class ConsistencyTask:
    """Map all noise levels of one trajectory to the same video. The target is the student's output one step earlier.

    Batches hold `latents` `(batch, frames, channels, height, width)`, `prompt_embeds` `(batch, tokens, width)`,
    `pooled_prompt_embeds` `(batch, width)` and `fps` `(batch,)`, as the family's `encode` makes them, and with rewards
    `caption`. Optional, for motion guidance as T2V-Turbo-v2 precomputes it: `motion_score` and `noisy_latents`, like
    the latents, and `timestep_index` and `use_motion_guide`, `(batch,)`.

    Args:
        family: the family of student and teacher.
        student: the model that is trained, which may be wrapped; it makes its own target (no average is kept).
        schedule: the noise schedule of student and teacher.
        ode_teacher: the network whose ODE is followed.
        num_ddim_steps: points of the grid on the ODE; with 200 of 1000 timesteps, k is 5.
        guidance_range: least and greatest w; w is drawn per sample.
        huber_c: constant of the pseudo-Huber loss.
        motion_gs: strength of motion guidance.
        motion_percentage: the part of the grid, from its noisy end, that motion guidance applies to.
        instance_noise_mean, instance_noise_std: P_mean and P_std of sigma_t' (Eq. 5).
        rewards: further objectives; None for none.
        encode: encodes batches of videos, if the data set holds videos.

    Raises:
        ValueError: if the ODE teacher has another noise schedule, or for numbers out of range.
    """

    def __init__(
        self,
        family: UNetFamily,
        student: nn.Module,
        schedule: DiffusionSchedule,
        ode_teacher: ODETeacher,
        num_ddim_steps: int = 200,
        guidance_range: tuple[float, float] = (5.0, 15.0),
        huber_c: float = 0.001,
        motion_gs: float = 0.05,
        motion_percentage: float = 0.5,
        instance_noise_mean: float = -1.0,
        instance_noise_std: float = 1.0,
        rewards: RewardMixture | None = None,
        encode: Encode | None = None,
    ):
        num_timesteps = len(schedule.alphas_cumprod)
        if not 1 <= num_ddim_steps <= num_timesteps:
            raise ValueError(f"`num_ddim_steps` must be 1 to {num_timesteps}, not {num_ddim_steps}.")
        if guidance_range[0] > guidance_range[1]:
            raise ValueError(f"`guidance_range` is the least and the greatest w, not {guidance_range}.")
        theirs = ode_teacher.schedule.alphas_cumprod
        if theirs.shape != schedule.alphas_cumprod.shape or not torch.allclose(
            theirs, schedule.alphas_cumprod, atol=1e-6
        ):
            raise ValueError(
                "The scheduler of the ODE teacher has other noise levels (betas) than the teacher's, so their"
                " trajectories differ. Take the model that the teacher was distilled from."
            )
        self.family, self.critic_taps = family, family.critic_taps["blocks"]
        self.student = extract_model_from_parallel(student, keep_torch_compile=False)
        self.schedule = schedule
        self.ode_teacher = ode_teacher
        self.num_ddim_steps = num_ddim_steps
        self.step_size = num_timesteps // num_ddim_steps
        self.guidance_range = guidance_range
        self.huber_c = huber_c
        self.motion_gs = motion_gs
        self.motion_start = (1 - motion_percentage) * num_ddim_steps
        sigmas, self.instance_probabilities = instance_noise_probabilities(instance_noise_mean, instance_noise_std)
        self.instance_timesteps = schedule.timesteps_of(sigmas)
        self.rewards = rewards
        self.encode = encode

    def prepare(self, batch: Mapping[str, Any], generators: Generators) -> ConsistencyInputs:
        batch = batch if self.encode is None else self.encode(batch, generators)
        latents = batch["latents"].float()
        index = choose(torch.arange(self.num_ddim_steps), None, generators).long()
        index, noise = index.to(latents.device), gaussian_like(latents, generators)
        guidance = torch.cat([torch.rand(1, generator=generator) for generator in generators])
        low, high = self.guidance_range
        reward_frames = self.rewards.draw_frames(latents.shape[1], generators) if self.rewards is not None else {}

        precomputed = "motion_score" in batch
        if precomputed:  # these samples hold their noisy latents
            guided = batch["use_motion_guide"].bool()
            index = torch.where(guided, batch["timestep_index"].long(), index)
        else:
            guided = torch.full_like(index, self.ode_teacher.embeds_motion_guidance, dtype=torch.bool)
        timesteps = self.step_size * (index + 1) - 1
        noisy_latents = self.add_noise(latents, noise, timesteps)
        if precomputed:
            noisy_latents = torch.where(per_sample(guided, latents) > 0, batch["noisy_latents"].float(), noisy_latents)
        conditioning = {name: batch[name] for name in ("prompt_embeds", "pooled_prompt_embeds", "fps")}
        return ConsistencyInputs(
            clean_latents=latents,
            noisy_latents=noisy_latents,
            noise_levels=timesteps,
            conditioning={
                **conditioning,
                "guidance": (low + (high - low) * guidance).to(latents.device),
                "motion_guidance": self._motion_guidance(guided, timesteps),
            },
            motion_score=batch["motion_score"].float() if precomputed else None,
            is_motion_guided=guided,
            captions=batch["caption"] if self.rewards is not None else (),
            reward_frames=reward_frames,
        )

    def denoise(
        self,
        model: nn.Module,
        noisy_latents: torch.Tensor,
        noise_levels: torch.Tensor,
        conditioning: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """The consistency function `f(z, t)`."""
        output = self.family.predict(model, noisy_latents, noise_levels, conditioning)
        predicted = self.schedule.read(output, noisy_latents, noise_levels)
        return self.schedule.at_boundary(predicted.clean_latents, noisy_latents, noise_levels)

    def losses(self, denoised: torch.Tensor, inputs: ConsistencyInputs) -> dict[str, torch.Tensor]:
        losses = {"consistency": consistency_loss(denoised, self.target(inputs), self.huber_c)}
        if self.rewards is not None:
            losses |= self.rewards.losses(denoised, inputs.captions, inputs.reward_frames)
        return losses

    @torch.no_grad()
    def target(self, inputs: ConsistencyInputs) -> torch.Tensor:
        """The student's output at the point to which the ODE leads from the noisy latents, one grid step earlier."""
        timesteps = inputs.noise_levels
        clean_latents, noise = self.ode_teacher.estimate(inputs.noisy_latents, timesteps, inputs.conditioning)
        if inputs.motion_score is not None:
            signal, _ = self.schedule.coefficients(timesteps, noise)
            strength = per_sample(inputs.conditioning["motion_guidance"], noise)
            noise = noise - strength * (1 - signal).sqrt() * inputs.motion_score
        end = (timesteps - self.step_size).clamp_min(0)
        return self.denoise(self.student, self.add_noise(clean_latents, noise, end), end, inputs.conditioning)

    def instance_noise_levels(self, generators: Generators) -> torch.Tensor:
        return choose(self.instance_timesteps, self.instance_probabilities, generators).long()

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, noise_levels: torch.Tensor) -> torch.Tensor:
        return self.schedule.add_noise(latents, noise, noise_levels)

    def scale(self, noisy_latents: torch.Tensor, noise_levels: torch.Tensor) -> torch.Tensor:
        return noisy_latents  # of unit variance at every timestep

    def backbone_conditioning(
        self, noise_levels: torch.Tensor, inputs: ConsistencyInputs
    ) -> Mapping[str, torch.Tensor]:
        guided = inputs.is_motion_guided
        assert guided is not None
        return {**inputs.conditioning, "motion_guidance": self._motion_guidance(guided, noise_levels)}

    def _motion_guidance(self, guided: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Strength of motion guidance, which guided samples have in the noisy part of the grid."""
        index = (timesteps + 1) / self.step_size - 1
        return self.motion_gs * (guided & (index >= self.motion_start)).float()

    def critic_condition(
        self, noise_levels: torch.Tensor, conditioning: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A quarter of ln sigma, as EDM models are conditioned on, and the text embedding."""
        levels = 0.25 * self.schedule.sigmas.to(noise_levels.device)[noise_levels].log()
        return levels, self.family.critic_condition(conditioning)
