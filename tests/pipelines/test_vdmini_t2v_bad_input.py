"""What `VDMiniT2VPipeline` refuses, before it computes anything."""

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from tiny_text_to_video import MODELSCOPE, T2V_TURBO, tiny_t2v_pipeline, tiny_t2v_student

from vdmini_diffusers import VDMiniT2VPipeline


@pytest.fixture(scope="module")
def pipes():
    kinds = {"turbo": {}, "turbo-v1": T2V_TURBO, "modelscope": MODELSCOPE}
    pipes = {name: tiny_t2v_pipeline(tiny_t2v_student(**config)) for name, config in kinds.items()}
    only_unet = dict.fromkeys(("text_encoder", "tokenizer", "vae"))
    return pipes | {f"{name}, U-Net": VDMiniT2VPipeline(**{**pipes[name].components, **only_unet}) for name in pipes}


EMBEDS = torch.zeros(1, 77, 16)
WRONG = [
    ("turbo", {"prompt": None}, ValueError, "either `prompt` or `prompt_embeds`"),
    ("turbo", {"prompt": 3}, TypeError, "`prompt` must be a string or a list of strings"),
    ("turbo", {"prompt": ("a", "b")}, TypeError, "`prompt` must be a string"),
    ("turbo", {"prompt": []}, TypeError, r"not \[\]"),
    ("turbo", {"prompt": ["a", None]}, TypeError, "list of strings"),
    ("turbo", {"prompt_embeds": EMBEDS}, ValueError, "either `prompt` or `prompt_embeds`"),
    ("turbo", {"prompt": None, "prompt_embeds": EMBEDS[0]}, ValueError, r"\(batch, tokens, 16\)"),
    ("turbo", {"prompt": None, "prompt_embeds": torch.zeros(1, 77, 8)}, ValueError, r"\(batch, tokens, 16\)"),
    ("turbo", {"prompt": None, "prompt_embeds": EMBEDS[:0]}, ValueError, r"\(batch, tokens, 16\)"),
    ("turbo", {"negative_prompt": "blurred"}, ValueError, "takes no negative prompt"),
    ("turbo", {"negative_prompt_embeds": EMBEDS}, ValueError, "takes no negative prompt"),
    ("modelscope", {"negative_prompt": 3}, TypeError, "`negative_prompt` must be a string"),
    ("modelscope", {"negative_prompt": ["a", "b"]}, ValueError, "2 negative prompts for 1 prompts"),
    ("modelscope", {"negative_prompt_embeds": torch.zeros(3, 77, 16)}, ValueError, "3 negative prompts"),
    ("modelscope", {"negative_prompt": "a", "negative_prompt_embeds": EMBEDS}, ValueError, "not both"),
    ("modelscope", {"negative_prompt_embeds": EMBEDS[:, :7]}, ValueError, "as many tokens"),
    ("modelscope", {"prompt": None, "prompt_embeds": EMBEDS[:, :7]}, ValueError, "as many tokens"),
    ("turbo", {"prompt": None, "prompt_embeds": EMBEDS.long()}, TypeError, "`prompt_embeds` must hold floats"),
    ("turbo", {"prompt": None, "prompt_embeds": EMBEDS / 0}, ValueError, "`prompt_embeds` must hold finite"),
    ("turbo", {"prompt": None, "prompt_embeds": [[1.0]]}, TypeError, "`prompt_embeds` must be a `torch.Tensor`"),
    ("turbo", {"height": 13}, ValueError, "multiples of 2, which the VAE downsamples by"),
    ("turbo", {"width": 21}, ValueError, "multiples of 2, which the VAE downsamples by"),
    ("turbo", {"height": 0}, ValueError, "`height` must be at least 1"),
    ("turbo", {"width": 16.0}, TypeError, "`width` must be an integer"),
    ("turbo", {"num_frames": 0}, ValueError, "`num_frames` must be at least 1"),
    ("turbo", {"num_frames": 2.5}, TypeError, "`num_frames` must be an integer"),
    ("turbo", {"num_inference_steps": 0}, ValueError, "`num_inference_steps` must be at least 1"),
    ("turbo", {"num_inference_steps": 201}, ValueError, "201 steps cannot be taken from a grid of 200"),
    ("modelscope", {"num_inference_steps": 1001}, ValueError, "1001"),
    ("turbo", {"timesteps": []}, TypeError, "`timesteps` must be a list of integers"),
    ("turbo", {"timesteps": [999.5]}, TypeError, "`timesteps` must be a list of integers"),
    ("turbo", {"timesteps": [99, 999]}, ValueError, "descending"),
    ("turbo", {"timesteps": [1000, 499]}, ValueError, "`timesteps` must be descending, from 999 at most"),
    ("turbo", {"timesteps": [999, -1]}, ValueError, "`timesteps` must be at least 0, not -1"),
    ("modelscope", {"timesteps": [999, 499]}, ValueError, "DDIMScheduler takes no `timesteps`"),
    ("turbo", {"num_frames": 2**31}, ValueError, "`num_frames` must be at most"),
    ("turbo", {"guidance_scale": float("inf")}, ValueError, "`guidance_scale` must be at most"),
    ("modelscope", {"guidance_scale": float("nan")}, ValueError, "`guidance_scale`"),
    ("turbo", {"fps": float("inf")}, ValueError, "`fps` must be at most"),
    ("turbo", {"guidance_scale": -1}, ValueError, "`guidance_scale` must be at least 0"),
    ("turbo", {"guidance_scale": "high"}, TypeError, "`guidance_scale` must be a number"),
    ("turbo", {"eta": float("nan")}, ValueError, "`eta`"),
    ("turbo", {"fps": 0}, ValueError, "`fps`"),
    ("turbo", {"motion_guidance_scale": -0.1}, ValueError, "`motion_guidance_scale`"),
    ("turbo", {"motion_guidance_percentage": 50}, ValueError, "`motion_guidance_percentage` must be at most 1"),
    ("turbo-v1", {"motion_guidance_scale": 0.05}, ValueError, "no embedding of `motion_guidance_scale`"),
    ("modelscope", {"motion_guidance_scale": 0.05}, ValueError, "no embedding of `motion_guidance_scale`"),
    ("turbo", {"decode_chunk_size": 0}, ValueError, "`decode_chunk_size`"),
    ("turbo", {"num_videos_per_prompt": None}, TypeError, "`num_videos_per_prompt`"),
    ("turbo", {"output_type": "gif"}, ValueError, "`output_type`"),
    ("turbo", {"callback_on_step_end_tensor_inputs": ["noise"]}, ValueError, "noise"),
    ("turbo", {"callback_on_step_end_tensor_inputs": "latents"}, TypeError, "list of names"),
    ("turbo", {"callback_on_step_end_tensor_inputs": None}, TypeError, "list of names"),
    ("turbo", {"callback_on_step_end": 3}, TypeError, "must be callable"),
    ("turbo", {"generator": (torch.Generator(),)}, TypeError, "`generator`"),
    ("turbo", {"generator": [torch.Generator()] * 2}, ValueError, "2 generators for 1 videos"),
    ("turbo", {"latents": torch.zeros(4, 16, 8, 8)}, ValueError, r"shape \(1, 4, 16, 8, 8\)"),
    ("turbo", {"latents": torch.zeros(1, 16, 4, 8, 8)}, ValueError, r"shape \(1, 4, 16, 8, 8\)"),
    ("turbo", {"latents": torch.zeros(1, 4, 16, 8, 8, dtype=torch.int64)}, TypeError, "`latents` must hold floats"),
    ("turbo", {"latents": torch.zeros(1, 4, 16, 8, 8) / 0}, ValueError, "`latents` must hold finite numbers"),
    ("turbo", {"latents": [0.0]}, TypeError, "`latents` must be a `torch.Tensor`"),
    ("turbo, U-Net", {"output_type": "latent"}, ValueError, "no text encoder"),
    ("modelscope, U-Net", {"output_type": "latent", "prompt": None, "prompt_embeds": EMBEDS}, ValueError, "no text"),
    ("turbo, U-Net", {"prompt": None, "prompt_embeds": EMBEDS}, ValueError, "no VAE: pass `output_type='latent'`"),
]


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(),
        EDMEulerScheduler(),
        EDMDPMSolverMultistepScheduler(),
        EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
        DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        UniPCMultistepScheduler(prediction_type="flow_prediction"),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_a_scheduler_with_another_meaning_of_timestep_is_refused(scheduler, pipes):
    pipe = VDMiniT2VPipeline(**{**pipes["modelscope"].components, "scheduler": scheduler})
    with pytest.raises(ValueError, match=f"{type(scheduler).__name__} .*does not suit"):
        pipe("a corgi", num_frames=2, num_inference_steps=2)


@pytest.mark.parametrize("result", [None, [], {"latents": None}, {"latents": torch.zeros(1)}, {"prompt_embeds": None}])
def test_a_callback_must_return_a_dictionary_of_tensors(result, pipes):
    with pytest.raises(ValueError, match="`callback_on_step_end` must return"):
        pipes["turbo"]("a corgi", num_frames=2, num_inference_steps=1, callback_on_step_end=lambda *args: result)


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "message"), WRONG, ids=[f"{i}-{'-'.join(case[1])}" for i, case in enumerate(WRONG)]
)
def test_bad_input_is_refused_before_anything_is_computed(kind, arguments, error, message, pipes):
    def computing(*args):
        raise AssertionError("computed")

    pipe = pipes[kind]
    models = [model for model in (pipe.text_encoder, pipe.vae, pipe.unet) if model is not None]
    hooks = [model.register_forward_pre_hook(computing) for model in models]
    try:
        with pytest.raises(error, match=message):
            pipe(**{"prompt": "a corgi", **arguments})
    finally:
        for hook in hooks:
            hook.remove()
