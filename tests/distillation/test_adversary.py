"""Critics together: when they train, when they contribute, and how they rank clips."""

import contextlib
import copy

import pytest
import torch
from tiny import randomise, tiny_teacher_unet
from torch import nn

from vdmini_diffusers.distillation.adversary import Adversary, Samples, draw_instance_noise
from vdmini_diffusers.distillation.critics import Critic, CriticFeatures, CriticSettings, scores
from vdmini_diffusers.distillation.discriminator import DiscriminatorHeads, LatentDiscriminator
from vdmini_diffusers.distillation.losses import finite_difference_penalty, gradient_at, relativistic_loss
from vdmini_diffusers.distillation.ranking import compare, rank_held_out
from vdmini_diffusers.distillation.tasks.single_step import SingleStepTask
from vdmini_diffusers.families.svd import SVD


def batch(count: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "latents": torch.randn(count, 3, 4, 8, 8, generator=generator),
        "image_latents": torch.randn(count, 4, 8, 8, generator=generator),
        "image_embeds": torch.randn(count, 1, 16, generator=generator),
        "added_time_ids": torch.tensor([6.0, 127.0, 0.02]).expand(count, 3),
    }


def samples(count: int = 2) -> Samples:
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    inputs = SingleStepTask(SVD).prepare(batch(count), generators)
    teacher, fake = (torch.randn_like(inputs.clean_latents) for _ in range(2))
    return Samples(fake.requires_grad_(), {"teacher": teacher, "data": inputs.clean_latents}, inputs, generators)


def critic(name: str = "mca", learning_rate: float = 1e-2, random: bool = True, **settings) -> Critic:
    heads = LatentDiscriminator(4, condition_dim=16, widths=(16, 16))
    heads = randomise(heads) if random else heads
    optimizer = torch.optim.AdamW(heads.parameters(), lr=learning_rate)
    return Critic(name, heads, optimizer, CriticSettings(**{"real": {"teacher": 0}, **settings}))


def adversary(*critics: Critic, backbone: nn.Module | None = None) -> Adversary:
    return Adversary(critics, CriticFeatures(SingleStepTask(SVD), backbone), 1, contextlib.nullcontext)


def one_step(side: Adversary, step: int, given: Samples | None = None) -> dict[str, torch.Tensor]:
    given = samples() if given is None else given
    losses = side.losses_for_student(step, given, given.fake.square().mean())
    found, ranks = side.train_heads(step, given)
    side.step(step, 1.0)
    return losses | found | ranks


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_new_heads_are_silent_and_learn():
    heads = DiscriminatorHeads({"down_blocks.0": 8}, condition_dim=16, width=16)
    features = {"down_blocks.0": torch.randn(6, 8, 4, 4)}
    logits = heads(features, torch.tensor([0.1, -0.3]), torch.randn(2, 16))
    assert all(not logit.any() for logit in logits)
    side, given = adversary(critic(random=False)), samples()
    assert one_step(side, 0, given)["mca_discriminator"].item() == 2.0  # of a guess
    assert one_step(side, 1, fresh(given))["mca_discriminator"].item() < 2.0


def test_in_its_warm_up_a_critic_learns_and_contributes_nothing():
    mine = critic(real={"teacher": 3}, warmup_steps=2)
    side, steps = adversary(mine), []
    for step in range(4):
        before = copy.deepcopy(mine.heads)
        steps.append((sorted(one_step(side, step)), not same(before, mine.heads)))
    trained = ["mca_accuracy", "mca_discriminator", "mca_gap"]
    assert steps == [([], False), (trained, True), (trained, True), (["mca", *trained], True)]


def test_a_warming_critic_gives_the_student_s_video_no_graph():
    side, given = adversary(critic(real={"teacher": 1}, warmup_steps=1)), samples()
    calls = []
    side.features.task.scale = lambda noisy, levels: calls.append(noisy.requires_grad) or noisy
    one_step(side, 0, given)
    assert calls == [False, False]


