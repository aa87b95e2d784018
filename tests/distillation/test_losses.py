import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vdmini_diffusers.distillation.losses import (
    discriminator_loss,
    generator_loss,
    icd_loss,
    pseudo_huber_loss,
    r1_penalty,
)


PAIRS = (("a", "b"), ("c", "d"))


def features(*values: float) -> dict[str, torch.Tensor]:
    return {name: torch.full((2, 3), value) for name, value in zip(("a", "b", "c", "d"), values, strict=True)}


def test_icd_is_mean_squared_error_summed_over_pairs():
    both = features(1.0, 3.0, 0.0, 1.0)  # distances 4 and 1
    assert icd_loss(both, both, PAIRS).item() == 5
    assert icd_loss(both, both, PAIRS, reduction="mean").item() == 2.5


def test_normalised_icd_does_not_depend_on_the_scale_of_a_stage():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 8), torch.randn(4, 8)
    small = icd_loss({"a": student}, {"b": teacher}, PAIRS[:1], normalize=True)
    large = icd_loss({"a": 100 * student}, {"b": 100 * teacher}, PAIRS[:1], normalize=True)
    assert large.item() == pytest.approx(small.item(), rel=1e-4)


def test_normalised_icd_of_a_batch_is_the_mean_of_its_samples():
    """So that two processes have the loss of one with both batches."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 8), torch.tensor([1.0, 100.0])[:, None, None] * torch.randn(2, 5, 8)
    alone = [
        icd_loss({"a": student[i : i + 1]}, {"b": teacher[i : i + 1]}, PAIRS[:1], normalize=True) for i in range(2)
    ]
    together = icd_loss({"a": student}, {"b": teacher}, PAIRS[:1], normalize=True)
    assert together.item() == pytest.approx(sum(loss.item() for loss in alone) / 2, rel=1e-5)


def test_icd_gives_the_teacher_no_gradient():
    student, teacher = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    icd_loss({"a": student}, {"b": teacher}, PAIRS[:1]).backward()
    assert student.grad is not None and teacher.grad is None


def test_icd_refuses_features_of_another_plan():
    with pytest.raises(ValueError, match=r"'a' of the student \(2, 3\) with 'b' of the teacher \(2, 4\)"):
        icd_loss({"a": torch.zeros(2, 3)}, {"b": torch.zeros(2, 4)}, PAIRS[:1])


def test_icd_of_half_precision_features_is_computed_in_single():
    student = {"a": torch.full((4,), 300.0, dtype=torch.float16)}  # whose square overflows half precision
    assert icd_loss(student, {"b": torch.zeros(4)}, PAIRS[:1]).item() == 90_000


def test_hinge_at_points_computed_by_hand():
    # Beyond the margin costs nothing; at 0 both sides cost 1; on the wrong side it grows by the distance.
    assert discriminator_loss([torch.tensor([[2.0]])], [torch.tensor([[-2.0]])]).item() == 0
    assert discriminator_loss([torch.zeros(1, 1)], [torch.zeros(1, 1)]).item() == 2
    assert discriminator_loss([torch.tensor([[-1.0]])], [torch.tensor([[3.0]])]).item() == 2 + 4


def test_generator_losses_at_points_computed_by_hand():
    logits = [torch.zeros(1, 1)]
    assert generator_loss(logits, "non_saturating").item() == pytest.approx(math.log(2))
    assert generator_loss([torch.full((1, 1), 3.0)], "hinge").item() == -3


@given(heads=st.integers(1, 5), size=st.integers(1, 7))
def test_adversarial_losses_do_not_grow_with_heads_or_their_size(heads, size):
    logits = [torch.full((2, size), 0.3)] * heads
    for kind in ("non_saturating", "hinge"):
        assert generator_loss(logits, kind).item() == pytest.approx(generator_loss([torch.tensor([0.3])], kind).item())
    assert discriminator_loss(logits, logits).item() == pytest.approx(2.0)


@pytest.mark.parametrize("kind", ["non_saturating", "hinge"])
def test_the_students_loss_falls_as_the_critic_takes_it_for_real(kind):
    scores = [generator_loss([torch.tensor([logit])], kind).item() for logit in (-2.0, 0.0, 2.0)]
    assert scores == sorted(scores, reverse=True)


def test_r1_is_the_squared_gradient_of_a_videos_mean_logit():
    head = nn.Linear(3, 1, bias=False)
    x = torch.randn(5, 3, requires_grad=True)
    penalty = r1_penalty([head(x)], [x])
    assert penalty.item() == pytest.approx(head.weight.square().sum().item(), rel=1e-5)
    penalty.backward()
    assert torch.allclose(head.weight.grad, 2 * head.weight)


def test_pseudo_huber_is_the_distance_of_whole_videos():
    a, b = torch.zeros(2, 2, 2), torch.zeros(2, 2, 2)
    b[0] = 3.0  # distance 6 in four values, and 0 in the second video
    assert pseudo_huber_loss(a, b, c=0.0).item() == pytest.approx(3.0)
    assert pseudo_huber_loss(a, b, c=8.0).item() == pytest.approx((10 - 8) / 2)


@given(st.floats(0.01, 100))
def test_pseudo_huber_of_equals_is_zero_and_has_a_gradient(c):
    a = torch.zeros(1, 4, requires_grad=True)
    loss = pseudo_huber_loss(a, torch.zeros(1, 4), c=c)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-4) and torch.isfinite(a.grad).all()
