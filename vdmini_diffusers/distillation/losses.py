"""The losses of section 3.3 (Eq. 4 to 6) and SF-V's reconstruction loss. All are computed in float32."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F


GeneratorLoss = Literal["non_saturating", "hinge"]
MAX_ADAPTIVE_WEIGHT = 1e4


def icd_loss(
    student_features: Mapping[str, torch.Tensor],
    teacher_features: Mapping[str, torch.Tensor],
    pairs: Iterable[tuple[str, str]],
    reduction: Literal["sum", "mean"] = "sum",
    normalize: bool = False,
) -> torch.Tensor:
    """`L_ICD`, Eq. 4: the distance of student and teacher features, over the plan's pairs.

    The paper does not give the distance `d`. This is BK-SDM's: mean squared error, summed over pairs.

    Args:
        pairs: `(student module, teacher module)`, from `feature_pairs`.
        reduction: over pairs.
        normalize: divide each pair's error by the teacher's mean square, so that every stage counts alike. Both are
            taken row by row, of the first dimension, so that a sample's share does not depend on its batch.

    Raises:
        ValueError: if two features differ in shape.
    """
    distances = []
    for student_name, teacher_name in pairs:
        student, teacher = student_features[student_name].float(), teacher_features[teacher_name].float().detach()
        if student.shape != teacher.shape:
            raise ValueError(
                f"ICD compares {student_name!r} of the student {tuple(student.shape)} with {teacher_name!r} of the"
                f" teacher {tuple(teacher.shape)}: the plan does not belong to these two models."
            )
        if normalize:
            errors, squares = (x.square().flatten(1).mean(dim=1) for x in (student - teacher, teacher))
            distances.append((errors / squares.clamp_min(1e-8)).mean())
        else:
            distances.append(F.mse_loss(student, teacher))
    total = torch.stack(distances)
    return total.sum() if reduction == "sum" else total.mean()


def generator_loss(fake_logits: Sequence[torch.Tensor], kind: GeneratorLoss = "non_saturating") -> torch.Tensor:
    """`L_MCA^gen`, Eq. 5: mean within each head's logits, then over heads, so that it does not grow with their number.

    Eq. 5 takes the log of `D`, whose hinge loss wants unbounded logits. Read as a probability, `-log sigmoid(D)` is
    the `"non_saturating"` loss; `"hinge"` is `-D`.
    """
    if kind == "non_saturating":
        return _mean(F.softplus(-logits.float()) for logits in fake_logits)
    return _mean(-logits.float() for logits in fake_logits)


def discriminator_loss(real_logits: Sequence[torch.Tensor], fake_logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """`L_MCA^disc`, Eq. 5: hinge. Real is what the teacher (or the data) gives, and is to score above 1."""
    real = _mean(F.relu(1 - logits.float()) for logits in real_logits)
    fake = _mean(F.relu(1 + logits.float()) for logits in fake_logits)
    return real + fake


def r1_penalty(real_logits: Sequence[torch.Tensor], real_features: Iterable[torch.Tensor]) -> torch.Tensor:
    """Squared norm of the gradient of a video's mean logit, per head, by the features; the mean over videos.

    SF-V takes it by the latents. By the features it regularises the same trainable part, the heads, and needs no
    second derivative of the backbone, which its fused attention does not have.

    Args:
        real_logits: one `(batch, ...)` per head.
        real_features: what they were computed from; they require gradients.
    """
    total = torch.stack([logits.float().flatten(1).mean(dim=1).sum() for logits in real_logits]).sum()
    gradients = torch.autograd.grad(total, list(real_features), create_graph=True)
    return torch.stack([gradient.float().square().sum() for gradient in gradients]).sum() / len(real_logits[0])


def relativistic_loss(favoured: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> torch.Tensor:
    """`-log sigmoid(D(favoured) - D(other))` at every place, of pairs of one clip and noise.

    RpGAN, as in Huang et al., 2024. Heads favour the real sample, the student its own.
    """
    return _mean(F.softplus(b.float() - a.float()) for a, b in zip(favoured, other, strict=True))


def finite_difference_penalty(logits: Sequence[torch.Tensor], perturbed: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared change of the logits by a little noise on the samples: R1 without second derivatives (APT, 2025)."""
    return _mean((a.float() - b.float()).square() for a, b in zip(logits, perturbed, strict=True))


def adaptive_weight(
    likeness: torch.Tensor, adversarial: torch.Tensor, at: torch.Tensor, least_norm: float = 1e-4
) -> torch.Tensor:
    """VQGAN's lambda: the ratio of the norms of both losses' gradients at a tensor, detached.

    The graphs of both losses are kept. It is 0 where the adversarial loss has no gradient.

    Args:
        at: weights of the last layer, or the output.
        least_norm: added to the adversarial norm. VQGAN's, by default, suits a last layer; gradients at an output are
            often smaller.
    """
    norms = [gradient_at(loss, at).norm() for loss in (likeness, adversarial)]
    ratio = (norms[0] / (norms[1] + least_norm)).clamp(max=MAX_ADAPTIVE_WEIGHT)
    return torch.where(norms[1] > 0, ratio, 0.0).detach()


def gradient_at(loss: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """The gradient of a loss at a tensor, zero if it does not depend on it; the graph is kept.

    Of clean latents that carry the network's raw output, it is taken there: what trains the output need not depend on
    the latents. It is taken of a multiple of the loss: half precision on the way would round small gradients to zero.
    """
    scale = 2.0**16
    at = getattr(at, "raw_output", at)
    (gradient,) = torch.autograd.grad(scale * loss, at, retain_graph=True, allow_unused=True)
    return torch.zeros_like(at) if gradient is None else gradient / scale


def pseudo_huber_loss(predicted: torch.Tensor, target: torch.Tensor, c: float | None = None) -> torch.Tensor:
    """`sqrt(||a - b||^2 + c^2) - c` per video, then the mean: SF-V's reconstruction loss.

    `c` is not printed; by default it is 0.00054 times the root of the number of values, as for consistency models.
    """
    squared = (predicted.float() - target.float()).square().flatten(1)
    offset = 0.00054 * squared.shape[1] ** 0.5 if c is None else c
    return ((squared.sum(dim=1) + offset**2).sqrt() - offset).mean()


def consistency_loss(predicted: torch.Tensor, target: torch.Tensor, c: float = 0.001) -> torch.Tensor:
    """`sqrt((a - b)^2 + c^2) - c` per value, then the mean: the distance of Eq. 3, as T2V-Turbo and LCM have it."""
    squared = (predicted.float() - target.float()).square()
    return ((squared + c**2).sqrt() - c).mean()


def _mean(values: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack([value.mean() for value in values]).mean()
