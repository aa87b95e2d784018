"""FastVideo's objective: the velocity from the clip to noise. Text to video by a transformer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from vdmini_diffusers.distillation.noise import gaussian_like
from vdmini_diffusers.distillation.tasks.base import Denoised, Encode, Generators, ModelInputs
from vdmini_diffusers.distillation.velocity import FlowMatchingPath, VelocityPath
from vdmini_diffusers.families.base import TransformerFamily


@dataclass(frozen=True)
class VelocityInputs(ModelInputs):
    """Model inputs, and the velocity that is to be predicted, like the latents."""

    velocity: torch.Tensor = field(kw_only=True)


class FlowMatchingTask:
    """Predict the velocity at a random noise level; mean square error. `path` says what is noised, and which velocity.

    Batches hold `latents` `(batch, frames, channels, height, width)` and the family's other `sample_tensors`, as
    `data.latents` makes them.

    Args:
        family: the family of student and teacher.
        path: flow matching, or v-prediction.
        embedded_guidance: the guidance scale that is embedded; used by transformers that embed it.
        text_mask: whether padded prompts are masked. FastVideo's present trainer lets the video attend to the padding.
        target: the loss is that of the velocity, or that of the clean latents (FastVideo's `precondition_outputs`).
        encode: encodes batches of videos, if the data set holds videos.
    """

    critic_taps = ()  # there are as many as the critics' settings say

    def __init__(
        self,
        family: TransformerFamily,
        path: VelocityPath | None = None,
        embedded_guidance: float = 1.0,
        text_mask: bool = True,
        target: Literal["velocity", "clean_latents"] = "velocity",
        encode: Encode | None = None,
    ):
        self.family = family
        self.path = FlowMatchingPath() if path is None else path
        self.embedded_guidance = embedded_guidance
        self.text_mask = text_mask
        self.target: Literal["velocity", "clean_latents"] = target
        self.encode = encode

    def prepare(self, batch: Mapping[str, torch.Tensor], generators: Generators) -> VelocityInputs:
        batch = batch if self.encode is None else self.encode(batch, generators)
        latents = batch["latents"].float()
        levels = self.path.draw_levels(generators).to(latents.device)
        noise = gaussian_like(latents, generators)
        conditioning = {name: batch[name] for name in self.family.sample_tensors if name != "latents"}
        if not self.text_mask and "prompt_attention_mask" in conditioning:
            conditioning["prompt_attention_mask"] = torch.ones_like(conditioning["prompt_attention_mask"])
        guidance = torch.full((len(latents),), self.embedded_guidance, device=latents.device)
        return VelocityInputs(
            clean_latents=latents,
            noisy_latents=self.add_noise(latents, noise, levels),
            noise_levels=levels,
            conditioning={**conditioning, "guidance": guidance},
            velocity=self.path.velocity(latents, noise, levels),
        )

    def denoise(
        self,
        model: nn.Module,
        noisy_latents: torch.Tensor,
        noise_levels: torch.Tensor,
        conditioning: Mapping[str, torch.Tensor],
    ) -> Denoised:
        velocity = self.family.predict(model, noisy_latents, self.path.timesteps(noise_levels), conditioning)
        return Denoised.of(self.path.clean_latents(noisy_latents, velocity, noise_levels), velocity)

    def losses(self, denoised: Denoised, inputs: VelocityInputs) -> dict[str, torch.Tensor]:
        if self.target == "velocity":
            return {"velocity": F.mse_loss(denoised.raw_output, inputs.velocity)}
        return {"clean_latents": F.mse_loss(denoised, inputs.clean_latents)}

    def instance_noise_levels(self, generators: Generators) -> torch.Tensor:
        return self.path.draw_instance_levels(generators)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, noise_levels: torch.Tensor) -> torch.Tensor:
        signal, sigma = self.path.coefficients(noise_levels, latents)
        return signal * latents + sigma * noise

    def scale(self, noisy_latents: torch.Tensor, noise_levels: torch.Tensor) -> torch.Tensor:
        signal, sigma = self.path.coefficients(noise_levels, noisy_latents)
        return noisy_latents / (signal.square() + sigma.square()).sqrt()

    def backbone_conditioning(self, noise_levels: torch.Tensor, inputs: ModelInputs) -> Mapping[str, torch.Tensor]:
        return inputs.conditioning

    def critic_condition(
        self, noise_levels: torch.Tensor, conditioning: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A quarter of ln sigma, as EDM models are conditioned on, and the text embedding."""
        return 0.25 * self.path.log_sigmas(noise_levels), self.family.critic_condition(conditioning)
