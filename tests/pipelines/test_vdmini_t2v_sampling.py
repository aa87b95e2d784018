"""What `VDMiniT2VPipeline` computes: the chains of T2V-Turbo and of DDIM, written out again here."""

import inspect
import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    UNet3DConditionModel,
)
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.pipelines.deprecated.text_to_video_synthesis import TextToVideoSDPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny import randomise
from tiny_text_to_video import (
    MODELSCOPE,
    STOCK_CONFIG,
    T2V_TURBO,
    T2V_TURBO_V2,
    VIDEOCRAFTER2,
    tiny_t2v_components,
    tiny_t2v_pipeline,
    tiny_t2v_student,
    tiny_t2v_teacher,
)

from vdmini_diffusers import VDMiniAutoencoderKL, VDMiniT2VPipeline
from vdmini_diffusers.pipelines.pipeline_vdmini_t2v import consistency_timesteps, guidance_embedding


PROMPT = "A corgi surfs!"
SMALL = {"num_frames": 2, "num_inference_steps": 2, "output_type": "latent"}
# The squares of the signal's share of the noised latents: 0.00085 to 0.012, linear in the square root.
ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
TURBO_STEPS = {
    4: [999, 749, 499, 249],
    8: [999, 874, 749, 624, 499, 374, 249, 124],
    16: [999, 939, 879, 819, 759, 699, 639, 579, 519, 459, 399, 339, 279, 219, 159, 99],
}


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def turbo():
    return tiny_t2v_pipeline()


@pytest.fixture(scope="module")
def modelscope():
    return tiny_t2v_pipeline(tiny_t2v_student(**MODELSCOPE))


class Calls(list):
    """What the U-Net of a pipeline was called with, call by call."""

    def __init__(self, pipe):
        self.handle = pipe.unet.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs):
        self.append({"sample": args[0], "timestep": int(args[1]), **kwargs})

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.handle.remove()


def stop_after(last: int):
    """A callback that ends the chain after step `last`."""

    def callback(pipe, step, timestep, tensors):
        pipe._interrupt = step == last
        return {}

    return callback


def embedding(value: float, size: int) -> torch.Tensor:
    """A guidance weight's embedding, in double precision: 1000 times it, at falling frequencies, sines first."""
    phases = 1000 * value * np.exp(-math.log(10000) * np.arange(size // 2) / (size // 2 - 1))
    return torch.tensor(np.concatenate([np.sin(phases), np.cos(phases)]))[None]


@torch.no_grad()
def turbo_chain(pipe, num_steps, w, motion, percentage, fps, v_prediction, dtype):
    """T2V-Turbo's sampling: noise, one call a step, the boundary condition, noise again."""
    generator, unet = seeded(), pipe.unet
    context = pipe.text_encoder(pipe.tokenize([PROMPT])).last_hidden_state.to(unet.dtype)
    conditions = {"timestep_cond": embedding(w, unet.config.time_cond_proj_dim).to(unet.dtype), "fps": fps}
    x = torch.randn(1, 4, 3, 8, 8, generator=generator, dtype=dtype)
    steps = TURBO_STEPS[num_steps]
    for i, t in enumerate(steps):
        if unet.config.motion_cond_proj_dim is not None:
            strength = motion if t >= 1000 * (1 - percentage) else 0.0
            conditions["motion_cond"] = embedding(strength, unet.config.motion_cond_proj_dim).to(unet.dtype)
        output = unet(x.to(unet.dtype), t, context, **conditions).sample.to(dtype)
        signal, noise = math.sqrt(ALPHAS_CUMPROD[t]), math.sqrt(1 - ALPHAS_CUMPROD[t])
        x0 = signal * x - noise * output if v_prediction else (x - noise * output) / signal
        c_skip, c_out = 0.25 / ((10 * t) ** 2 + 0.25), 10 * t / math.sqrt((10 * t) ** 2 + 0.25)
        x = c_out * x0 + c_skip * x
        if i < len(steps) - 1:
            following = ALPHAS_CUMPROD[steps[i + 1]]
            fresh = torch.randn(x.shape, generator=generator, dtype=dtype)
            x = math.sqrt(following) * x + math.sqrt(1 - following) * fresh
    return x


@pytest.mark.parametrize(
    ("kind", "num_steps", "prediction_type"),
    [
        (T2V_TURBO_V2, 4, "epsilon"),
        (T2V_TURBO_V2, 8, "v_prediction"),
        (T2V_TURBO_V2, 16, "epsilon"),
        (T2V_TURBO, 4, "epsilon"),
    ],
    ids=["v2-4", "v2-8-v_prediction", "v2-16", "v1-4"],
)
def test_the_whole_chain_is_that_of_t2v_turbo(kind, num_steps, prediction_type):
    pipe = tiny_t2v_pipeline(tiny_t2v_student(**kind))
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, prediction_type=prediction_type)
    chosen = {"motion_guidance_scale": 0.1, "motion_guidance_percentage": 0.3} if kind is T2V_TURBO_V2 else {}
    found = pipe(
        PROMPT,
        num_frames=3,
        num_inference_steps=num_steps,
        guidance_scale=6.0,
        fps=12,
        generator=seeded(),
        output_type="latent",
        **chosen,
    ).frames
    expected = turbo_chain(pipe, num_steps, 6.0, 0.1, 0.3, 12, prediction_type == "v_prediction", torch.float32)
    assert found.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.std()))


