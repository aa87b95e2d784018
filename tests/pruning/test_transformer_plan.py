"""Plans of video transformers, on HunyuanVideo's class: dual-stream blocks, then single-stream ones."""

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel

from vdmini_diffusers.pruning import (
    PAPER_LITERAL,
    VDMINI_HY,
    PruningPlan,
    PruningPlanError,
    TransformerPruningPlan,
)


HUNYUAN_VIDEO = "HunyuanVideoTransformer3DModel"
PLAN = TransformerPruningPlan(
    "tiny", HUNYUAN_VIDEO, {"transformer_blocks": (0, 2), "single_transformer_blocks": (1, 3, 4)}
)


@pytest.fixture(scope="module")
def teacher():
    with torch.device("meta"):
        return HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=4,
            num_single_layers=5,
            num_refiner_layers=1,
            text_embed_dim=16,
            pooled_projection_dim=8,
            rope_axes_dim=(2, 4, 4),
        )


@pytest.fixture(scope="module")
def student(teacher):
    with torch.device("meta"):
        return HunyuanVideoTransformer3DModel.from_config(PLAN.student_config(teacher.config))


def test_the_student_has_the_kept_blocks_and_all_else_of_the_teacher(teacher, student):
    assert (len(student.transformer_blocks), len(student.single_transformer_blocks)) == (2, 3)
    differ = {key for key, value in teacher.config.items() if student.config.get(key) != value}
    assert {key for key in differ if not key.startswith("_")} == {"num_layers", "num_single_layers"}


def test_each_student_tensor_has_one_of_the_teacher_of_its_shape(teacher, student):
    ours, theirs = student.state_dict(), teacher.state_dict()
    weights = PLAN.weight_map(ours)
    assert weights["transformer_blocks.1.attn.to_q.weight"] == "transformer_blocks.2.attn.to_q.weight"
    assert len(set(weights.values())) == len(ours)
    assert {key: ours[key].shape for key in ours} == {key: theirs[weights[key]].shape for key in ours}


def test_a_kept_block_is_compared_with_the_end_of_the_run_that_it_takes_over(teacher, student):
    """The run after dual-stream block 2 reaches into the single-stream ones. The text after the last is not read."""
    pairs = PLAN.feature_pairs(teacher.config)
    assert pairs == (
        ("transformer_blocks.0", "transformer_blocks.1"),
        ("transformer_blocks.0[1]", "transformer_blocks.1[1]"),
        ("transformer_blocks.1", "single_transformer_blocks.0"),
        ("transformer_blocks.1[1]", "single_transformer_blocks.0[1]"),
        ("single_transformer_blocks.0", "single_transformer_blocks.2"),
        ("single_transformer_blocks.0[1]", "single_transformer_blocks.2[1]"),
        ("single_transformer_blocks.1", "single_transformer_blocks.3"),
        ("single_transformer_blocks.1[1]", "single_transformer_blocks.3[1]"),
        ("single_transformer_blocks.2", "single_transformer_blocks.4"),
    )


def test_dropped_blocks_are_counted_whole(teacher, student):
    sizes = {key: tensor.numel() for key, tensor in teacher.state_dict().items()}
    dropped = PLAN.dropped_blocks(sizes, PLAN.weight_map(student.state_dict()).values())
    assert set(dropped) == {
        *("transformer_blocks.1", "transformer_blocks.3", "single_transformer_blocks.0", "single_transformer_blocks.2")
    }
    assert sum(dropped.values()) == teacher.num_parameters() - student.num_parameters()


def test_it_survives_json():
    assert PruningPlan.from_json_string(PLAN.to_json_string()) == PLAN


@pytest.mark.parametrize(
    ("transformer", "blocks", "message"),
    [
        (
            "WanTransformer2DModel",
            {"blocks": (0,)},
            "`transformer` names a class of diffusers, not 'WanTransformer2DModel'",
        ),
        (
            HUNYUAN_VIDEO,
            {"transformer_blocks": (0,), "single_transformer_blocks": (0,), "blocks": (0,)},
            "has the lists of blocks transformer_blocks, single_transformer_blocks, and no 'blocks'",
        ),
        (HUNYUAN_VIDEO, {"transformer_blocks": (), "single_transformer_blocks": (0,)}, "is empty"),
        (HUNYUAN_VIDEO, {"transformer_blocks": (-1,), "single_transformer_blocks": (0,)}, "counted from 0"),
    ],
)
def test_a_plan_that_fits_no_teacher_is_refused(transformer, blocks, message):
    with pytest.raises(PruningPlanError, match=message):
        TransformerPruningPlan("wrong", transformer, blocks)


def test_a_config_that_does_not_say_how_many_blocks_there_are_is_refused():
    with pytest.raises(PruningPlanError, match="counts its transformer_blocks by `num_layers`; this one says None"):
        PLAN.feature_pairs({"num_single_layers": 5})


@pytest.mark.parametrize("plan", [VDMINI_HY, PAPER_LITERAL], ids=lambda plan: plan.name)
def test_hunyuan_video_has_the_paper_s_numbers_of_blocks(plan):
    with torch.device("meta"):
        teacher = HunyuanVideoTransformer3DModel()
        student = HunyuanVideoTransformer3DModel.from_config(plan.student_config(teacher.config))
    assert (len(student.transformer_blocks), len(student.single_transformer_blocks)) == (12, 28)
    assert teacher.num_parameters() == 12_821_012_544
    assert student.num_parameters() == 8_403_260_480
