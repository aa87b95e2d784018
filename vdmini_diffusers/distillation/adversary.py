"""The adversarial half of training (Eq. 5): all critics of a run, on the same features."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from vdmini_diffusers.distillation.critics import Critic, CriticFeatures, Features, HeadsLoss, InstanceNoise, Real
from vdmini_diffusers.distillation.losses import adaptive_weight
from vdmini_diffusers.distillation.noise import gaussian_like
from vdmini_diffusers.distillation.tasks.base import Generators, ModelInputs


@dataclass(frozen=True)
class Samples:
    """One batch as critics need it. All latents are `(batch, frames, ...)`.

    Attributes:
        fake: the student's output.
        real: clean latents by their kind.
        generators: one for each sample, of the instance noise.
    """

    fake: torch.Tensor
    real: Mapping[str, torch.Tensor]
    inputs: ModelInputs
    generators: Generators


@dataclass(frozen=True)
class Judged:
    """Features of a batch, all at the same instance noise, and the heads' further inputs."""

    fake: Features
    real: Mapping[Real, Features]
    perturbed: Mapping[float, Mapping[Real, Features]]  # by the deviation of the noise on real latents
    condition: tuple[torch.Tensor, ...]


class Adversary:
    """All critics of a run.

    Args:
        features: what they see.
        accumulation_steps: batches for each optimiser step.
        autocast: context in which features are computed.
    """

    def __init__(
        self,
        critics: Sequence[Critic],
        features: CriticFeatures,
        accumulation_steps: int,
        autocast: Callable[..., AbstractContextManager[Any]],
    ):
        self.critics = critics
        self.features = features
        self.accumulation_steps = accumulation_steps
        self.autocast = autocast
        self._batches: list[Samples] = []  # of this optimiser step
        self._judged: Judged | None = None  # the last batch

    def real_samples(self, step: int) -> set[Real]:
        """The kinds of real samples that a step needs."""
        return {kind for critic in self.critics for kind in critic.settings.real_samples(step)}

    def losses_for_student(self, step: int, samples: Samples, task_loss: torch.Tensor) -> dict[str, torch.Tensor]:
        """The critics' losses of the student, by their names; of those that contribute at this step.

        Args:
            task_loss: the task's own loss, for critics with an adaptive weight.
        """
        self._judged = None
        if not self.real_samples(step):
            return {}
        active = [critic for critic in self.critics if critic.settings.contributing(step)]
        self._judged = judged = self._judge(step, samples, with_graph=bool(active))
        losses = {}
        for critic in active:
            real = [judged.real[kind] for kind in critic.settings.contributing(step)]
            with self.autocast():
                loss = critic.loss_for_student(judged.fake, real, *judged.condition)
            weight: Any = critic.settings.weight
            if critic.settings.adaptive_weight:
                with self.features.keeping_weights():
                    weight = weight * adaptive_weight(task_loss, loss, samples.fake, least_norm=0.0)
            losses[critic.name] = weight * loss
        return losses

    def train_heads(self, step: int, samples: Samples) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The heads' losses, whose gradients are added up, and how they ranked this batch before they learn from it.

        To be called after `losses_for_student`, with the same samples.
        """
        if self._judged is None:
            return {}, {}
        if any(critic.settings.num_discriminator_steps > 1 for critic in self.critics):
            detached = {kind: latents.detach() for kind, latents in samples.real.items()}
            self._batches.append(Samples(samples.fake.detach(), detached, samples.inputs, samples.generators))
        losses, ranks = {}, {}
        for critic in self.critics:
            if kinds := critic.settings.real_samples(step):
                found = self._add_gradients(critic, self._judged, kinds)
                losses[f"{critic.name}_discriminator"] = found.loss
                gaps = torch.cat([real - found.fake for real in found.real])
                ranks[f"{critic.name}_accuracy"] = ((gaps > 0) + 0.5 * (gaps == 0)).mean()
                ranks[f"{critic.name}_gap"] = gaps.mean()
        return losses, ranks

    def step(self, step: int, max_grad_norm: float) -> None:
        """One optimiser step of each critic, and further ones of those that take several."""
        training = [critic for critic in self.critics if critic.settings.real_samples(step)]
        for critic in training:
            critic.step(max_grad_norm)
        for i in range(1, max((critic.settings.num_discriminator_steps for critic in training), default=1)):
            again = [critic for critic in training if critic.settings.num_discriminator_steps > i]
            for samples in self._batches:
                judged = self._judge(step, samples, with_graph=False)
                for critic in again:
                    self._add_gradients(critic, judged, critic.settings.real_samples(step))
            for critic in again:
                critic.step(max_grad_norm)
        self._batches, self._judged = [], None

    def _add_gradients(self, critic: Critic, judged: Judged, kinds: Sequence[Real]) -> HeadsLoss:
        perturbed = judged.perturbed.get(critic.settings.r1_sigma, {})
        found = critic.loss_for_heads(
            judged.fake,
            [judged.real[kind] for kind in kinds],
            *judged.condition,
            perturbed=[perturbed[kind] for kind in kinds] if perturbed else (),
        )
        (found.loss / self.accumulation_steps).backward()
        return found

    def _judge(self, step: int, samples: Samples, with_graph: bool) -> Judged:
        inputs, task = samples.inputs, self.features.task
        noise = draw_instance_noise(self.features, samples)
        with self.autocast(), torch.set_grad_enabled(with_graph):
            fake = self.features(samples.fake, noise, inputs)
        sigmas = {c.settings.r1_sigma for c in self.critics if c.settings.r1_weight > 0 and c.settings.r1_sigma > 0}
        real, perturbed = {}, {sigma: {} for sigma in sigmas}
        with self.autocast(), torch.no_grad():
            for kind in sorted(self.real_samples(step)):
                latents = samples.real[kind]
                real[kind] = self.features(latents, noise, inputs)
                for sigma in sigmas:
                    near = latents + sigma * gaussian_like(latents, samples.generators)
                    perturbed[sigma][kind] = self.features(near, noise, inputs)
        return Judged(fake, real, perturbed, task.critic_condition(noise.levels, inputs.conditioning))


def draw_instance_noise(features: CriticFeatures, samples: Samples) -> InstanceNoise:
    levels = features.task.instance_noise_levels(samples.generators).to(samples.fake.device)
    return InstanceNoise(gaussian_like(samples.fake, samples.generators), levels)
