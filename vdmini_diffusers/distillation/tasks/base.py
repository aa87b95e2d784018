"""The interface between the training loop and a base model's objective."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn


Generators = Sequence[torch.Generator]  # one per sample, on the CPU
Encode = Callable[[Mapping[str, Any], Generators], Mapping[str, Any]]  # a batch of videos to one of latents


@dataclass(frozen=True)
class ModelInputs:
    """The inputs that student and teacher share.

    Attributes:
        clean_latents: x_0, `(batch, frames, channels, height, width)`, of about unit variance.
        noisy_latents: x_t, the same shape.
        noise_levels: `(batch,)`, in the task's own unit (sigma for EDM models).
        conditioning: keyword tensors that the task's models need, each with `batch` rows.
    """

    clean_latents: torch.Tensor
    noisy_latents: torch.Tensor
    noise_levels: torch.Tensor
    conditioning: Mapping[str, torch.Tensor]


class Denoised(torch.Tensor):
    """Clean latents that carry the network's raw output, of which they were computed.

    A velocity that is recovered from clean latents is divided by the noise level. What operations make of it are plain
    tensors.

    Attributes:
        raw_output: of the latents' shape, with its graph.
    """

    raw_output: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType] - as in torch

    @staticmethod
    def of(clean_latents: torch.Tensor, raw_output: torch.Tensor) -> "Denoised":
        denoised = clean_latents.as_subclass(Denoised)
        denoised.raw_output = raw_output
        return denoised


class Task(Protocol):
    """How a base model's latents are noised, denoised and trained on. No inheritance is needed.

    Attributes:
        critic_taps: modules of the backbone whose outputs critics see, in the order in which they run.
    """

    critic_taps: tuple[str, ...]

    def prepare(self, batch: Mapping[str, torch.Tensor], generators: Generators) -> ModelInputs:
        """Draw noise levels and noise for a batch as the data set gives it."""
        ...

    def denoise(
        self,
        model: nn.Module,
        noisy_latents: torch.Tensor,
        noise_levels: torch.Tensor,
        conditioning: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """The clean latents that `model`, student or teacher, predicts; float32. Where the losses are those of the raw
        output, it comes along as [`Denoised`]."""
        ...

    def losses(self, denoised: torch.Tensor, inputs: ModelInputs) -> dict[str, torch.Tensor]:
        """The task's own losses, weighted, by the names under which they are logged. Their sum is `L_Task`."""
        ...

    def instance_noise_levels(self, generators: Generators) -> torch.Tensor:
        """The instance noise level sigma_t' of Eq. 5, one per sample."""
        ...

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, noise_levels: torch.Tensor) -> torch.Tensor:
        """Clean latents noised to these levels."""
        ...

    def scale(self, noisy_latents: torch.Tensor, noise_levels: torch.Tensor) -> torch.Tensor:
        """Noisy latents at unit variance, for critics without a backbone."""
        ...

    def backbone_conditioning(self, noise_levels: torch.Tensor, inputs: ModelInputs) -> Mapping[str, torch.Tensor]:
        """The conditioning of the critics' backbone, which runs at the instance noise instead of the inputs' noise."""
        ...

    def critic_condition(
        self, noise_levels: torch.Tensor, conditioning: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise levels in the unit that critics take, `(batch,)`, and their condition, `(batch, width)`."""
        ...
