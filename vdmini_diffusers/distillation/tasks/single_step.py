"""SF-V's objective (Zhang et al., 2024): one step from any of four noise levels to the video. Image to video."""

from collections.abc import Mapping

import torch
from torch import nn

from vdmini_diffusers.distillation.losses import pseudo_huber_loss
from vdmini_diffusers.distillation.noise import (
    choose,
    edm_coefficients,
    gaussian_like,
    instance_noise_probabilities,
    karras_sigmas,
    per_sample,
)
from vdmini_diffusers.distillation.tasks.base import Encode, Generators, ModelInputs
from vdmini_diffusers.families.base import UNetFamily


class SingleStepTask:
    """Denoise in one step, with SVD's conditioning: the pseudo-Huber half of SF-V; its adversarial half is a critic.

    Batches hold `latents` `(batch, frames, channels, height, width)`, `image_latents` `(batch, channels, height,
    width)`, `image_embeds` `(batch, 1, width)` and `added_time_ids` `(batch, 3)`, as `data.latents` makes them.

    Args:
        family: the family of student and teacher.
        num_noise_levels: SF-V's T_g, a number of Karras levels. All but the last are trained on.
        reconstruction_weight: weight of the pseudo-Huber loss (SF-V: 0.1).
        instance_noise_mean, instance_noise_std: P_mean and P_std of sigma_t'.
        encode: encodes batches of videos, if the data set holds videos.
    """

    def __init__(
        self,
        family: UNetFamily,
        num_noise_levels: int = 4,
        reconstruction_weight: float = 0.1,
        instance_noise_mean: float = -1.0,
        instance_noise_std: float = 1.0,
        encode: Encode | None = None,
    ):
        if num_noise_levels < 2:
            raise ValueError(
                f"`num_noise_levels` must be at least 2, not {num_noise_levels}: the last is not trained."
            )
        self.family, self.critic_taps = family, family.critic_taps["blocks"]
        self.sigmas = karras_sigmas(num_noise_levels)[:-1]
        self.reconstruction_weight = reconstruction_weight
        self.instance_noise = instance_noise_probabilities(instance_noise_mean, instance_noise_std)
        self.encode = encode

    def prepare(self, batch: Mapping[str, torch.Tensor], generators: Generators) -> ModelInputs:
        batch = batch if self.encode is None else self.encode(batch, generators)
        latents = batch["latents"].float()
        sigmas = choose(self.sigmas, None, generators).to(latents.device)
        return ModelInputs(
            clean_latents=latents,
            noisy_latents=self.add_noise(latents, gaussian_like(latents, generators), sigmas),
            noise_levels=sigmas,
            conditioning={name: batch[name] for name in ("image_latents", "image_embeds", "added_time_ids")},
        )

    def denoise(
        self,
        model: nn.Module,
        noisy_latents: torch.Tensor,
        noise_levels: torch.Tensor,
        conditioning: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """`D(x; sigma)`, Eq. 2."""
        coefficients = edm_coefficients(noise_levels.float())
        skip, out, in_ = (per_sample(value, noisy_latents) for value in coefficients[:3])
        predicted = self.family.predict(model, in_ * noisy_latents, coefficients.noise, conditioning)
        return skip * noisy_latents + out * predicted

    def losses(self, denoised: torch.Tensor, inputs: ModelInputs) -> dict[str, torch.Tensor]:
        return {"reconstruction": self.reconstruction_weight * pseudo_huber_loss(denoised, inputs.clean_latents)}

    def instance_noise_levels(self, generators: Generators) -> torch.Tensor:
        return choose(*self.instance_noise, generators)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, noise_levels: torch.Tensor) -> torch.Tensor:
        return latents + per_sample(noise_levels, latents) * noise

    def scale(self, noisy_latents: torch.Tensor, noise_levels: torch.Tensor) -> torch.Tensor:
        return per_sample(edm_coefficients(noise_levels).in_, noisy_latents) * noisy_latents

    def backbone_conditioning(self, noise_levels: torch.Tensor, inputs: ModelInputs) -> Mapping[str, torch.Tensor]:
        return inputs.conditioning

    def critic_condition(
        self, noise_levels: torch.Tensor, conditioning: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return edm_coefficients(noise_levels).noise, self.family.critic_condition(conditioning)
