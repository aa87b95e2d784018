"""Stages that run before a removed part are not run again, and nothing else changes."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from tiny import tiny_image, tiny_svd_pipeline
from torch.utils.flop_counter import FlopCounterMode

from vdmini_diffusers import VDMiniAnimateLCMSVDScheduler
from vdmini_diffusers.analysis.generation import FixedVideos
from vdmini_diffusers.analysis.parts import removable_parts, removed
from vdmini_diffusers.analysis.shared_states import SharedStates
from vdmini_diffusers.evaluation.latency import build_network
from vdmini_diffusers.families.svd import SVD


@pytest.fixture(scope="module")
def pipe():
    return tiny_svd_pipeline()


def videos_of(pipe, num_inference_steps=1, max_guidance_scale=1.0, seed=0):
    settings = {"num_frames": 3, "height": 16, "width": 16}
    settings |= {"num_inference_steps": num_inference_steps, "max_guidance_scale": max_guidance_scale}
    return FixedVideos(pipe, [{"image": tiny_image()}] * 2, seed, settings)


def runs_of(unet, work):
    """How often each stage's first ResBlock runs within `work`."""
    counts = {}
    stages = {f"D.{i}": stage for i, stage in enumerate(unet.down_blocks)} | {"M": unet.mid_block}
    stages |= {f"U.{i}": stage for i, stage in enumerate(unet.up_blocks)}
    handles = [
        stage.resnets[0].register_forward_hook(lambda *_, n=name: counts.update({n: counts.get(n, 0) + 1}))
        for name, stage in stages.items()
    ]
    result = work()
    for handle in handles:
        handle.remove()
    return result, counts


def test_noise_that_a_scheduler_adds_between_steps_is_the_same_again():
    pipe = tiny_svd_pipeline()
    pipe.scheduler = VDMiniAnimateLCMSVDScheduler()
    generate = videos_of(pipe, num_inference_steps=2)
    first = generate()
    assert np.array_equal(generate(), first) and not np.array_equal(videos_of(pipe, 2, seed=5)(), first)


@pytest.mark.parametrize("name", ["D.0.R.0", "D.2", "M", "U.3.R.1.RB-T"])
@pytest.mark.parametrize("max_guidance_scale", [1.0, 2.0])
def test_videos_are_the_same_to_the_bit_and_earlier_stages_do_not_run(pipe, name, max_guidance_scale):
    generate, part = videos_of(pipe, max_guidance_scale=max_guidance_scale), removable_parts(pipe.unet)[name]
    with removed(pipe.unet, part):
        expected = generate()
    shared = SharedStates(pipe.unet)
    assert np.array_equal(shared.record(generate), generate())
    with removed(pipe.unet, part), shared.replayed(part):
        videos, runs = runs_of(pipe.unet, generate)
    assert np.array_equal(videos, expected)
    order = ["D.0", "D.1", "D.2", "D.3", "M", "U.0", "U.1", "U.2", "U.3"]
    assert not runs.keys() & set(order[: order.index(name[:3].rstrip("."))])
    assert set(order[order.index(name[:3].rstrip(".")) + 1 :]) <= runs.keys()
    again, runs = runs_of(pipe.unet, generate)
    assert np.array_equal(again, shared.record(generate)) and set(runs) == set(order)


def test_nothing_is_kept_of_several_steps_or_of_a_transformer(pipe):
    shared = SharedStates(pipe.unet)
    shared.record(videos_of(pipe, num_inference_steps=2))
    assert not shared.calls
    assert not SharedStates(torch.nn.ModuleDict({"transformer_blocks": torch.nn.Identity()})).stages


def test_other_noise_is_computed_anew(pipe):
    part = removable_parts(pipe.unet)["U.3"]
    shared = SharedStates(pipe.unet)
    shared.record(videos_of(pipe))
    with removed(pipe.unet, part):
        expected = videos_of(pipe, seed=5)()
        with shared.replayed(part):
            assert np.array_equal(videos_of(pipe, seed=5)(), expected)


def test_what_does_not_fit_is_computed(pipe):
    generate, part = videos_of(pipe), removable_parts(pipe.unet)["M"]
    whole = SharedStates(pipe.unet)
    whole.record(generate)
    first = sum(t.numel() * t.element_size() for t in tensors_of(whole.calls[0].states))
    shared = SharedStates(pipe.unet, max_bytes=first)
    shared.record(generate)
    assert shared.calls[0].states and not shared.calls[1].states
    with removed(pipe.unet, part):
        expected = generate()
        with shared.replayed(part):
            videos, runs = runs_of(pipe.unet, generate)
    assert np.array_equal(videos, expected) and runs["D.0"] == 1


def tensors_of(states):
    if isinstance(states, torch.Tensor):
        return [states]
    return [t for each in (states.values() if isinstance(states, dict) else states) for t in tensors_of(each)]


@pytest.mark.slow
def test_what_it_saves_of_stable_video_diffusion():
    """The figures of conversion/README.md."""
    unet = build_network(UNetSpatioTemporalConditionModel, "meta", torch.float16)
    config = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    down = ("DownEncoderBlock2D",) * 4
    vae = build_network(lambda: AutoencoderKLTemporalDecoder(**config, down_block_types=down), "meta", torch.float16)
    shared, counter, before = SharedStates(unet), FlopCounterMode(display=False), {}
    for stage in shared.stages:
        unet.get_submodule(stage).register_forward_pre_hook(
            lambda module, args, name=stage: before.update({name: counter.get_total_flops()})
        )
    states = []
    for stage in shared.stages[:-1]:
        unet.get_submodule(stage).register_forward_hook(lambda module, args, output: states.extend(tensors_of(output)))
    with torch.device("meta"), torch.no_grad():
        inputs = {name: value.half() for name, value in SVD.example_inputs(unet.config, 14, 576, 1024).items()}
        with counter:
            unet(**inputs)
        with FlopCounterMode(display=False) as decoder:
            vae.decode(torch.zeros(14, 4, 72, 128, dtype=torch.float16), num_frames=14)
    blocks = [part for part in removable_parts(unet).values() if part.kind == "block"]
    stages = [next(s for s in shared.stages if part.modules[0].startswith(f"{s}.")) for part in blocks]
    saved, in_unet = sum(before[stage] for stage in stages) / len(blocks), counter.get_total_flops()
    assert len(blocks) == 38
    assert saved / in_unet == pytest.approx(0.38, abs=0.005)
    assert saved / (in_unet + decoder.get_total_flops()) == pytest.approx(0.12, abs=0.005)
    assert sum(tensor.nbytes for tensor in states) / 1e9 == pytest.approx(0.65, abs=0.005)
