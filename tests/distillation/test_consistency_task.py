"""Consistency distillation against a reference that is written out here, on tiny U-Nets with random weights."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from tiny_text_to_video import MODELSCOPE, TWO_STAGES, VIDEOCRAFTER2, tiny_t2v_teacher

from vdmini_diffusers.distillation.batches import sample_generators
from vdmini_diffusers.distillation.critics import CriticFeatures, InstanceNoise
from vdmini_diffusers.distillation.noise import choose, instance_noise_probabilities
from vdmini_diffusers.distillation.ode_teacher import DiffusionSchedule, ODETeacher
from vdmini_diffusers.distillation.tasks.consistency import ConsistencyTask
from vdmini_diffusers.families.videocrafter import VIDEOCRAFTER


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def scheduler(prediction_type: str = "epsilon") -> LCMScheduler:
    return LCMScheduler(**BETAS, original_inference_steps=200, prediction_type=prediction_type)


def batch(count: int = 2, seed: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "latents": draw(count, 3, 4, 8, 8),
        "prompt_embeds": draw(count, 5, 16),
        "pooled_prompt_embeds": draw(count, 16),
        "fps": torch.tensor([8, 24])[:count],
    }


def sinusoid(values: torch.Tensor, width: int) -> torch.Tensor:
    """Sine, then cosine, of a thousand times the value."""
    half = width // 2
    frequencies = torch.tensor([math.exp(-math.log(10000) * k / (half - 1)) for k in range(half)])
    angles = 1000 * values[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


UNCOND = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(9))


def make_task(prediction_type="epsilon", base=VIDEOCRAFTER2, base_prediction_type=None, **settings):
    """A student like T2V-Turbo-v2, and the ODE of another network."""
    student = tiny_t2v_teacher(**TWO_STAGES).requires_grad_(True)
    unet = tiny_t2v_teacher(**TWO_STAGES, **base).requires_grad_(False)
    embeds = UNCOND if unet.config.time_cond_proj_dim is None else None
    ode_teacher = ODETeacher(
        VIDEOCRAFTER.predict, unet, DiffusionSchedule.of(scheduler(base_prediction_type or prediction_type)), embeds
    )
    return ConsistencyTask(
        VIDEOCRAFTER, student, DiffusionSchedule.of(scheduler(prediction_type)), ode_teacher, **settings
    )


def x_0(kind, output, z, ab):
    """One sample's, from what the network says."""
    if kind == "epsilon":
        return (z - (1 - ab) ** 0.5 * output) / ab**0.5
    return ab**0.5 * z - (1 - ab) ** 0.5 * output if kind == "v_prediction" else output


def epsilon(kind, output, z, ab):
    if kind == "epsilon":
        return output
    return (
        ab**0.5 * output + (1 - ab) ** 0.5 * z if kind == "v_prediction" else (z - ab**0.5 * output) / (1 - ab) ** 0.5
    )


