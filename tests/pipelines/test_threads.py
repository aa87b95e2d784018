"""One pipeline in several threads, or two that share components: calls take turns and leave nothing behind."""

import copy
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import tiny_image
from tiny_text_to_video import tiny_t2v_pipeline

from vdmini_diffusers import VDMiniI2VPipeline, optimize


@pytest.fixture(params=["i2v", "t2v"])
def pipe(request, student_pipe):
    return student_pipe if request.param == "i2v" else tiny_t2v_pipeline()


def video(pipe, seed: int) -> torch.Tensor:
    """Each seed has its own number of steps, which the scheduler holds while it counts them."""
    arguments = {
        "num_frames": 2,
        "num_inference_steps": 2 + seed,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
    }
    return pipe(tiny_image(), **arguments).frames if "image_encoder" in pipe.components else pipe("a", **arguments)[0]


def test_two_threads_get_what_one_gets(pipe):
    expected = [video(pipe, seed) for seed in range(4)]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda seed: video(pipe, seed), range(4)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_two_pipelines_on_the_same_components_take_turns_as_well(pipe):
    other = type(pipe)(**pipe.components)
    other.set_progress_bar_config(disable=True)
    expected = [video(pipe, seed) for seed in range(4)]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda seed: video((pipe, other)[seed % 2], seed), range(4)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_call_that_fails_lets_the_next_one_in(pipe):
    with pytest.raises(ValueError, match="num_frames"):
        pipe(tiny_image() if isinstance(pipe, VDMiniI2VPipeline) else "a", num_frames=0)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(video, pipe, 1).result(timeout=60).isfinite().all()


def test_memory_returns_after_every_call(pipe):
    def live_bytes() -> int:
        gc.collect()
        found = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
        tensors = [tensor for tensor in found if tensor.layout == torch.strided]  # other tests may leave others
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(storages.values())

    pipe = optimize(copy.deepcopy(pipe))  # other tests share the VAE
    video(pipe, 1)  # whose noise levels and timesteps the scheduler keeps
    before = live_bytes()
    for _ in range(3):
        video(pipe, 1)
    assert 0 < live_bytes() <= before


def test_a_pipeline_that_was_called_can_be_copied_and_pickled(pipe):
    expected = video(pipe, 1)
    for again in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        torch.testing.assert_close(video(again, 1), expected)