def test_with_weights_in_bfloat16_the_steps_are_still_of_float32():
    pipe = tiny_t2v_pipeline().to(torch.bfloat16)
    arguments = {"num_frames": 3, "num_inference_steps": 4, "generator": seeded(), "output_type": "latent"}
    found = pipe(PROMPT, **arguments).frames
    assert found.dtype == torch.float32
    expected = turbo_chain(pipe, 4, 7.5, 0.05, 0.5, 8, False, torch.float32)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(expected.std()))
    coarse = turbo_chain(pipe, 4, 7.5, 0.05, 0.5, 8, False, torch.bfloat16).float()
    assert (coarse - expected).abs().max() > 1e-2 * expected.std()  # what the line above would have noticed


@torch.no_grad()
def guided_ddim_chain(pipe, steps, scale, context, negative_context, conditions, signal_scales):
    """Two calls a step."""
    x = torch.randn(1, 4, 3, 8, 8, generator=seeded())
    for t in steps:
        output, away = (pipe.unet(x, t, embeds, **conditions).sample for embeds in (context, negative_context))
        output = away + scale * (output - away)
        now, then = ALPHAS_CUMPROD[t], ALPHAS_CUMPROD[t - 250] if t >= 250 else 1.0
        x0 = (x - math.sqrt(1 - now) * output) / math.sqrt(now)
        x0 = x0 * signal_scales[max(t - 250, 0)] / signal_scales[t]
        x = math.sqrt(then) * x0 + math.sqrt(1 - then) * output
    return x


@pytest.mark.parametrize(
    ("kind", "negative"), [(VIDEOCRAFTER2, None), (MODELSCOPE, "blurred")], ids=["VideoCrafter2", "ModelScope"]
)
def test_without_embedded_guidance_it_is_ddim_guided_at_run_time(kind, negative):
    pipe = tiny_t2v_pipeline(tiny_t2v_student(**kind))
    pipe.scheduler.register_to_config(set_alpha_to_one=True)
    found = pipe(
        PROMPT,
        num_frames=3,
        num_inference_steps=4,
        guidance_scale=5.0,
        negative_prompt=negative,
        generator=seeded(),
        output_type="latent",
    ).frames
    with torch.no_grad():
        context = [pipe.text_encoder(pipe.tokenize([text])).last_hidden_state for text in (PROMPT, negative or "")]
    conditions = {"fps": 8} if kind is VIDEOCRAFTER2 else {}
    scales = np.append(np.linspace(1.0, 0.7, 400), np.full(600, 0.7)) if kind is VIDEOCRAFTER2 else np.ones(1000)
    expected = guided_ddim_chain(pipe, [751, 501, 251, 1], 5.0, *context, conditions, scales)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.std()))


