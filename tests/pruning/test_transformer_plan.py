"""Plans of video transformers, on HunyuanVideo's class: dual-stream blocks, then single-stream ones."""

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel

from vdmini_diffusers.pruning import PruningPlan, PruningPlanError, TransformerPruningPlan


PLAN = TransformerPruningPlan("tiny", {"transformer_blocks": (0, 2), "single_transformer_blocks": (1, 3, 4)})


@pytest.fixture(scope="module")
def teacher():
    with torch.device("meta"):
        return HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=3,
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


def test_a_kept_block_is_compared_with_the_last_one_whose_work_it_takes_over(teacher, student):
    pairs = PLAN.feature_pairs(teacher.config)
    assert pairs == (
        ("transformer_blocks.0", "transformer_blocks.1"),
        ("transformer_blocks.1", "transformer_blocks.2"),
        ("single_transformer_blocks.0", "single_transformer_blocks.2"),
        ("single_transformer_blocks.1", "single_transformer_blocks.3"),
        ("single_transformer_blocks.2", "single_transformer_blocks.4"),
    )
    for ours, theirs in pairs:
        assert type(student.get_submodule(ours)) is type(teacher.get_submodule(theirs))


def test_dropped_blocks_are_counted_whole(teacher, student):
    sizes = {key: tensor.numel() for key, tensor in teacher.state_dict().items()}
    dropped = PLAN.dropped_blocks(sizes, PLAN.weight_map(student.state_dict()).values())
    assert set(dropped) == {"transformer_blocks.1", "single_transformer_blocks.0", "single_transformer_blocks.2"}
    assert sum(dropped.values()) == teacher.num_parameters() - student.num_parameters()


def test_it_survives_json():
    assert PruningPlan.from_json_string(PLAN.to_json_string()) == PLAN


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"transformer_blocks": (0, 3), "single_transformer_blocks": (0,)}, "has 3 blocks, of which 3 is not one"),
        ({"transformer_blocks": (0,)}, "does not say which blocks counted by `num_single_layers` stay"),
        ({"layers": (0,)}, "'layers' is no list of blocks"),
        (
            {"transformer_blocks": (0,), "single_transformer_blocks": (0,), "blocks": (0,)},
            "names blocks and transformer_blocks, of which a transformer has one",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(teacher, blocks, message):
    with pytest.raises(PruningPlanError, match=message):
        TransformerPruningPlan("wrong", blocks).student_config(teacher.config)


def test_a_plan_that_calls_the_blocks_otherwise_than_the_teacher_is_refused(teacher):
    """`blocks` are Wan's; both are counted by `num_layers`."""
    plan = TransformerPruningPlan("wan", {"blocks": (0, 2), "single_transformer_blocks": (0,)})
    with torch.device("meta"):
        student = HunyuanVideoTransformer3DModel.from_config(plan.student_config(teacher.config))
    with pytest.raises(PruningPlanError, match="The network has no 'blocks'"):
        plan.weight_map(student.state_dict())
