"""Names of student tensors and modules, in the teacher's coordinates."""

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from tiny import randomise
from torch import nn

from vdmini_diffusers.pruning import VDMINI_UNET, PruningPlan, TransformerPruningPlan


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


HUNYUAN_PLAN = TransformerPruningPlan(
    "tiny-hunyuan", {"transformer_blocks": (0, 2), "single_transformer_blocks": (1, 2, 4)}
)


def tiny_hunyuan(num_layers, num_single_layers):
    return HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=num_layers,
        num_single_layers=num_single_layers,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )


@torch.no_grad()
def test_a_pruned_hunyuan_video_transformer_is_bit_equal_to_deleting_its_blocks_by_hand():
    teacher = randomise(tiny_hunyuan(3, 5)).eval()
    student = tiny_hunyuan(2, 3).eval()
    keys = HUNYUAN_PLAN.weight_map(student.state_dict())
    assert len(set(keys.values())) == len(keys)
    tensors = teacher.state_dict()
    student.load_state_dict({key: tensors[source] for key, source in keys.items()})

    inputs = {
        "hidden_states": torch.randn(2, 4, 2, 4, 6),
        "timestep": torch.tensor([10, 500]),
        "encoder_hidden_states": torch.randn(2, 5, 16),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
        "pooled_projections": torch.randn(2, 8),
        "guidance": torch.tensor([1000.0, 6000.0]),
    }
    whole = teacher(**inputs).sample
    teacher.transformer_blocks = nn.ModuleList(teacher.transformer_blocks[i] for i in (0, 2))
    teacher.single_transformer_blocks = nn.ModuleList(teacher.single_transformer_blocks[i] for i in (1, 2, 4))
    expected = teacher(**inputs).sample
    assert torch.equal(student(**inputs).sample, expected)
    assert not torch.allclose(whole, expected)


def test_a_list_of_blocks_that_the_plan_does_not_name_is_kept_whole():
    plan = TransformerPruningPlan("dual only", {"transformer_blocks": (1,)})
    assert plan.weight_map(["transformer_blocks.0.attn", "single_transformer_blocks.3.attn"]) == {
        "transformer_blocks.0.attn": "transformer_blocks.1.attn",
        "single_transformer_blocks.3.attn": "single_transformer_blocks.3.attn",
    }


def test_a_transformer_s_plan_survives_json():
    assert PruningPlan.from_json_string(HUNYUAN_PLAN.to_json_string()) == HUNYUAN_PLAN