@pytest.mark.parametrize(
    ("scheduler", "num_frames", "arguments"),
    [
        (DDIMScheduler, 3, {"guidance_scale": 1.0}),
        (DDIMScheduler, 3, {}),
        (DDIMScheduler, 1, {"eta": 1.0}),  # of more frames, the stock pipeline draws the noise in another order
        (EulerDiscreteScheduler, 3, {}),  # scales the noise at the start and what the U-Net gets
    ],
    ids=["not guided", "guided", "eta", "Euler"],
)
def test_a_stock_unet_gives_bit_by_bit_what_the_stock_pipeline_gives(scheduler, num_frames, arguments):
    components = tiny_t2v_components(randomise(UNet3DConditionModel(**STOCK_CONFIG)).eval())
    components["scheduler"] = scheduler.from_config(components["scheduler"].config)
    embeds = dict(zip(("prompt_embeds", "negative_prompt_embeds"), torch.randn(2, 1, 77, 16), strict=True))
    arguments = {"num_frames": num_frames, "num_inference_steps": 3, "output_type": "np", **embeds, **arguments}
    stock, ours = (
        cls(**components)(**arguments, generator=seeded()).frames for cls in (TextToVideoSDPipeline, VDMiniT2VPipeline)
    )
    assert ours.shape == stock.shape == (1, num_frames, 16, 16, 3)
    assert np.array_equal(ours, stock)


def test_the_timesteps_are_t2v_turbos_where_diffusers_rounds_another_way():
    for num_steps, expected in TURBO_STEPS.items():
        assert consistency_timesteps(num_steps) == expected
    scheduler = LCMScheduler(original_inference_steps=200)
    for num_steps in (1, 2, 4, 8, 20, 200):
        scheduler.set_timesteps(num_steps)
        assert consistency_timesteps(num_steps) == scheduler.timesteps.tolist()
    scheduler.set_timesteps(16)
    assert consistency_timesteps(16) != scheduler.timesteps.tolist()
    assert consistency_timesteps(3, original_inference_steps=50) == [999, 679, 359]


@pytest.mark.parametrize("grid", [(0, 200, 1000), (201, 200, 1000), (4, 1001, 1000)])
def test_steps_that_no_grid_has_are_refused(grid):
    with pytest.raises(ValueError, match="cannot be taken from a grid"):
        consistency_timesteps(*grid)


def test_the_embedding_of_guidance_is_computed_in_float32_and_of_the_weight_itself():
    weights = torch.tensor([7.5, 0.0, 0.05])
    expected = torch.cat([embedding(float(w), 256) for w in weights])
    found = guidance_embedding(weights, 256)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-3)  # phases of 7500 in float32
    assert torch.equal(found[1], torch.cat([torch.zeros(128), torch.ones(128)]))
    assert torch.equal(guidance_embedding(weights.bfloat16(), 256, torch.bfloat16)[:2], found[:2].bfloat16())
    lcm = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, weights, embedding_dim=256)
    torch.testing.assert_close(found, lcm, rtol=0, atol=1e-3)


def test_defaults_are_t2v_turbos_with_embedded_guidance_and_the_stock_pipelines_without(turbo, modelscope):
    with Calls(turbo) as calls:
        turbo(PROMPT, output_type="latent")
    assert [call["timestep"] for call in calls] == TURBO_STEPS[16]
    assert {call["fps"] for call in calls} == {8}
    assert {tuple(call["sample"].shape) for call in calls} == {(1, 4, 16, 8, 8)}
    assert all(torch.equal(call["timestep_cond"], guidance_embedding(torch.tensor([7.5]), 12)) for call in calls)
    asked, zero = guidance_embedding(torch.tensor([0.05, 0.0]), 10).split(1)
    strengths = [[torch.equal(call["motion_cond"], x) for x in (asked, zero)] for call in calls]
    assert strengths == [[True, False]] * 9 + [[False, True]] * 7

    with Calls(modelscope) as calls:
        modelscope(PROMPT, num_frames=1, output_type="latent", callback_on_step_end=stop_after(1))
    assert modelscope.num_timesteps == 50
    assert [call["sample"].shape[0] for call in calls] == [2, 2]
    assert not {"fps", "timestep_cond", "motion_cond"} & set(calls[0])
    assert modelscope.guidance_scale == 9.0


