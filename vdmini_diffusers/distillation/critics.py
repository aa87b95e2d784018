"""Critics of the student: trainable heads on frozen features, and which samples are real (Fig. 2)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed
from torch import nn
from torch.distributed.fsdp import FSDPModule

from vdmini_diffusers.distillation.feature_taps import FeatureTaps, FirstFeatures
from vdmini_diffusers.distillation.hyperparameters import keeping_hyperparameters
from vdmini_diffusers.distillation.losses import (
    GeneratorLoss,
    discriminator_loss,
    finite_difference_penalty,
    generator_loss,
    r1_penalty,
    relativistic_loss,
)
from vdmini_diffusers.distillation.tasks.base import ModelInputs, Task
from vdmini_diffusers.families import TokenGrid


Features = dict[str, torch.Tensor]
Real = Literal["teacher", "data"]


@dataclass(frozen=True)
class InstanceNoise:
    """The same noise for real and fake (Eq. 5): `noise` like the latents, `levels` `(batch,)`."""

    noise: torch.Tensor
    levels: torch.Tensor


@dataclass(frozen=True)
class CriticFeatures:
    """What critics see of latents: the backbone's features at the instance noise, or the noisy latents themselves.

    Attributes:
        backbone: the frozen network whose features are taken. Only its part up to the last tap runs, unless it is
            sharded, or computed again in the backward pass. None if critics see the latents themselves.
        taps: modules of the backbone, in the order in which they run; by default the task's.
        token_grid: of a transformer: `(config, shape of latents)` to frames, height and width of the tokens' grid.
    """

    task: Task
    backbone: nn.Module | None
    taps: Sequence[str] | None = None
    token_grid: TokenGrid | None = None

    @contextmanager
    def keeping_weights(self) -> Iterator[None]:
        """For backward passes that are followed by another: a sharded backbone keeps what it has gathered."""
        sharded = self.backbone if isinstance(self.backbone, FSDPModule) else None
        if sharded is not None:
            sharded.set_reshard_after_backward(False)
        try:
            yield
        finally:
            if sharded is not None:
                sharded.set_reshard_after_backward(True)

    def __call__(self, latents: torch.Tensor, instance_noise: InstanceNoise, inputs: ModelInputs) -> Features:
        """Features of `(batch, frames, ...)` latents, each `(batch * frames, channels, height, width)`, or for
        tokens `(batch, frames, height, width, channels)`."""
        levels = instance_noise.levels
        noisy_latents = self.task.add_noise(latents, instance_noise.noise, levels)
        if self.backbone is None:
            return {"latents": self.task.scale(noisy_latents, levels).flatten(0, 1)}
        computed_again = torch.is_grad_enabled() and getattr(self.backbone, "is_gradient_checkpointing", False)
        taps = FeatureTaps if computed_again or isinstance(self.backbone, FSDPModule) else FirstFeatures
        with taps(self.backbone, self.taps or self.task.critic_taps) as features:
            conditioning = self.task.backbone_conditioning(levels, inputs)
            self.task.denoise(self.backbone, noisy_latents, levels, conditioning)
        if self.token_grid is not None:
            config: Any = self.backbone.config
            grid = self.token_grid(config, latents.shape)
            return {name: tokens.unflatten(1, grid) for name, tokens in features.items()}
        return features


@dataclass(frozen=True)
class CriticSettings:
    """How a critic is trained, and what it contributes.

    Attributes:
        real: the real samples, each with the first step at which the critic contributes by them to the student's
            loss: the teacher's output (MCA), the data (SF-V's own critic), or both.
        weight: weight of the student's loss (lambda_MCA).
        warmup_steps: steps before that in which the heads learn, and the student is not trained by them.
        loss: hinge as in SF-V, or relativistic (Huang et al., "The GAN is dead; long live the GAN!", 2024).
        generator_loss: the student's part of the hinge loss.
        num_discriminator_steps: optimiser steps of the heads for each of the student's (Yin et al., DMD2, 2024: 5).
            Each but the first draws new instance noise.
        adaptive_weight: multiply the student's loss by the ratio of the norms of the task's and the critic's
            gradients at the student's output (Esser et al., VQGAN, 2021, at the last layer).
        r1_weight: weight of the R1 penalty (SF-V's gamma).
        r1_sigma: if above 0, the penalty is by finite differences: the squared change of the logits by Gaussian noise
            of this deviation on the real latents (Lin et al., "Diffusion Adversarial Post-Training", 2025). Otherwise
            it is the gradient by the backbone's features.
    """

    real: Mapping[Real, int] = field(default_factory=lambda: {"data": 0})
    weight: float = 1.0
    warmup_steps: int = 0
    loss: Literal["hinge", "relativistic"] = "hinge"
    generator_loss: GeneratorLoss = "non_saturating"
    num_discriminator_steps: int = 1
    adaptive_weight: bool = False
    r1_weight: float = 0.0
    r1_sigma: float = 0.0

    @property
    def start_step(self) -> int:
        """First step at which the critic contributes to the student's loss."""
        return min(self.real.values())

    def real_samples(self, step: int) -> tuple[Real, ...]:
        """What is real to the heads at this step; nothing as long as they do not train."""
        return tuple(kind for kind, start in self.real.items() if step >= start - self.warmup_steps)

    def contributing(self, step: int) -> tuple[Real, ...]:
        """What is real in the student's loss at this step; nothing as long as the critic does not contribute."""
        return tuple(kind for kind, start in self.real.items() if step >= start)


class HeadsLoss(NamedTuple):
    """The heads' loss, and the scores `(batch,)` of the fake clips and of each kind of real ones."""

    loss: torch.Tensor
    fake: torch.Tensor
    real: list[torch.Tensor]


class Critic:
    """Heads with their optimiser. Small beside the student: replicated on every process, in float32, outside the
    engine that may shard the student; gradients are averaged by one reduction.

    Args:
        name: name under which its losses are logged.
        heads: a [`DiscriminatorHeads`] or [`LatentDiscriminator`]; for a decoder's frames, a [`PatchDiscriminator`].
        features: what the heads see, in words. Heads that learned on other features are not resumed.
    """

    def __init__(
        self,
        name: str,
        heads: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: CriticSettings,
        features: str | None = None,
    ):
        self.name = name
        self.heads = heads
        self.optimizer = optimizer
        self.settings = settings
        self.features = features

    def loss_for_student(self, fake: Features, real: Sequence[Features], *condition: torch.Tensor) -> torch.Tensor:
        """`L_MCA^gen`, not weighted yet. The heads take no gradient.

        Args:
            real: features of each kind of real samples, for the relativistic loss.
            condition: further inputs of the heads.
        """
        self.heads.requires_grad_(False)
        logits = self.heads(fake, *condition)
        if self.settings.loss == "hinge":
            return generator_loss(logits, self.settings.generator_loss)
        losses = [relativistic_loss(logits, self.heads(features, *condition)) for features in real]
        return torch.stack(losses).mean()

    def loss_for_heads(
        self,
        fake: Features,
        real: Sequence[Features],
        *condition: torch.Tensor,
        perturbed: Sequence[Features] = (),
    ) -> "HeadsLoss":
        """`L_MCA^disc`, the mean over the kinds of real samples. Only the heads take a gradient.

        Args:
            perturbed: features of the real samples with noise on them, for the penalty by finite differences.
        """
        self.heads.requires_grad_(True)
        by_gradient = self.settings.r1_weight > 0 and not perturbed
        fake_logits = self.heads({name: feature.detach() for name, feature in fake.items()}, *condition)
        losses, real_scores = [], []
        for i, features in enumerate(real):
            leaves = {name: feature.detach().float().requires_grad_(by_gradient) for name, feature in features.items()}
            real_logits = self.heads(leaves, *condition)
            if self.settings.loss == "hinge":
                loss = discriminator_loss(real_logits, fake_logits)
            else:
                loss = relativistic_loss(real_logits, fake_logits)
            if by_gradient:
                loss = loss + self.settings.r1_weight * r1_penalty(real_logits, leaves.values())
            elif self.settings.r1_weight > 0:
                penalty = finite_difference_penalty(real_logits, self.heads(perturbed[i], *condition))
                loss = loss + self.settings.r1_weight * penalty
            losses.append(loss)
            real_scores.append(scores(real_logits))
        return HeadsLoss(torch.stack(losses).mean(), scores(fake_logits), real_scores)

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

    def state_dict(self) -> dict[str, Any]:
        state = {"heads": self.heads.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state | ({"features": self.features} if self.features is not None else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `ValueError` if the heads learned on other features; version 0.1.0 did not note which."""
        if state.get("features", self.features) != self.features:
            raise ValueError(f"the critic {self.name!r} learned on {state['features']}, and now sees {self.features}")
        self.heads.load_state_dict(state["heads"])
        with keeping_hyperparameters(self.optimizer):
            self.optimizer.load_state_dict(dict(state["optimizer"]))


def scores(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """One number for each clip, `(batch,)`, detached: the mean over heads of its mean logit."""
    return torch.stack([logit.detach().float().mean(dim=1) for logit in logits]).mean(dim=0)
