"""Module names as the paper writes them."""

import pytest
from tiny import tiny_teacher_unet

from vdmini_diffusers.pruning import paper_name


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("down_blocks.1.resnets.0", "D.1.R.0"),
        ("up_blocks.2.attentions.1", "U.2.A.1"),
        ("down_blocks.3", "D.3"),
        ("mid_block", "M"),
        ("mid_block.attentions.0", "M.A.0"),
        ("up_blocks.3.resnets.2.spatial_res_block", "U.3.R.2.RB-S"),
        ("up_blocks.3.resnets.2.temporal_res_block.conv1.weight", "U.3.R.2.RB-T"),
        ("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight", "D.0.A.1.AB-S"),
        ("mid_block.attentions.0.temporal_transformer_blocks.0", "M.A.0.AB-T"),
        ("down_blocks.0.attentions.1.proj_in.weight", "D.0.A.1"),
        ("up_blocks.2.temp_convs.1.conv1.0.weight", "U.2.R.1.RB-T"),
        ("mid_block.temp_attentions.0.proj_in.weight", "M.A.0.AB-T"),
        ("up_blocks.10.resnets.12", "U.10.R.12"),
        ("down_blocks.0.downsamplers.0.conv.weight", "D.0.downsamplers"),
        ("conv_in.weight", "conv_in.weight"),
        ("time_embedding.linear_1.bias", "time_embedding.linear_1.bias"),
    ],
)
def test_the_paper_s_name(module, name):
    assert paper_name(module) == name


def test_different_layers_have_different_names():
    layers = [
        name
        for name, _ in tiny_teacher_unet().named_modules()
        if name.split(".")[-2:-1] in (["resnets"], ["attentions"])
    ]
    assert len(layers) == len({paper_name(name) for name in layers}) == 8 + 6 + 3 + 12 + 9