@pytest.mark.parametrize(("percentage", "last"), [(0.0, None), (0.251, 749), (1.0, 249)])
def test_motion_guidance_ends_after_its_part_of_the_noise_levels(percentage, last, turbo):
    arguments = {"num_frames": 1, "num_inference_steps": 4, "motion_guidance_percentage": percentage}
    with Calls(turbo) as calls:
        turbo(PROMPT, motion_guidance_scale=0.2, output_type="latent", **arguments)
    strength = guidance_embedding(torch.tensor([0.2]), 10)
    guided = [call["timestep"] for call in calls if torch.equal(call["motion_cond"], strength)]
    assert guided == [t for t in TURBO_STEPS[4] if last is not None and t >= last]


def test_each_condition_changes_the_video(turbo):
    def video(**arguments):
        return turbo(PROMPT, generator=seeded(), **{**SMALL, **arguments}).frames

    first = video()
    assert torch.equal(first, video(fps=8, guidance_scale=7.5, motion_guidance_scale=0.05))
    for change in ({"fps": 16}, {"guidance_scale": 6.5}, {"motion_guidance_scale": 0.5}, {"timesteps": [999, 99]}):
        assert (video(**change) - first).abs().max() > 1e-3, change


def test_no_guidance_at_run_time_is_one_call_a_step(modelscope):
    with Calls(modelscope) as calls:
        modelscope(PROMPT, guidance_scale=1.0, **SMALL)
    assert [call["sample"].shape[0] for call in calls] == [1, 1]
    assert not modelscope.do_classifier_free_guidance


@pytest.mark.parametrize("kind", ["turbo", "modelscope"])
def test_videos_of_one_prompt_are_neighbours_each_with_its_generator(kind, request):
    pipe, prompts = request.getfixturevalue(kind), ["a corgi", "waves!"]
    together = pipe(prompts, num_videos_per_prompt=2, generator=[seeded(i) for i in range(4)], **SMALL).frames
    for i, prompt in enumerate([prompts[0], prompts[0], prompts[1], prompts[1]]):
        alone = pipe(prompt, generator=seeded(i), **SMALL).frames
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-3, atol=1e-3)


def test_latents_are_the_noise(turbo):
    noise = torch.randn(1, 4, 2, 8, 8, generator=seeded(5))
    arguments = {**SMALL, "num_inference_steps": 1}
    by_generator = turbo(PROMPT, generator=seeded(5), **arguments).frames
    assert torch.equal(turbo(PROMPT, latents=noise, **arguments).frames, by_generator)


def test_embeddings_do_what_the_prompts_do_that_they_were_made_of(turbo, modelscope):
    embeds = turbo.encode_prompt([PROMPT])[0]
    assert embeds.shape == (1, 77, 16)
    by_text = turbo(PROMPT, generator=seeded(), **SMALL).frames
    assert torch.equal(turbo(prompt_embeds=embeds, generator=seeded(), **SMALL).frames, by_text)

    positive, negative = modelscope.encode_prompt([PROMPT, "b"], "cpu", 2, True, "bad")
    assert positive.shape == negative.shape == (4, 77, 16)
    assert torch.equal(positive[0], positive[1]) and not torch.equal(positive[1], positive[2])
    embeds = {"prompt_embeds": positive[:1], "negative_prompt_embeds": negative[:1]}
    by_text = modelscope(PROMPT, negative_prompt="bad", generator=seeded(), **SMALL).frames
    assert torch.equal(modelscope(**embeds, generator=seeded(), **SMALL).frames, by_text)
    assert torch.equal(
        modelscope(prompt_embeds=positive[:1], negative_prompt=["bad"], generator=seeded(), **SMALL).frames, by_text
    )


