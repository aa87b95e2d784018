"""Critics of the student: trainable heads on frozen features, and which samples are real (Fig. 2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed
from torch import nn
from torch.distributed.fsdp import FSDPModule

from vdmini_diffusers.distillation.feature_taps import FeatureTaps, FirstFeatures
from vdmini_diffusers.distillation.hyperparameters import keeping_hyperparameters
from vdmini_diffusers.distillation.losses import GeneratorLoss, discriminator_loss, generator_loss, r1_penalty
from vdmini_diffusers.distillation.tasks.base import ModelInputs, Task


Features = dict[str, torch.Tensor]


@dataclass(frozen=True)
class InstanceNoise:
    """The same noise for real and fake (Eq. 5): `noise` like the latents, `levels` `(batch,)`."""

    noise: torch.Tensor
    levels: torch.Tensor


@dataclass(frozen=True)
class CriticFeatures:
    """What critics see of latents: the backbone's features at the instance noise, or the noisy latents themselves.

    Attributes:
        backbone: the frozen network whose features are taken, usually the teacher. Only its part up to the last tap
            runs, unless it is sharded. None if critics see the latents themselves.
    """

    task: Task
    backbone: nn.Module | None

    def __call__(self, latents: torch.Tensor, instance_noise: InstanceNoise, inputs: ModelInputs) -> Features:
        """Features of `(batch, frames, ...)` latents, each `(batch * frames, channels, height, width)`."""
        noisy_latents = self.task.add_noise(latents, instance_noise.noise, instance_noise.levels)
        if self.backbone is None:
            return {"latents": self.task.scale(noisy_latents, instance_noise.levels).flatten(0, 1)}
        taps = FeatureTaps if isinstance(self.backbone, FSDPModule) else FirstFeatures
        with taps(self.backbone, self.task.critic_taps) as features:
            self.task.denoise(self.backbone, noisy_latents, instance_noise.levels, inputs.conditioning)
        return features


class Critic:
    """Heads with their optimiser. Small beside the student: replicated on every process, in float32, outside the
    engine that may shard the student; gradients are averaged by one reduction.

    Args:
        name: name under which its losses are logged.
        heads: a [`DiscriminatorHeads`] or [`LatentDiscriminator`]; for a decoder's frames, a [`PatchDiscriminator`].
        real: which samples are real: the teacher's output (MCA), or the data (SF-V's own critic).
        weight: weight of the student's loss (lambda_MCA).
        start_step: first step at which the critic trains and contributes to the student's loss.
        r1_weight: weight of the R1 penalty (SF-V's gamma).
    """

    def __init__(
        self,
        name: str,
        heads: nn.Module,
        optimizer: torch.optim.Optimizer,
        real: Literal["teacher", "data"],
        weight: float = 1.0,
        start_step: int = 0,
        generator_loss: GeneratorLoss = "non_saturating",
        r1_weight: float = 0.0,
    ):
        self.name = name
        self.heads = heads
        self.optimizer = optimizer
        self.real = real
        self.weight = weight
        self.start_step = start_step
        self.generator_loss: GeneratorLoss = generator_loss
        self.r1_weight = r1_weight

    def loss_for_student(self, fake: Features, *condition: torch.Tensor) -> torch.Tensor:
        """`weight * L_MCA^gen`. The heads take no gradient. `condition`: further inputs of the heads."""
        self.heads.requires_grad_(False)
        return self.weight * generator_loss(self.heads(fake, *condition), self.generator_loss)

    def loss_for_heads(self, real: Features, fake: Features, *condition: torch.Tensor) -> torch.Tensor:
        """`L_MCA^disc`. Only the heads take a gradient."""
        self.heads.requires_grad_(True)
        fake = {name: feature.detach() for name, feature in fake.items()}
        real = {name: feature.detach().float().requires_grad_(self.r1_weight > 0) for name, feature in real.items()}
        real_logits = self.heads(real, *condition)
        loss = discriminator_loss(real_logits, self.heads(fake, *condition))
        if self.r1_weight > 0:
            loss = loss + self.r1_weight * r1_penalty(real_logits, real.values())
        return loss

    def step(self, max_grad_norm: float) -> None:
        """One optimiser step on the gradients of all processes."""
        gradients = [parameter.grad for parameter in self.heads.parameters() if parameter.grad is not None]
        if torch.distributed.is_initialized():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            torch.distributed.all_reduce(flat)
            flat /= torch.distributed.get_world_size()
            for gradient, average in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(average.view_as(gradient))
        nn.utils.clip_grad_norm_(self.heads.parameters(), max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Mapping]:
        return {"heads": self.heads.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Mapping]) -> None:
        self.heads.load_state_dict(state["heads"])
        with keeping_hyperparameters(self.optimizer):
            self.optimizer.load_state_dict(dict(state["optimizer"]))
