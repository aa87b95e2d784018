"""Names of student tensors and modules, in the teacher's coordinates."""

import pytest

from vdmini_diffusers.pruning import VDMINI_UNET


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("conv_in.weight", "conv_in.weight"),
        ("down_blocks.1.resnets.0.spatial_res_block.conv1.weight",) * 2,
        ("down_blocks.0.downsamplers.0.conv.bias",) * 2,
        ("up_blocks.0", "up_blocks.1"),
        ("up_blocks.0.upsamplers.0.conv.weight", "up_blocks.1.upsamplers.0.conv.weight"),
        ("up_blocks.1.attentions.1.proj_in.weight", "up_blocks.2.attentions.2.proj_in.weight"),
        ("up_blocks.2.resnets.0.temporal_res_block.norm1.bias", "up_blocks.3.resnets.0.temporal_res_block.norm1.bias"),
        ("up_blocks.2.resnets.1", "up_blocks.3.resnets.2"),
        ("up_blocks.1.temp_convs.1.conv3.3.weight", "up_blocks.2.temp_convs.2.conv3.3.weight"),
        ("up_blocks.2.temp_attentions.1.proj_in.bias", "up_blocks.3.temp_attentions.2.proj_in.bias"),
        ("transformer_in.proj_in.weight", "transformer_in.proj_in.weight"),
    ],
)
def test_the_paper_s_student_in_the_teacher_s_coordinates(student, teacher):
    assert VDMINI_UNET.weight_map([student]) == {student: teacher}