def test_without_text_encoder_and_vae_embeddings_become_latents(turbo):
    embeds = turbo.encode_prompt([PROMPT])[0]
    pipe = VDMiniT2VPipeline(**{**turbo.components, "text_encoder": None, "tokenizer": None, "vae": None})
    assert pipe(prompt_embeds=embeds, **SMALL).frames.shape == (1, 4, 2, 8, 8)


def test_outputs_have_the_shapes_of_other_pipelines(turbo):
    def video(**arguments):
        return turbo([PROMPT, "b"], num_frames=3, num_inference_steps=1, generator=seeded(), **arguments)

    frames = video().frames
    assert [[frame.size for frame in clip] for clip in frames] == [[(16, 16)] * 3] * 2
    arrays, tensors = video(output_type="np").frames, video(output_type="pt", return_dict=False)[0]
    assert arrays.shape == (2, 3, 16, 16, 3) and tensors.shape == (2, 3, 3, 16, 16)
    assert np.array_equal(arrays, tensors.permute(0, 1, 3, 4, 2).numpy())
    assert np.array_equal(np.asarray(frames[1][2]), (arrays[1, 2] * 255).round().astype(np.uint8))
    # What the VAE says of the latents, frame by frame.
    latents = video(output_type="latent").frames
    with torch.no_grad():
        decoded = turbo.vae.decode(latents[1, :, 2:3].transpose(0, 1) / turbo.vae.config.scaling_factor).sample
    torch.testing.assert_close(tensors[1, 2:3], (decoded / 2 + 0.5).clamp(0, 1))
    sizes = []
    hook = turbo.vae.decoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    for chunk in (1, 4, 100):
        torch.testing.assert_close(video(output_type="pt", decode_chunk_size=chunk).frames, tensors)
    hook.remove()
    assert sizes == [1, 1, 1, 1, 1, 1, 4, 2, 6]
    turbo.vae.enable_slicing()
    torch.testing.assert_close(video(output_type="pt").frames, tensors)
    turbo.vae.disable_slicing()


def test_a_pruned_vae_decodes_as_well():
    vae = VDMiniAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 24, 32, 32),
        norm_num_groups=8,
        decoder_block_out_channels=(16, 16, 24, 32),
        decoder_upsample_out_channels=(16, 24, 32),
        decoder_layers_per_block=(3, 2, 2, 1),
    )
    pipe = VDMiniT2VPipeline(**{**tiny_t2v_components(), "vae": randomise(vae).eval()})
    arguments = {"num_frames": 2, "num_inference_steps": 1, "height": 32, "width": 64, "output_type": "pt"}
    whole = pipe(PROMPT, generator=seeded(), **arguments).frames
    assert whole.shape == (1, 2, 3, 32, 64) and whole.std() > 0.01
    pipe.vae.enable_tiling()
    assert pipe(PROMPT, generator=seeded(), **arguments).frames.shape == whole.shape


def test_a_callback_sees_each_step_and_may_change_latents_and_embeddings(turbo, modelscope):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), pipe.num_timesteps, sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    arguments = {"num_frames": 2, "num_inference_steps": 4, "output_type": "latent"}
    assert not turbo(PROMPT, callback_on_step_end=callback, **arguments).frames.any()
    assert seen == [(i, t, 4, ["latents"]) for i, t in enumerate(TURBO_STEPS[4])]

    def swap(pipe, step, timestep, tensors):
        return {"prompt_embeds": other}

    other = turbo.encode_prompt("another")[0]
    names = ["prompt_embeds"]
    changed, first = (
        turbo(
            PROMPT, generator=seeded(), callback_on_step_end=c, callback_on_step_end_tensor_inputs=names, **arguments
        )
        for c in (swap, lambda *_: {})
    )
    assert (changed.frames - first.frames).abs().max() > 1e-3

    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    with Calls(modelscope) as calls:
        modelscope(PROMPT, callback_on_step_end=cutoff, **arguments)
    assert [call["sample"].shape[0] for call in calls] == [2, 2, 1, 1]


