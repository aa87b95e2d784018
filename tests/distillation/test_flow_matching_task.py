"""The objective of video transformers on a tiny HunyuanVideo: FastVideo's loss, worked out by hand."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny import randomise
from tiny_hunyuan_video import tiny_hunyuan_batch, tiny_hunyuan_transformer

from vdmini_diffusers.distillation.adversary import Adversary, Samples, draw_instance_noise
from vdmini_diffusers.distillation.critics import Critic, CriticFeatures, CriticSettings
from vdmini_diffusers.distillation.discriminator import DiscriminatorHeads
from vdmini_diffusers.distillation.feature_taps import FeatureTaps
from vdmini_diffusers.distillation.losses import gradient_at, icd_loss
from vdmini_diffusers.distillation.tasks.flow_matching import FlowMatchingTask
from vdmini_diffusers.distillation.velocity import FlowMatchingPath
from vdmini_diffusers.families.hunyuan_video import HUNYUAN_VIDEO, token_grid


TAPS = ("transformer_blocks.1", "single_transformer_blocks.2")


def generators(count: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.fixture(scope="module")
def transformer():
    return tiny_hunyuan_transformer().requires_grad_(False)


@pytest.fixture(scope="module")
def task():
    return FlowMatchingTask(HUNYUAN_VIDEO)


def stock_velocity(transformer, inputs, batch, mask, guidance=1000.0):
    """The stock transformer on whole, padded prompts."""
    output = transformer(
        hidden_states=inputs.noisy_latents.movedim(1, 2),
        timestep=1000 * inputs.noise_levels,
        encoder_hidden_states=batch["prompt_embeds"],
        encoder_attention_mask=mask,
        pooled_projections=batch["pooled_prompt_embeds"],
        guidance=torch.full((2,), guidance),
    ).sample
    return output.movedim(2, 1)


def denoise(task, transformer, inputs):
    return task.denoise(transformer, inputs.noisy_latents, inputs.noise_levels, inputs.conditioning)


def test_it_is_fastvideo_s_loss(task, transformer):
    """Noise minus latents at a level of the scheduler, embedded guidance of 1, prompts masked."""
    batch = tiny_hunyuan_batch()
    inputs = task.prepare(batch, generators())
    denoised = denoise(task, transformer, inputs)
    sigmas = inputs.noise_levels.view(-1, 1, 1, 1, 1)
    assert torch.isin(inputs.noise_levels, FlowMatchEulerDiscreteScheduler().sigmas).all()
    noise = (inputs.noisy_latents - (1 - sigmas) * batch["latents"]) / sigmas
    velocity = stock_velocity(transformer, inputs, batch, batch["prompt_attention_mask"])
    expected = F.mse_loss(velocity, noise - batch["latents"])
    assert task.losses(denoised, inputs)["velocity"].item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(denoised.raw_output, velocity, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(denoised + 0, inputs.noisy_latents - sigmas * velocity, rtol=1e-4, atol=1e-5)
    assert type(denoised + 0) is type(denoised.detach()) is torch.Tensor


def test_its_variants_are_those_of_fastvideo_s_present_trainer(transformer):
    batch = tiny_hunyuan_batch()
    task = FlowMatchingTask(
        HUNYUAN_VIDEO,
        FlowMatchingPath(shift=7.0),
        embedded_guidance=6.016,
        text_mask=False,
        target="clean_latents",
    )
    inputs = task.prepare(batch, generators())
    assert torch.isin(
        (1e6 * inputs.noise_levels).round(), (1e6 * FlowMatchEulerDiscreteScheduler(shift=7).sigmas).round()
    ).all()
    velocity = stock_velocity(transformer, inputs, batch, torch.ones(2, 5), guidance=6016.0)
    clean = inputs.noisy_latents - inputs.noise_levels.view(-1, 1, 1, 1, 1) * velocity
    loss = task.losses(denoise(task, transformer, inputs), inputs)["clean_latents"]
    assert loss.item() == pytest.approx(F.mse_loss(clean, batch["latents"]).item(), rel=1e-4)


def test_gradients_of_task_and_critic_are_measured_at_the_raw_output(task, transformer):
    inputs = task.prepare(tiny_hunyuan_batch(), generators())
    student = tiny_hunyuan_transformer()
    denoised = denoise(task, student, inputs)
    loss = task.losses(denoised, inputs)["velocity"]
    expected = 2 * (denoised.raw_output - inputs.velocity) / inputs.velocity.numel()
    torch.testing.assert_close(gradient_at(loss, denoised), expected, rtol=1e-4, atol=1e-9)
    sigmas = inputs.noise_levels.view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(gradient_at(denoised.sum(), denoised), (-sigmas).expand_as(denoised).contiguous())


def test_at_the_least_noise_the_loss_is_exact_where_clean_latents_would_lose_it(task, transformer):
    """In half precision, latents that are nearly clean hold next to nothing of the velocity."""
    inputs = task.prepare(tiny_hunyuan_batch(), generators())
    inputs = replace(inputs, noisy_latents=inputs.clean_latents, noise_levels=torch.full((2,), 1e-3))
    denoised = denoise(task, transformer, inputs)
    batch = tiny_hunyuan_batch()
    velocity = stock_velocity(transformer, inputs, batch, batch["prompt_attention_mask"])
    torch.testing.assert_close(denoised.raw_output, velocity, rtol=1e-4, atol=1e-5)
    recovered = (inputs.clean_latents - denoised.half().float()) / 1e-3
    assert (recovered - velocity).abs().max() > 0.1


@pytest.mark.parametrize("checkpointed", [False, True])
def test_padded_text_has_no_part_in_icd(task, transformer, checkpointed):
    """Whatever stands in the padding; with gradients through checkpointed blocks as well."""
    names = ("transformer_blocks.0", "transformer_blocks.0[1]", "single_transformer_blocks.1[1]")
    student = tiny_hunyuan_transformer().train()
    randomise(student, seed=9)
    if checkpointed:
        student.enable_gradient_checkpointing()
    losses, features = [], []
    for padding in (0.0, 100.0):
        batch = tiny_hunyuan_batch()
        batch["prompt_embeds"][0, 3:] = padding  # masked
        inputs = task.prepare(batch, generators())
        with FeatureTaps(student, names) as of_student:
            denoise(task, student, inputs)
        with torch.no_grad(), FeatureTaps(transformer, names) as of_teacher:
            denoise(task, transformer, inputs)
        losses.append(icd_loss(of_student, of_teacher, [(name, name) for name in names], normalize=True))
        features.append(of_teacher)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    text = features[0]["transformer_blocks.0[1]"]
    assert (text[0, 3:] == 0).all() and (text[0, :3] != 0).all() and (text[1] != 0).all()
    losses[0].backward()
    assert student.transformer_blocks[0].attn.add_q_proj.weight.grad.abs().sum() > 0


def test_critics_see_tokens_of_a_frozen_transformer_in_their_grid(task, transformer):
    features = CriticFeatures(task, transformer, TAPS, token_grid)
    given = samples(task)
    noise = draw_instance_noise(features, given)
    with torch.no_grad(), FeatureTaps(transformer, TAPS) as tokens:
        task.denoise(
            transformer, task.add_noise(given.fake, noise.noise, noise.levels), noise.levels, given.inputs.conditioning
        )
    with torch.no_grad(), FeatureTaps(transformer, ["single_transformer_blocks.3"]) as beyond:
        found = features(given.fake, noise, given.inputs)
    assert not beyond  # the rest of the transformer does not run
    for name in TAPS:
        assert found[name].shape == (2, 2, 2, 3, 20)  # frames, and half of height and width
        assert torch.equal(found[name].flatten(1, 3), tokens[name])


def test_critics_gradients_are_the_same_through_blocks_that_are_computed_again(task):
    """Twice, as the norms of gradients are taken before the backward pass."""
    backbone, given = tiny_hunyuan_transformer().requires_grad_(False), samples(task)
    features = CriticFeatures(task, backbone, TAPS, token_grid)
    noise = draw_instance_noise(features, given)
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            backbone.enable_gradient_checkpointing()
        fake = given.fake.clone().requires_grad_()
        with FeatureTaps(backbone, ["proj_out"]) as end:
            total = sum(feature.square().sum() for feature in features(fake, noise, given.inputs).values())
        assert bool(end) == checkpointed  # what is computed again runs to its end
        found += [torch.autograd.grad(total, fake, retain_graph=True)[0] for _ in range(2)]
    assert all(torch.equal(gradient, found[0]) for gradient in found) and found[0].abs().sum() > 0


@pytest.mark.parametrize("light", [False, True])
def test_a_critic_trains_the_student_through_the_transformer_or_on_latents(task, transformer, light):
    features = CriticFeatures(task, None if light else transformer, TAPS, token_grid)
    channels = {"latents": 4} if light else dict.fromkeys(TAPS, 20)
    heads = randomise(DiscriminatorHeads(channels, condition_dim=8, width=32))
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3)
    critic = Critic("mca", heads, optimizer, CriticSettings(real={"teacher": 0}, adaptive_weight=True))
    side = Adversary([critic], features, 1, nullcontext)
    inputs = task.prepare(tiny_hunyuan_batch(), generators())
    student = randomise(tiny_hunyuan_transformer(), 3)
    denoised = denoise(task, student, inputs)
    teacher = denoise(task, transformer, inputs)
    given = Samples(denoised, {"teacher": teacher}, inputs, generators())
    task_loss = task.losses(denoised, inputs)["velocity"]
    loss = side.losses_for_student(0, given, task_loss)["mca"]
    norms = [gradient_at(each, denoised).norm().item() for each in (task_loss, loss)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    loss.backward()
    assert student.proj_out.weight.grad.abs().sum() > 0
    losses, ranks = side.train_heads(0, given)
    assert losses["mca_discriminator"] > 0 and "mca_gap" in ranks
    levels, condition = task.critic_condition(torch.tensor([0.5, 0.8]), inputs.conditioning)
    torch.testing.assert_close(levels, 0.25 * torch.tensor([1.0, 4.0]).log())
    assert condition is inputs.conditioning["pooled_prompt_embeds"]


def test_noisy_latents_for_the_light_critic_have_unit_variance(task):
    latents, noise = (torch.randn(1, 2, 4, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(2))
    for level in (0.1, 0.5, 0.9):
        levels = torch.tensor([level])
        assert task.scale(task.add_noise(latents, noise, levels), levels).std().item() == pytest.approx(1, abs=0.03)


def samples(task) -> Samples:
    inputs = task.prepare(tiny_hunyuan_batch(), generators())
    return Samples(inputs.noisy_latents, {}, inputs, generators())
