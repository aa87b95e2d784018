"""Text to video without training: which inputs are refused, and what T2V-Turbo starts from."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import LCMScheduler, UNet3DConditionModel
from tiny_text_to_video import (
    STOCK_CONFIG,
    VIDEOCRAFTER2,
    tiny_t2v_inputs,
    tiny_t2v_pipeline,
    tiny_t2v_teacher,
)

from vdmini_diffusers.data.latents import LatentShards
from vdmini_diffusers.distillation.consistency_arguments import (
    ConsistencyArguments,
    RewardArguments,
    TextToVideoTrainingArguments,
)
from vdmini_diffusers.distillation.rewards import RewardMixture
from vdmini_diffusers.distillation.tasks.consistency import MOTION_GUIDANCE
from vdmini_diffusers.families import ClipShape
from vdmini_diffusers.families.videocrafter import with_guidance
from vdmini_diffusers.trainers.consistency import ConsistencyPair, lcm_scheduler


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    tiny_t2v_pipeline(tiny_t2v_teacher()).save_pretrained(folder / "turbo")
    tiny_t2v_pipeline(tiny_t2v_teacher(**VIDEOCRAFTER2)).save_pretrained(folder / "base")
    return folder


@pytest.fixture
def loaded(folder):
    def loaded(teacher: str, student: str | None = None) -> ConsistencyPair:
        student = None if student is None else str(folder / student)
        base = ConsistencyPair(str(folder / teacher), student, ConsistencyArguments(), RewardArguments())
        base.family = base.check_family(base.teacher_name)
        base.load_teacher(TextToVideoTrainingArguments(), Accelerator(cpu=True))
        return base

    return loaded


def write(folder: Path, without: tuple[str, ...] = (), size: int = 8, caption: str = "", motion=()) -> str:
    latents = torch.zeros(2, 4, size, size)
    sample = {"latents": latents, "prompt_embeds": torch.zeros(77, 16), "pooled_prompt_embeds": torch.zeros(16)}
    sample |= {"fps": torch.tensor(12.0)} | {name: torch.tensor(0) for name in motion}
    sample = {name: tensor for name, tensor in sample.items() if name not in without}
    shards = LatentShards(folder, {})
    shards.write(0, [sample], [{"name": "0", "caption": caption}])
    shards.finish([])
    return str(folder)


def test_precomputed_clips_say_what_they_are_like(loaded, tmp_path):
    base = loaded("base")
    base.set_clip_shape(base.precomputed(write(tmp_path / "motion", motion=MOTION_GUIDANCE))[0])
    assert base.clip_shape == ClipShape(num_frames=2, height=16, width=16, fps=12.0)


def test_precomputed_data_that_training_cannot_use_is_refused(loaded, tmp_path):
    base = loaded("base")
    with pytest.raises(ValueError, match="has no fps, prompt_embeds: it was not made by"):
        base.precomputed(write(tmp_path / "other", without=("fps", "prompt_embeds")))
    with pytest.raises(ValueError, match="has motion_score without noisy_latents, timestep_index, use_motion_guide"):
        base.precomputed(write(tmp_path / "part", motion=("motion_score",)))
    with pytest.raises(ValueError, match="would be applied twice"):
        loaded("turbo", "turbo").precomputed(write(tmp_path / "motion", motion=MOTION_GUIDANCE))


def test_rewards_need_captions_and_enough_frames(loaded, tmp_path):
    base = loaded("base")
    base.rewards = RewardMixture(base.teacher.vae, video_rewards=[(1.0, lambda frames, captions: frames.sum())])
    with pytest.raises(ValueError, match="has no captions, which rewards compare videos with"):
        base.precomputed(write(tmp_path / "silent"))
    sample = base.precomputed(write(tmp_path / "captioned", caption="a cat"))[0]
    assert sample["caption"] == "a cat"
    with pytest.raises(ValueError, match="needs 4 frames, and clips have 2"):
        base.set_clip_shape(sample)


def test_clips_of_a_size_that_the_u_net_does_not_divide_are_refused(loaded, tmp_path):
    base = loaded("base")
    with pytest.raises(ValueError, match=r"must be multiples of 16, .* they are 24 and 24"):
        base.set_clip_shape(base.precomputed(write(tmp_path / "odd", size=12))[0])


def test_a_model_that_embeds_guidance_is_not_distilled_to_few_steps_again(folder):
    turbo = ConsistencyPair(str(folder / "turbo"), None, ConsistencyArguments(), RewardArguments())
    with pytest.raises(ValueError, match="turbo embeds guidance: it was distilled already"):
        turbo.check(TextToVideoTrainingArguments())


def test_a_teacher_is_not_made_by_lora_nor_with_all_its_connections_dropped():
    base = ConsistencyPair("nowhere", None, ConsistencyArguments(), RewardArguments())
    with pytest.raises(ValueError, match="`--rank` trains a pruned student"):
        base.check(TextToVideoTrainingArguments(rank=4))
    with pytest.raises(ValueError, match="`--temporal_dropout` must be at least 0 and below 1, not 1"):
        TextToVideoTrainingArguments(temporal_dropout=1.0)


@pytest.mark.parametrize("config", [{}, VIDEOCRAFTER2], ids=["LCMScheduler", "DDIMScheduler"])
def test_what_is_trained_is_sampled_on_the_same_grid_with_the_same_noise(config):
    pipe = tiny_t2v_pipeline(tiny_t2v_teacher(**config))
    scheduler = lcm_scheduler(pipe, num_ddim_steps=50)
    assert isinstance(scheduler, LCMScheduler) and scheduler.config.original_inference_steps == 50
    assert torch.equal(scheduler.alphas_cumprod, pipe.scheduler.alphas_cumprod)


@pytest.mark.parametrize("motion_cond_proj_dim", [8, None])
def test_what_t2v_turbo_begins_as_pays_no_attention_to_guidance_and_learns_to(motion_cond_proj_dim):
    base = tiny_t2v_teacher(**VIDEOCRAFTER2)
    unet = with_guidance(base, 16, motion_cond_proj_dim).eval()
    inputs = tiny_t2v_inputs(base)
    conditions = {"timestep_cond": torch.randn(2, 16)}
    if motion_cond_proj_dim:
        conditions["motion_cond"] = torch.randn(2, motion_cond_proj_dim)
    output = unet(**inputs, **conditions).sample
    assert torch.equal(output, base(**inputs).sample)
    output.square().mean().backward()
    first = unet.time_embedding.combine_proj or unet.time_embedding.cond_proj
    assert first.weight.grad.abs().max() > 0


def test_a_stock_unet_of_modelscope_may_become_t2v_turbo():
    base = UNet3DConditionModel(**STOCK_CONFIG).eval()
    unet = with_guidance(base, 16, None)
    assert (unet.config.fps_cond, unet.config.mid_block_type) == (False, "UNetMidBlock3DCrossAttn")
    inputs = tiny_t2v_inputs(unet)
    expected = base(**{name: value for name, value in inputs.items() if name != "timestep_cond"}).sample
    torch.testing.assert_close(unet.eval()(**inputs).sample, expected)