def test_a_callback_may_interrupt_and_the_next_call_is_whole_again(turbo):
    with Calls(turbo) as calls:
        turbo(PROMPT, num_inference_steps=8, num_frames=1, callback_on_step_end=stop_after(1), output_type="latent")
    assert len(calls) == 2
    with Calls(turbo) as calls:
        turbo(PROMPT, **SMALL)
    assert len(calls) == 2


def test_the_arguments_begin_as_those_of_the_stock_pipeline(turbo):
    ours = list(inspect.signature(VDMiniT2VPipeline.__call__).parameters)
    stock = list(inspect.signature(TextToVideoSDPipeline.__call__).parameters)
    end = stock.index("callback")
    assert ours[:end] == stock[:end]
    with Calls(turbo) as calls:
        turbo(PROMPT, cross_attention_kwargs={"a processor's": "own"}, **SMALL)
    assert calls[0]["cross_attention_kwargs"] == {"a processor's": "own"}
    encode = list(inspect.signature(VDMiniT2VPipeline.encode_prompt).parameters)
    assert encode == list(inspect.signature(TextToVideoSDPipeline.encode_prompt).parameters)[: len(encode)]


@pytest.mark.parametrize(
    ("sample_size", "size"), [(8, (16, 16)), ((8, 16), (16, 32)), ([8, 16], (16, 32)), (None, (320, 512))]
)
def test_the_default_size_is_that_of_the_loaded_unet(sample_size, size):
    pipe = tiny_t2v_pipeline()
    pipe.unet.register_to_config(sample_size=sample_size)
    assert pipe.default_size == size


@pytest.mark.parametrize("size", [(2, 2), (24, 24), (6, 26)])
def test_any_multiple_of_the_vaes_factor_is_a_size(size, turbo):
    teacher = tiny_t2v_pipeline(tiny_t2v_teacher())
    for pipe in (turbo, teacher):
        assert pipe(PROMPT, *size, **{**SMALL, "output_type": "pt"}).frames.shape == (1, 2, 3, *size)


def test_sizes_that_the_stock_pipeline_takes_are_taken_with_the_same_result():
    components = tiny_t2v_components(randomise(UNet3DConditionModel(**STOCK_CONFIG)).eval())
    embeds = torch.randn(2, 1, 77, 16, generator=seeded())
    stock, ours = (
        cls(**components)(
            prompt_embeds=embeds[0],
            negative_prompt_embeds=embeds[1],
            height=24,
            width=40,
            num_frames=2,
            num_inference_steps=2,
            generator=seeded(),
            output_type="np",
        ).frames
        for cls in (TextToVideoSDPipeline, VDMiniT2VPipeline)
    )
    assert ours.shape == (1, 2, 24, 40, 3)
    np.testing.assert_array_equal(ours, stock)


def test_latents_of_another_precision_are_cast(turbo):
    half = tiny_t2v_pipeline().to(torch.bfloat16)
    latents = torch.randn(1, 4, 2, 8, 8, generator=seeded()).half()
    found, expected = (
        half(PROMPT, latents=x, **{**SMALL, "num_inference_steps": 1}).frames for x in (latents, latents.float())
    )
    assert torch.equal(found, expected)


def test_lora_weights_of_unet_and_text_encoder_load_and_change_the_video(tmp_path):
    pipe = tiny_t2v_pipeline()
    plain = pipe(PROMPT, generator=seeded(), **SMALL).frames
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    of_unet_alone = pipe(PROMPT, generator=seeded(), **SMALL).frames
    text_lora = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    pipe.text_encoder.add_adapter(text_lora)
    adapted = pipe(PROMPT, generator=seeded(), **SMALL).frames
    assert (adapted - of_unet_alone).abs().max() > 1e-3
    pipe.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(pipe.unet),
        text_encoder_lora_layers=get_peft_model_state_dict(pipe.text_encoder),
    )
    again = tiny_t2v_pipeline()
    again.load_lora_weights(tmp_path)
    torch.testing.assert_close(again(PROMPT, generator=seeded(), **SMALL).frames, adapted)
    assert (adapted - plain).abs().max() > 1e-2
    again.unload_lora_weights()
    torch.testing.assert_close(again(PROMPT, generator=seeded(), **SMALL).frames, plain)