def fresh(given: Samples) -> Samples:
    """The same samples, with generators at their beginning."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(given.generators))]
    return Samples(given.fake, given.real, given.inputs, generators)


def losses_at(step: int, one: Critic, given: Samples) -> dict[str, torch.Tensor]:
    """The losses that this step would have; no optimiser moves."""
    side, again = adversary(one), fresh(given)
    losses = side.losses_for_student(step, again, again.fake.square().mean())
    return losses | side.train_heads(step, again)[0]


def test_one_critic_for_data_and_teacher_takes_each_for_real_from_its_own_step_on():
    joint, given = critic("sf_v", real={"data": 0, "teacher": 2}), samples()
    assert [joint.settings.real_samples(step) for step in (0, 1, 2)] == [("data",), ("data",), ("data", "teacher")]
    apart = [
        losses_at(0, Critic("sf_v", joint.heads, joint.optimizer, CriticSettings(real={kind: 0})), given)
        for kind in ("data", "teacher")
    ]
    assert losses_at(1, joint, given) == apart[0]
    both = losses_at(2, joint, given)
    expected = (apart[0]["sf_v_discriminator"] + apart[1]["sf_v_discriminator"]) / 2
    torch.testing.assert_close(both["sf_v_discriminator"], expected)
    assert not torch.equal(apart[0]["sf_v_discriminator"], apart[1]["sf_v_discriminator"])


def test_the_relativistic_losses_are_of_the_difference_of_one_clip_s_logits():
    real, fake = [torch.tensor([[1.0, 3.0]])], [torch.tensor([[0.0, 5.0]])]
    softplus = nn.functional.softplus
    torch.testing.assert_close(relativistic_loss(real, fake), softplus(torch.tensor([-1.0, 2.0])).mean())
    torch.testing.assert_close(relativistic_loss(fake, real), softplus(torch.tensor([1.0, -2.0])).mean())
    losses = losses_at(0, critic(loss="relativistic", generator_loss="hinge"), samples())
    assert losses["mca"] > 0 and losses["mca_discriminator"] > 0


def test_the_penalty_by_finite_differences_is_r1_times_the_noise_s_variance():
    torch.manual_seed(0)
    weights, real = torch.randn(10), torch.randn(20_000, 10)
    noise = 0.1 * torch.randn_like(real)
    penalty = finite_difference_penalty([(real @ weights)[:, None]], [((real + noise) @ weights)[:, None]])
    assert penalty.item() == pytest.approx(0.1**2 * weights.square().sum().item(), rel=0.05)


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_a_penalty_adds_to_the_heads_loss_and_not_to_the_student_s(sigma):
    one, given = critic(), samples()
    plain = losses_at(0, one, given)
    penalised = losses_at(0, Critic("mca", one.heads, one.optimizer, settings(r1_weight=10.0, r1_sigma=sigma)), given)
    assert penalised["mca_discriminator"] > plain["mca_discriminator"]
    assert penalised["mca"] == plain["mca"]


def settings(**changes) -> CriticSettings:
    return CriticSettings(**{"real": {"teacher": 0}, **changes})


@pytest.mark.parametrize(("weight", "size"), [(1.0, 7.0), (0.25, 1e-6)])
def test_an_adaptive_weight_makes_the_critic_s_gradient_as_long_as_the_task_s_times_its_weight(weight, size):
    given = samples()
    side = adversary(critic(adaptive_weight=True, weight=weight))
    task_loss = size * given.fake.square().mean()
    (adversarial,) = side.losses_for_student(0, given, task_loss).values()
    norms = [torch.autograd.grad(loss, given.fake, retain_graph=True)[0].norm() for loss in (task_loss, adversarial)]
    assert norms[1].item() == pytest.approx(weight * norms[0].item(), rel=0.01)


def test_an_adaptive_weight_leaves_silent_heads_silent():
    side, given = adversary(critic(adaptive_weight=True, random=False)), samples()
    assert side.losses_for_student(0, given, given.fake.square().mean())["mca"].item() == 0.0


def test_a_warming_teacher_is_no_real_sample_of_the_student_s_relativistic_loss():
    one, given = critic(loss="relativistic", real={"data": 0, "teacher": 5}, warmup_steps=3), samples()
    losses = [losses_at(step, one, given) for step in (1, 3, 5)]
    assert losses[0]["mca"] == losses[1]["mca"] != losses[2]["mca"]
    assert losses[0]["mca_discriminator"] != losses[1]["mca_discriminator"] == losses[2]["mca_discriminator"]


def test_small_gradients_are_not_lost_in_half_precision():
    at = torch.ones(4, requires_grad=True)
    loss = (1e-6 * at.half().float()).sum() * 1e-2  # below half precision's smallest number
    assert gradient_at(loss, at).tolist() == pytest.approx([1e-8] * 4, rel=0.05)
    assert gradient_at(torch.ones((), requires_grad=True), at).tolist() == [0.0] * 4


def test_further_steps_of_the_heads_draw_new_noise_and_leave_the_student_alone():
    one = critic(num_discriminator_steps=3)
    side, given = adversary(one), samples()
    drawn, steps = [], []
    side.features.task.scale = lambda noisy, levels: drawn.append(levels) or noisy
    one.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    one_step(side, 0, given)
    assert len(steps) == 3
    levels = drawn[::2]  # fake and real share theirs
    assert all(torch.equal(a, b) for a, b in zip(levels, drawn[1::2], strict=True))
    assert len({tuple(level.tolist()) for level in levels}) == 3
    assert given.fake.grad is None


@pytest.mark.parametrize("where", ["blocks", "before_downsampling"])
def test_taps_before_the_downsampler_see_twice_the_resolution(where):
    backbone = randomise(tiny_teacher_unet()).eval().requires_grad_(False)
    features = CriticFeatures(SingleStepTask(SVD), backbone, SVD.critic_taps[where])
    given = samples()
    with torch.no_grad():
        found = features(given.fake, draw_instance_noise(features, given), given.inputs)
    channels = SVD.critic_channels(backbone.config)
    sizes = [8, 4, 2, 1] if where == "before_downsampling" else [4, 2, 1, 1]
    assert [tuple(f.shape[1:]) for f in found.values()] == [(c, s, s) for c, s in zip(channels, sizes, strict=True)]


def test_two_sets_of_scores_at_points_worked_out_by_hand():
    fake, real = torch.tensor([0.0, 10.0]), torch.tensor([1.0, 11.0])
    found = compare(fake, real)
    assert found == {"accuracy": 1.0, "auc": 0.75, "gap": 1.0, "spread": 5.0}
    assert compare(real, fake)["accuracy"] == 0.0
    equal = compare(real, real)
    assert (equal["accuracy"], equal["auc"], equal["gap"]) == (0.5, 0.5, 0.0)


def test_held_out_clips_are_ranked_alike_at_every_call_and_better_after_training():
    class Spoils(nn.Module):
        """Makes videos without detail, as a student of one step may."""

    task = SingleStepTask(SVD)
    task.denoise = lambda model, noisy, levels, conditioning: (
        torch.zeros_like(noisy) if isinstance(model, Spoils) else task_teacher(noisy)
    )

    def task_teacher(noisy):
        return torch.randn(noisy.shape, generator=torch.Generator().manual_seed(1))

    one = critic(learning_rate=3e-3, random=False)
    features = CriticFeatures(task, None)
    batches = [batch(4), batch(4)]

    def rank():
        return rank_held_out([one], features, Spoils(), nn.Identity(), batches, contextlib.nullcontext)

    assert rank() == rank()
    assert Spoils().training
    assert set(rank()) == {f"mca/teacher/{name}" for name in ("accuracy", "auc", "gap", "spread")}
    assert rank()["mca/teacher/accuracy"] == 0.5  # silent heads
    side = Adversary([one], features, 1, contextlib.nullcontext)
    for step in range(30):
        given = samples(4)
        one_step(side, step, Samples(torch.zeros_like(given.fake), given.real, given.inputs, given.generators))
    assert rank()["mca/teacher/accuracy"] > 0.9


def test_scores_are_one_number_a_clip():
    logits = [torch.tensor([[0.0, 2.0], [4.0, 4.0]]), torch.tensor([[3.0], [0.0]])]
    assert scores(logits).tolist() == [2.0, 2.0]
