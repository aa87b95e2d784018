"""Regional compilation gives the same output, with one graph for all blocks of a width."""

import pytest
import torch
from runs import forward
from tiny import TINY_UNET_CONFIG, randomise
from tiny_text_to_video import TEACHER_CONFIG

from vdmini_diffusers import VDMiniUNet3DConditionModel, VDMiniUNetSpatioTemporalConditionModel


pytestmark = pytest.mark.gpu


def three_widths(task):
    """Return a U-Net and its number of graphs: for each of the widths one of each class of repeated blocks."""
    if task == "i2v":
        config = {**TINY_UNET_CONFIG, "block_out_channels": (32, 64, 128), "num_attention_heads": (1, 2, 4)}
        return VDMiniUNetSpatioTemporalConditionModel(**config), 3 * 2
    config = {
        **TEACHER_CONFIG,
        "block_out_channels": (16, 32, 64),
        "layers_per_block": (1, 1, 2),
        "down_block_types": ("CrossAttnDownBlock3D",) * 3,
        "up_block_types": ("CrossAttnUpBlock3D",) * 3,
        "mid_block_type": None,
    }
    return VDMiniUNet3DConditionModel(**config), 3 * 3 + 1  # `transformer_in`, whose inner width is its own


def test_compiled_blocks_compute_the_same_and_are_compiled_once_a_width(task, device):
    unet, num_graphs = three_widths(task)
    unet = randomise(unet).eval().to(device)
    expected = forward(unet, frames=3)
    torch._dynamo.utils.counters.clear()
    # On a CPU without inductor, which takes minutes there.
    unet.compile_repeated_blocks(backend="inductor" if device.type == "cuda" else "aot_eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(forward(unet, frames=3), expected, rtol=5e-3, atol=5e-3)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == num_graphs
