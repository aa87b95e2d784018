"""Blocks that repeat are compiled once for clips of all sizes, in stock networks, in ours and in optimised ones."""

import pytest
import torch
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from test_rewrites import compressed_vae, image_unet
from tiny import decode, student_of, tiny_latents, tiny_svd_pipeline, tiny_unet_inputs
from tiny_text_to_video import tiny_t2v_inputs, tiny_t2v_student
from torch import nn

from vdmini_diffusers.inference import compile_blocks, optimize
from vdmini_diffusers.pruning import VDMINI_UNET


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def compiled(network):
    return {name for name, module in network.named_modules() if module._compiled_call_impl is not None}


NETWORKS = {  # with the number of graphs: one for each width of each kind of block
    "stock U-Net": (image_unet, 5),
    "optimised student": (lambda: optimize(student_of(image_unet(), VDMINI_UNET)), 5),
    "text to video": (tiny_t2v_student, 10),
    "decoder": (compressed_vae, 3),
    "optimised decoder": (lambda: optimize(compressed_vae()), 3),
}


def run(network, frames, height, width):
    if hasattr(network, "decoder"):
        return decode(network, tiny_latents(frames, height, width))
    if hasattr(network, "time_embedding") and hasattr(network, "transformer_in"):
        return network(**tiny_t2v_inputs(network, 1, frames, height, width)).sample
    return network(*tiny_unet_inputs(1, frames, height, width)).sample


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_clip_of_another_size_compiles_nothing(name):
    make, num_graphs = NETWORKS[name]
    # No size is that of a width: dynamo takes equal sizes for one, and would compile again where they are not.
    network, clips = make(), [(3, 24, 40), (5, 40, 56), (2, 56, 24)]
    expected = [run(network, *clip) for clip in clips]
    compile_blocks(network, backend="aot_eager", fullgraph=True)
    for clip, output in zip(clips, expected, strict=True):
        torch.testing.assert_close(run(network, *clip), output, rtol=1e-4, atol=1e-5)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == num_graphs


def test_an_optimised_pipeline_has_the_same_blocks_compiled():
    names = [compiled_names(pipe) for pipe in (tiny_svd_pipeline(), optimize(tiny_svd_pipeline()))]
    assert names[0] == names[1]
    assert any("temporal_res_block" in name for name in names[0]) and any("attentions" in name for name in names[0])


def compiled_names(pipe):
    assert compile_blocks(pipe, backend="eager") is pipe
    assert not compiled(pipe.image_encoder) and not compiled(pipe.vae.encoder)
    assert any("resnets" in name for name in compiled(pipe.vae.decoder))
    return compiled(pipe.unet)


@torch.no_grad()
def test_a_compiled_block_inside_of_a_rewritten_one_is_called():
    unet, calls = optimize(image_unet()), []
    block = next(module for module in unet.modules() if isinstance(module, TransformerSpatioTemporalModel))
    feed_forward = block.transformer_blocks[0].ff
    expected = unet(*tiny_unet_inputs()).sample

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    for part in (feed_forward, unet.down_blocks[0].resnets[0].temporal_res_block):
        part.compile(backend=backend)
    torch.testing.assert_close(unet(*tiny_unet_inputs()).sample, expected, rtol=1e-4, atol=1e-5)
    assert len(calls) == 2


def test_what_has_no_repeated_blocks_is_refused():
    with pytest.raises(ValueError, match="Linear has no blocks that are known to repeat"):
        compile_blocks(nn.Linear(2, 2))
