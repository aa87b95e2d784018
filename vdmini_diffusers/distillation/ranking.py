"""How critics rank real clips above the student's, on clips that neither was trained on.

The hinge loss does not show it: logits differ between clips by more than between a real clip and a generated one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from vdmini_diffusers.distillation.adversary import Samples, draw_instance_noise
from vdmini_diffusers.distillation.batches import sample_generators
from vdmini_diffusers.distillation.critics import Critic, CriticFeatures, scores


@torch.no_grad()
def rank_held_out(
    critics: Sequence[Critic],
    features: CriticFeatures,
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    autocast: Callable[..., AbstractContextManager[Any]],
    seed: int = 0,
) -> dict[str, float]:
    """Measures of each critic against each kind of its real samples, by names such as `mca/teacher/accuracy`.

    The same noise is drawn at every call, and the student is ranked without dropout, so that calls can be compared.

    Returns:
        As `compare` gives them.
    """
    task = features.task
    training = student.training
    student.eval()
    wanted = sorted({kind for critic in critics for kind in critic.settings.real})
    fake: dict[str, list[torch.Tensor]] = {}
    real: dict[tuple[str, str], list[torch.Tensor]] = {}
    num_clips = 0
    for batch in batches:
        size = len(batch["latents"])
        generators = sample_generators(seed, 0, num_clips, size)
        num_clips += size
        inputs = task.prepare(batch, generators)
        given = inputs.noisy_latents, inputs.noise_levels, inputs.conditioning
        with autocast():
            denoised = task.denoise(student, *given)
            clean_latents = {"data": inputs.clean_latents}
            if "teacher" in wanted:
                clean_latents["teacher"] = task.denoise(teacher, *given)
        noise = draw_instance_noise(features, Samples(denoised, clean_latents, inputs, generators))
        condition = task.critic_condition(noise.levels, inputs.conditioning)
        with autocast():
            of_fake = features(denoised, noise, inputs)
            of_real = {kind: features(clean_latents[kind], noise, inputs) for kind in wanted}
        for critic in critics:
            fake.setdefault(critic.name, []).append(scores(critic.heads(of_fake, *condition)))
            for kind in critic.settings.real:
                found = scores(critic.heads(of_real[kind], *condition))
                real.setdefault((critic.name, kind), []).append(found)
    student.train(training)
    return {
        f"{name}/{kind}/{measure}": value
        for (name, kind), found in real.items()
        for measure, value in compare(torch.cat(fake[name]), torch.cat(found)).items()
    }


def compare(fake: torch.Tensor, real: torch.Tensor) -> dict[str, float]:
    """Two sets of scores `(n,)`, of which those of one place are of one clip and noise.

    Returns:
        `accuracy`: share of pairs in which the real one scores higher; 0.5 is a guess. `auc`: the same of all real
        with all fake clips. `gap`: mean difference of a pair. `spread`: standard deviation of real scores between
        clips and noise levels, to compare the gap with.
    """
    ties = 0.5 * (real == fake)
    pairs = real[:, None] - fake[None]
    return {
        "accuracy": ((real > fake) + ties).mean().item(),
        "auc": ((pairs > 0).float() + 0.5 * (pairs == 0)).mean().item(),
        "gap": (real - fake).mean().item(),
        "spread": real.std(correction=0).item(),
    }
