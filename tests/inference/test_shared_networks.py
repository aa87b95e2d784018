"""Pipelines that share optimised networks, and what is left of calls of many sizes."""

import copy
import gc
import pickle
import tracemalloc

import pytest
import torch
from test_rewrites import compressed_vae, image_unet, rewritten
from tiny import student_of, tiny_image, tiny_svd_pipeline

from vdmini_diffusers import VDMiniI2VPipeline
from vdmini_diffusers.inference import optimize, restore
from vdmini_diffusers.pruning import VDMINI_UNET


pytestmark = pytest.mark.usefixtures("frames_of_any_size")


def pipeline(**networks):
    pipe = VDMiniI2VPipeline(**tiny_svd_pipeline().components | networks)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def video(pipe, height=16, width=16, num_frames=2):
    generator = torch.Generator().manual_seed(0)
    return pipe(tiny_image(), height, width, num_frames, 1, output_type="pt", generator=generator).frames


@pytest.mark.slow
def test_pipelines_that_share_networks_are_optimised_and_restored_together(tmp_path):
    one = pipeline()
    others = [VDMiniI2VPipeline(**one.components), VDMiniI2VPipeline.from_pipe(one)]
    expected = video(one)
    fast = video(optimize(others[0]))
    assert not torch.equal(fast, expected)
    torch.testing.assert_close(fast, expected, rtol=0, atol=1e-4)
    assert torch.equal(video(one), fast) and torch.equal(video(others[1]), fast)
    one.save_pretrained(tmp_path)
    stock = VDMiniI2VPipeline.from_pretrained(tmp_path, optimize=False, vae=one.vae)
    assert rewritten(stock.vae) and not rewritten(stock.unet)
    restore(others.pop())
    assert not any(map(rewritten, (one.unet, one.vae, stock.vae, others[0].unet)))
    optimize(one)
    copied, unpickled = copy.deepcopy(one), pickle.loads(pickle.dumps(one.components))
    del one
    gc.collect()
    assert torch.equal(video(others[0]), fast)
    assert torch.equal(video(restore(others[0])), expected)
    assert torch.equal(video(copied), fast)
    assert torch.equal(video(restore(VDMiniI2VPipeline(**unpickled))), expected)


def living_tensors():
    gc.collect()
    found = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]  # fake ones have no size
    return len(found), sum(x.nbytes for x in found)


@pytest.mark.slow
@pytest.mark.parametrize("tiled", [False, True])
def test_nothing_stays_of_calls_of_many_sizes(tiled):
    pipe = optimize(pipeline(unet=student_of(image_unet(), VDMINI_UNET), vae=compressed_vae()))
    if tiled:
        pipe.vae.enable_tiling(16, 16, 2, 16, 16, 2)
    sizes = [(32, 32, 4), (16, 16, 2), (32, 16, 3), (16, 32, 1), (48, 16, 2)]
    for size in sizes:
        video(pipe, *size)
    video(pipe, *sizes[0])
    before = living_tensors()
    tracemalloc.start()
    for size in 3 * sizes + sizes[:1]:
        video(pipe, *size)
    assert living_tensors() == before
    assert tracemalloc.get_traced_memory()[0] < 2**17  # bytes of Python objects, of which a call leaves none
    tracemalloc.stop()
