"""The pairs of features that distillation compares have equal shapes, measured on the models."""

import copy
from contextlib import ExitStack

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from tiny import TINY_UNET_CONFIG, randomise, student_of, tiny_teacher_unet, tiny_unet_inputs
from tiny_text_to_video import TEACHER_CONFIG, tiny_t2v_inputs, tiny_t2v_teacher

from vdmini_diffusers.pruning import VDMINI_UNET, PruningPlanError, UNetPruningPlan


def test_the_paper_s_plan_has_six_pairs_the_third_of_the_last_attention():
    assert VDMINI_UNET.feature_pairs(tiny_teacher_unet().config) == (
        ("down_blocks.0", "down_blocks.0"),
        ("down_blocks.1", "down_blocks.1"),
        ("down_blocks.2.attentions.1", "down_blocks.2.attentions.1"),
        ("up_blocks.0", "up_blocks.1"),
        ("up_blocks.1", "up_blocks.2"),
        ("up_blocks.2", "up_blocks.3"),
    )


def test_keeping_everything_compares_every_stage_with_itself():
    config = tiny_teacher_unet().config
    names = [f"down_blocks.{i}" for i in range(4)] + ["mid_block"] + [f"up_blocks.{i}" for i in range(4)]
    assert UNetPruningPlan.keep_everything(config).feature_pairs(config) == tuple((name, name) for name in names)


def record_outputs(model, names, inputs):
    outputs = {}

    def record(name):
        def hook(module, args, output):
            # Down stages and attentions return tuples, the hidden states first.
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for name in names:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(record(name)))
        model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return [outputs[name] for name in names]


PLAIN_INSIDE = {
    **TINY_UNET_CONFIG,
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) + ("DownBlockSpatioTemporal",) * 3,
    "up_block_types": ("UpBlockSpatioTemporal",) * 3 + ("CrossAttnUpBlockSpatioTemporal",),
}


@pytest.mark.parametrize(
    ("config", "plan", "num_pairs"),
    [
        (TINY_UNET_CONFIG, VDMINI_UNET, 6),
        (TINY_UNET_CONFIG, UNetPruningPlan.keep_everything(tiny_teacher_unet().config), 9),
        (TINY_UNET_CONFIG, UNetPruningPlan("one stage", {0: (1,)}, False, {3: (0, 1)}), 2),
        (
            TINY_UNET_CONFIG,
            UNetPruningPlan("mid", {0: (0,), 1: (0,), 2: (0,)}, True, {1: (0, 2), 2: (0, 2), 3: (0, 2)}),
            6,
        ),
        (
            TINY_UNET_CONFIG,
            UNetPruningPlan(
                "thin", {0: (0,), 1: (0,), 2: (0,), 3: (0,)}, False, {0: (0, 1), 1: (0, 2), 2: (0, 2), 3: (0, 1)}
            ),
            8,
        ),
        (PLAIN_INSIDE, VDMINI_UNET, 6),
    ],
    ids=["paper", "keep everything", "one stage", "mid after three", "fewer layers", "no attention inside"],
)
def test_both_sides_of_every_pair_have_the_same_shape(config, plan, num_pairs):
    teacher = randomise(UNetSpatioTemporalConditionModel(**config)).eval()
    student = student_of(teacher, plan)
    pairs = plan.feature_pairs(teacher.config)
    assert len(pairs) == num_pairs
    inputs = tiny_unet_inputs(batch=2, height=12, width=20)
    ours = record_outputs(student, [name for name, _ in pairs], inputs)
    theirs = record_outputs(teacher, [name for _, name in pairs], inputs)
    assert [x.shape for x in ours] == [x.shape for x in theirs]


def test_a_student_that_is_its_teacher_has_equal_features():
    teacher = randomise(tiny_teacher_unet()).eval()
    plan = UNetPruningPlan.keep_everything(teacher.config)
    pairs = plan.feature_pairs(teacher.config)
    ours = record_outputs(student_of(teacher, plan), [name for name, _ in pairs], tiny_unet_inputs())
    theirs = record_outputs(copy.deepcopy(teacher), [name for _, name in pairs], tiny_unet_inputs())
    assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))


def test_a_plan_that_does_not_fit_has_no_pairs():
    with pytest.raises(PruningPlanError):
        UNetPruningPlan("gap", {1: (0,)}, False, {2: (0, 1)}).feature_pairs(tiny_teacher_unet().config)


class TestTextToVideo:
    def test_the_third_pair_is_of_the_last_temporal_attention(self):
        assert VDMINI_UNET.feature_pairs(TEACHER_CONFIG) == (
            ("down_blocks.0", "down_blocks.0"),
            ("down_blocks.1", "down_blocks.1"),
            ("down_blocks.2.temp_attentions.1", "down_blocks.2.temp_attentions.1"),
            ("up_blocks.0", "up_blocks.1"),
            ("up_blocks.1", "up_blocks.2"),
            ("up_blocks.2", "up_blocks.3"),
        )

    @pytest.mark.parametrize("plain_inside", [False, True])
    def test_both_sides_of_every_pair_have_the_same_shape(self, plain_inside):
        plain = {
            "down_block_types": ("CrossAttnDownBlock3D",) + ("DownBlock3D",) * 3,
            "up_block_types": ("UpBlock3D",) * 3 + ("CrossAttnUpBlock3D",),
        }
        teacher = tiny_t2v_teacher(**(plain if plain_inside else {}))
        student = student_of(teacher, VDMINI_UNET)
        pairs = VDMINI_UNET.feature_pairs(teacher.config)
        inputs = tiny_t2v_inputs(frames=2, height=12, width=20)
        ours = record_outputs(student, [name for name, _ in pairs], inputs)
        theirs = record_outputs(teacher, [name for _, name in pairs], inputs)
        assert len(pairs) == 6 and [x.shape for x in ours] == [x.shape for x in theirs]

    def test_a_student_that_is_its_teacher_has_equal_features(self):
        teacher = tiny_t2v_teacher()
        plan = UNetPruningPlan.keep_everything(teacher.config)
        pairs = plan.feature_pairs(teacher.config)
        assert len(pairs) == 9
        ours = record_outputs(student_of(teacher, plan), [name for name, _ in pairs], tiny_t2v_inputs(batch=1))
        theirs = record_outputs(teacher, [name for _, name in pairs], tiny_t2v_inputs(batch=1))
        assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