def reference_target(task, inputs, i, kind, base_kind):
    """The target of sample `i`, alone, in the layout of the U-Net: `(1, channels, frames, h, w)`."""
    alphas = scheduler().alphas_cumprod.tolist()
    t = int(inputs.noise_levels[i])
    end = max(t - 1000 // task.num_ddim_steps, 0)
    w = float(inputs.conditioning["guidance"][i])
    motion = inputs.conditioning["motion_guidance"][i : i + 1]
    text = inputs.conditioning["prompt_embeds"][i : i + 1]
    fps = inputs.conditioning["fps"][i : i + 1]
    z = inputs.noisy_latents[i : i + 1].transpose(1, 2)

    unet = task.ode_teacher.unet
    conditions = {"fps": fps} if unet.config.get("fps_cond") else {}
    if unet.config.time_cond_proj_dim:
        conditions["timestep_cond"] = sinusoid(torch.tensor([w]), unet.config.time_cond_proj_dim)
        conditions["motion_cond"] = sinusoid(motion, unet.config.motion_cond_proj_dim)
    x, eps = (read(base_kind, unet(z, t, text, **conditions).sample, z, alphas[t]) for read in (x_0, epsilon))
    if not unet.config.time_cond_proj_dim:
        x_without, eps_without = (
            read(base_kind, unet(z, t, UNCOND, **conditions).sample, z, alphas[t]) for read in (x_0, epsilon)
        )
        x, eps = x + w * (x - x_without), eps + w * (eps - eps_without)
    if inputs.motion_score is not None:
        score = inputs.motion_score[i : i + 1].transpose(1, 2)
        eps = eps - float(motion) * (1 - alphas[t] ** 0.5) ** 0.5 * score
    z_end = alphas[end] ** 0.5 * x + (1 - alphas[end]) ** 0.5 * eps

    student = task.student
    output = student(
        z_end,
        end,
        text,
        timestep_cond=sinusoid(torch.tensor([w]), student.config.time_cond_proj_dim),
        motion_cond=sinusoid(motion, student.config.motion_cond_proj_dim),
        fps=fps,
    ).sample
    scaled = 10 * end
    c_skip, c_out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5
    return (c_skip * z_end + c_out * x_0(kind, output, z_end, alphas[end])).transpose(1, 2)


@pytest.mark.parametrize("base", [VIDEOCRAFTER2, MODELSCOPE, {}], ids=["videocrafter2", "modelscope", "t2v-turbo-v2"])
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_target_is_that_of_the_reference(kind, base):
    base_kind = "v_prediction" if kind == "epsilon" else kind
    task = make_task(kind, base, base_kind)
    inputs = task.prepare(batch(), sample_generators(5, 0, 0, 2))
    inputs = replace(inputs, noise_levels=torch.tensor([4, 999]))  # both ends of the grid
    target = task.target(inputs)
    with torch.no_grad():
        expected = torch.cat([reference_target(task, inputs, i, kind, base_kind) for i in range(2)])
    scale = expected.std()
    torch.testing.assert_close(target / scale, expected / scale, rtol=1e-4, atol=1e-4)
    assert not target.requires_grad


def test_the_loss_is_the_pseudo_huber_distance_of_student_and_target():
    task = make_task()
    inputs = task.prepare(batch(), sample_generators(5, 0, 0, 2))
    denoised = task.denoise(task.student, inputs.noisy_latents, inputs.noise_levels, inputs.conditioning)
    loss = task.losses(denoised, inputs)["consistency"]
    difference = (denoised - task.target(inputs)).double()
    assert loss.item() == pytest.approx(((difference**2 + 0.001**2).sqrt() - 0.001).mean().item(), rel=1e-5)


def test_only_the_student_takes_a_gradient_and_none_through_the_target():
    task = make_task()
    inputs = task.prepare(batch(), sample_generators(5, 0, 0, 2))
    denoised = task.denoise(task.student, inputs.noisy_latents, inputs.noise_levels, inputs.conditioning)
    task.losses(denoised, inputs)["consistency"].backward()
    gradients = [parameter.grad for parameter in task.student.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    assert all(parameter.grad is None for parameter in task.ode_teacher.unet.parameters())

    frozen = copy.deepcopy(task.student).requires_grad_(False)  # as target: the same values, and surely no gradient
    other = copy.copy(task)
    other.student = frozen
    task.student.zero_grad()
    denoised = task.denoise(task.student, inputs.noisy_latents, inputs.noise_levels, inputs.conditioning)
    other.losses(denoised, inputs)["consistency"].backward()
    for gradient, parameter in zip(gradients, task.student.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_a_student_at_the_end_of_the_trajectory_has_no_loss():
    """A network whose x_0 is the same from everywhere on the ODE: all differences left are those of the boundary."""

    class Perfect(torch.nn.Module):
        config = {"time_cond_proj_dim": 12}

        def __init__(self, video):
            super().__init__()
            self.video = torch.nn.Parameter(video.transpose(1, 2), requires_grad=False)

        def forward(self, sample, timestep, text, return_dict, **conditions):
            return (self.video,)

    values = batch()
    schedule = DiffusionSchedule.of(scheduler("sample"))
    perfect = Perfect(values["latents"])
    task = ConsistencyTask(VIDEOCRAFTER, perfect, schedule, ODETeacher(VIDEOCRAFTER.predict, perfect, schedule))
    inputs = task.prepare(values, sample_generators(5, 0, 0, 2))
    denoised = task.denoise(perfect, inputs.noisy_latents, inputs.noise_levels, inputs.conditioning)
    assert task.losses(denoised, inputs)["consistency"].item() < 1e-4
    perfect.video.data += 1
    moved = task.denoise(perfect, inputs.noisy_latents, inputs.noise_levels, inputs.conditioning)
    perfect.video.data -= 1
    assert task.losses(moved, inputs)["consistency"].item() == pytest.approx(1, abs=0.01)


def test_draws_are_on_the_grid_within_the_range_of_w_and_each_sample_s_own():
    task = make_task()
    both = task.prepare(batch(), sample_generators(5, 0, 0, 2))
    second = {name: tensor[1:] for name, tensor in batch().items()}
    alone = task.prepare(second, sample_generators(5, 0, 1, 1))
    assert torch.equal(both.noisy_latents[1:], alone.noisy_latents)
    assert torch.equal(both.conditioning["guidance"][1:], alone.conditioning["guidance"])
    many = [task.prepare(batch(1), sample_generators(5, step, 0, 1)) for step in range(400)]
    timesteps = {int(inputs.noise_levels) for inputs in many}
    weights = [float(inputs.conditioning["guidance"]) for inputs in many]
    assert timesteps <= set(range(4, 1000, 5)) and len(timesteps) > 150
    assert 5 <= min(weights) < 5.5 and 14.5 < max(weights) <= 15
    assert not any(inputs.conditioning["motion_guidance"].any() for inputs in many)


def test_a_precomputed_motion_score_guides_the_samples_that_have_one_in_the_noisy_half():
    task = make_task(motion_gs=0.05, motion_percentage=0.5, num_ddim_steps=100)
    values = batch(2) | {
        "motion_score": torch.randn(2, 3, 4, 8, 8),
        "noisy_latents": torch.randn(2, 3, 4, 8, 8),
        "timestep_index": torch.tensor([50, 50]),
        "use_motion_guide": torch.tensor([True, False]),
    }
    inputs = task.prepare(values, sample_generators(5, 0, 0, 2))
    drawn = task.prepare(batch(2), sample_generators(5, 0, 0, 2))
    assert torch.equal(inputs.noisy_latents[0], values["noisy_latents"][0])
    assert torch.equal(inputs.noisy_latents[1], drawn.noisy_latents[1])
    assert inputs.noise_levels.tolist() == [509, int(drawn.noise_levels[1])]
    torch.testing.assert_close(inputs.conditioning["motion_guidance"], torch.tensor([0.05, 0]))
    with torch.no_grad():
        expected = torch.cat([reference_target(task, inputs, i, "epsilon", "epsilon") for i in range(2)])
    scale = expected.std()
    torch.testing.assert_close(task.target(inputs) / scale, expected / scale, rtol=1e-4, atol=1e-4)
    values["timestep_index"] = torch.tensor([49, 49])
    assert not task.prepare(values, sample_generators(5, 0, 0, 2)).conditioning["motion_guidance"].any()


def test_a_teacher_that_embeds_motion_guidance_gets_it_in_the_noisy_half():
    task = make_task(base={})
    inputs = [task.prepare(batch(1), sample_generators(5, step, 0, 1)) for step in range(50)]
    for one in inputs:
        strength = 0.05 if one.noise_levels.item() >= 504 else 0
        assert one.conditioning["motion_guidance"].item() == pytest.approx(strength)


def test_denoising_at_timestep_0_is_the_identity():
    task = make_task()
    inputs = task.prepare(batch(), sample_generators(5, 0, 0, 2))
    zero = torch.zeros(2, dtype=torch.long)
    given = inputs.noisy_latents
    torch.testing.assert_close(task.denoise(task.student, given, zero, inputs.conditioning), given)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_consistency_function_is_that_of_the_scheduler_that_samples_with_it(kind):
    lcm = LCMScheduler.from_config(scheduler(kind).config, timestep_scaling=2.0)
    lcm.set_timesteps(timesteps=[999, 504, 4])
    schedule = DiffusionSchedule.of(lcm)
    output, noisy_latents = torch.randn(2, 1, 3, 4, 8, 8)
    for timestep in lcm.timesteps:
        _, expected = lcm.step(output, timestep, noisy_latents, return_dict=False)
        clean_latents, _ = schedule.read(output, noisy_latents, timestep[None])
        found = schedule.at_boundary(clean_latents, noisy_latents, timestep[None])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_critics_get_ddpm_noise_as_strong_as_that_of_eq_5():
    task = make_task()
    generators = sample_generators(5, 0, 0, 500)
    timesteps = task.instance_noise_levels(generators)
    sigmas = choose(*instance_noise_probabilities(), sample_generators(5, 0, 0, 500))
    alphas = scheduler().alphas_cumprod[timesteps]
    reachable = (sigmas > 0.03) & (sigmas < 14)
    assert reachable.sum() > 450
    noise = ((1 - alphas) / alphas).sqrt()
    torch.testing.assert_close(noise[reachable], sigmas[reachable], rtol=0.02, atol=0.01)  # the finest there is
    values = task.add_noise(torch.ones(500, 1), 2 * torch.ones(500, 1), timesteps)
    torch.testing.assert_close(values[:, 0], alphas.sqrt() + 2 * (1 - alphas).sqrt())
    noisy = task.scale(task.add_noise(*torch.randn(2, 500, 200), timesteps), timesteps)
    torch.testing.assert_close(noisy.std(dim=1), torch.ones(500), rtol=0, atol=0.25)  # without a backbone
    levels, text = task.critic_condition(timesteps, {"pooled_prompt_embeds": torch.ones(500, 16)})
    torch.testing.assert_close(levels, 0.25 * noise.log())
    assert text.shape == (500, 16)


def test_critics_see_the_four_down_blocks_as_frames():
    task = make_task()
    teacher = tiny_t2v_teacher().requires_grad_(False)
    inputs = task.prepare(batch(), sample_generators(5, 0, 0, 2))
    noise = InstanceNoise(torch.randn_like(inputs.clean_latents), torch.tensor([100, 500]))
    features = CriticFeatures(task, teacher)(inputs.clean_latents, noise, inputs)
    shapes = [tuple(feature.shape) for feature in features.values()]
    assert shapes == [(6, 16, 4, 4), (6, 32, 2, 2), (6, 64, 1, 1), (6, 64, 1, 1)]


def test_taps_before_the_downsampler_see_what_it_takes_at_twice_the_resolution():
    task = make_task()
    backbone = tiny_t2v_teacher().requires_grad_(False)
    inputs = task.prepare(batch(), sample_generators(5, 0, 0, 2))
    noise = InstanceNoise(torch.randn_like(inputs.clean_latents), torch.tensor([100, 500]))
    taken = []
    for block in backbone.down_blocks[:3]:
        block.downsamplers[0].register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    features = CriticFeatures(task, backbone, VIDEOCRAFTER.critic_taps["before_downsampling"])
    *before, last = features(inputs.clean_latents, noise, inputs).values()
    assert [tuple(f.shape) for f in (*before, last)] == [(6, 16, 8, 8), (6, 32, 4, 4), (6, 64, 2, 2), (6, 64, 1, 1)]
    assert all(torch.equal(tapped, given) for tapped, given in zip(before, taken, strict=True))
    assert torch.equal(last, CriticFeatures(task, backbone)(inputs.clean_latents, noise, inputs)["down_blocks.3"])


def with_motion_scores(task, index):
    """Two samples at that point of the grid, of which the first is guided by motion."""
    values = batch(2) | {
        "motion_score": torch.ones(2, 3, 4, 8, 8),
        "noisy_latents": torch.ones(2, 3, 4, 8, 8),
        "timestep_index": torch.tensor([index, index]),
        "use_motion_guide": torch.tensor([True, False]),
    }
    return task.prepare(values, sample_generators(5, 0, 0, 2))


@pytest.mark.parametrize(("index", "own"), [(0, 0.0), (99, 0.05)], ids=["inputs at the clean end", "the noisy end"])
def test_the_critics_backbone_is_told_the_motion_guidance_of_the_critics_noise_level(index, own):
    task = make_task(motion_gs=0.05, motion_percentage=0.25, num_ddim_steps=100)
    inputs = with_motion_scores(task, index)
    assert inputs.conditioning["motion_guidance"].tolist() == pytest.approx([own, 0])
    for level, strength in ((0, 0.0), (758, 0.0), (759, 0.05), (999, 0.05)):
        found = task.backbone_conditioning(torch.tensor([level, level]), inputs)
        torch.testing.assert_close(found["motion_guidance"], torch.tensor([strength, 0.0]))
        assert found.keys() == inputs.conditioning.keys()
        assert all(found[name] is inputs.conditioning[name] for name in found if name != "motion_guidance")


def test_each_sample_has_the_motion_guidance_of_its_own_critics_noise_level():
    task = make_task(base={})  # which guides all samples
    inputs = task.prepare(batch(), sample_generators(5, 0, 0, 2))
    found = [task.backbone_conditioning(torch.tensor(levels), inputs) for levels in ([503, 504], [504, 503])]
    expected = torch.tensor([[0.0, 0.05], [0.05, 0.0]])
    torch.testing.assert_close(torch.stack([each["motion_guidance"] for each in found]), expected)


def test_critics_features_depend_on_motion_guidance_and_not_on_the_noise_level_of_the_inputs():
    task = make_task(num_ddim_steps=100)
    features = CriticFeatures(task, tiny_t2v_teacher().requires_grad_(False))
    clean, noisy = (with_motion_scores(task, index) for index in (0, 99))
    unguided = replace(noisy, is_motion_guided=torch.tensor([False, False]))
    for level, is_told in ((400, False), (600, True)):
        noise = InstanceNoise(torch.ones_like(clean.clean_latents), torch.tensor([level, level]))
        seen = [features(clean.clean_latents, noise, given)["down_blocks.3"] for given in (clean, noisy, unguided)]
        assert torch.equal(seen[0], seen[1])
        changed = (seen[1] != seen[2]).unflatten(0, (2, 3)).flatten(1).any(dim=1)
        assert changed.tolist() == [is_told, False]


def test_a_network_in_half_precision_gets_guidance_exactly_and_the_arithmetic_about_it_stays_in_float32():
    task = make_task(base={})
    inputs = task.prepare(batch(), sample_generators(5, 0, 0, 2))
    guidance, z = torch.tensor([7.53, 12.01]), inputs.noisy_latents.transpose(1, 2)
    conditioning = {**inputs.conditioning, "guidance": guidance, "motion_guidance": torch.tensor([0.05, 0.0])}
    last = torch.full((2,), 999)
    student = task.student.bfloat16()
    found = task.denoise(student, inputs.noisy_latents, last, conditioning)
    epsilons = student(
        z.bfloat16(),
        last,
        conditioning["prompt_embeds"].bfloat16(),
        timestep_cond=sinusoid(guidance, 12).bfloat16(),
        motion_cond=sinusoid(conditioning["motion_guidance"], 10).bfloat16(),
        fps=conditioning["fps"],
    ).sample.float()
    expected = x_0("epsilon", epsilons, z, scheduler().alphas_cumprod[999]).transpose(1, 2)
    assert found.dtype == torch.float32
    assert (found - expected).std() < 1e-3 * expected.std()


def test_an_ode_teacher_of_other_noise_is_refused():
    unet = tiny_t2v_teacher(**VIDEOCRAFTER2)
    other = DiffusionSchedule.of(DDIMScheduler(beta_schedule="linear"))
    with pytest.raises(ValueError, match="other noise levels"):
        ConsistencyTask(
            VIDEOCRAFTER,
            unet,
            DiffusionSchedule.of(scheduler()),
            ODETeacher(VIDEOCRAFTER.predict, unet, other, UNCOND),
        )


def test_an_ode_teacher_without_guidance_embedding_needs_the_empty_prompt():
    with pytest.raises(ValueError, match="needs `uncond_prompt_embeds`"):
        ODETeacher(VIDEOCRAFTER.predict, tiny_t2v_teacher(**VIDEOCRAFTER2), DiffusionSchedule.of(scheduler()))
