import pytest
import torch
from tiny import randomise, student_of, tiny_teacher_unet, tiny_unet_inputs

from vdmini_diffusers.distillation.feature_taps import FeatureTaps, FirstFeatures
from vdmini_diffusers.pruning import PLANS, VDMINI_UNET


@pytest.fixture(scope="module")
def teacher():
    return randomise(tiny_teacher_unet()).eval()


def test_features_are_what_the_modules_put_out(teacher):
    with torch.no_grad(), FeatureTaps(teacher, ["conv_in", "conv_out"]) as features:
        sample = teacher(*tiny_unet_inputs()).sample
    assert torch.equal(features["conv_out"], sample.flatten(0, 1))
    assert features["conv_in"].shape == (2, 32, 8, 8)


def test_blocks_that_return_tuples_give_their_hidden_states(teacher):
    with torch.no_grad(), FeatureTaps(teacher, ["down_blocks.0"]) as features:
        teacher(*tiny_unet_inputs())
    assert features["down_blocks.0"].shape == (2, 32, 4, 4)  # after the downsampler


@pytest.mark.parametrize("plan", [plan for plan in PLANS.values() if plan.kind == "unet"], ids=lambda plan: plan.name)
def test_the_pairs_of_every_plan_have_equal_shapes(teacher, plan):
    student = student_of(teacher, plan)
    pairs = plan.feature_pairs(teacher.config)
    with torch.no_grad():
        with FeatureTaps(teacher, [name for _, name in pairs]) as of_teacher:
            teacher(*tiny_unet_inputs())
        with FeatureTaps(student, [name for name, _ in pairs]) as of_student:
            student(*tiny_unet_inputs())
    assert [of_student[s].shape for s, _ in pairs] == [of_teacher[t].shape for _, t in pairs]


def test_stopping_leaves_the_rest_of_the_model_out_and_gives_the_same_features(teacher):
    names = [f"down_blocks.{i}" for i in range(4)]
    with torch.no_grad():
        with FeatureTaps(teacher, names) as whole:
            teacher(*tiny_unet_inputs())
        with FeatureTaps(teacher, ["up_blocks.0"]) as beyond, FirstFeatures(teacher, names) as stopped:
            teacher(*tiny_unet_inputs())
    assert not beyond
    assert all(torch.equal(whole[name], stopped[name]) for name in names)


def test_gradients_reach_the_input_through_a_frozen_model(teacher):
    sample, *rest = tiny_unet_inputs()
    teacher.requires_grad_(False)
    with FirstFeatures(teacher, ["down_blocks.3"]) as features:
        teacher(sample.requires_grad_(), *rest)
    features["down_blocks.3"].sum().backward()
    assert sample.grad.abs().sum() > 0


def test_the_model_is_left_as_it_was_also_after_an_error(teacher):
    with pytest.raises(RuntimeError, match="on purpose"), FirstFeatures(teacher, ["conv_in"]):
        raise RuntimeError("on purpose")
    assert not teacher.conv_in._forward_hooks
    with torch.no_grad():
        teacher(*tiny_unet_inputs())


def test_an_unknown_name_is_refused(teacher):
    with pytest.raises(ValueError, match=r"UNetSpatioTemporalConditionModel has no module 'down_blocks\.9'"):
        FeatureTaps(teacher, ["down_blocks.9"])


def test_features_of_a_student_with_gradient_checkpointing_carry_gradients(teacher):
    student = student_of(teacher, VDMINI_UNET).train()
    student.enable_gradient_checkpointing()
    with FeatureTaps(student, ["down_blocks.2.attentions.1", "up_blocks.0"]) as features:
        student(*tiny_unet_inputs())
    torch.stack([feature.square().mean() for feature in features.values()]).sum().backward()
    assert student.conv_in.weight.grad.abs().sum() > 0
