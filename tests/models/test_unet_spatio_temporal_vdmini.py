"""The I2V student is the paper's network, and computes what the teacher without the removed blocks computes."""

import copy
import inspect
import pickle

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import UNetSpatioTemporalConditionModel
from tiny import cut_by_hand, randomise, student_of, tiny_teacher_unet, tiny_unet_inputs

from vdmini_diffusers import VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.pruning import VDMINI_UNET, UNetPruningPlan


PLANS = {
    "paper": VDMINI_UNET,
    "keep everything": UNetPruningPlan.keep_everything(tiny_teacher_unet().config),
    "only without mid block": UNetPruningPlan(
        "no-mid", dict.fromkeys(range(4), (0, 1)), False, dict.fromkeys(range(4), (0, 1, 2))
    ),
    "only fewer layers": UNetPruningPlan(
        "thin", {0: (0,), 1: (0,), 2: (0,), 3: (0,)}, True, {0: (0, 1), 1: (0, 2), 2: (0, 2), 3: (0, 1)}
    ),
    "mid block after three stages": UNetPruningPlan(
        "short", {0: (0,), 1: (0, 1), 2: (0,)}, True, {1: (0, 2), 2: (0, 1, 2), 3: (1, 2)}
    ),
    "one stage": UNetPruningPlan("stub", {0: (1,)}, False, {3: (0, 1)}),
}


@pytest.fixture(scope="module")
def full_size_teacher():
    with init_empty_weights():
        return UNetSpatioTemporalConditionModel()  # without arguments it is SVD's


@pytest.fixture(scope="module")
def full_size_student():
    with init_empty_weights():
        return VDMiniUNetSpatioTemporalConditionModel()


def test_the_paper_s_student_has_939_884_186_of_the_teacher_s_1_524_623_082_parameters(
    full_size_teacher, full_size_student
):
    assert full_size_teacher.num_parameters() == 1_524_623_082
    assert full_size_student.num_parameters() == 939_884_186


def test_built_without_arguments_it_is_what_the_paper_s_plan_makes_of_svd(full_size_teacher, full_size_student):
    config = VDMINI_UNET.student_config({**full_size_teacher.config, "num_frames": 14})
    ours = {key: value for key, value in full_size_student.config.items() if not key.startswith("_")}
    assert ours == {**config, "layer_widths": None}


def test_all_898_tensors_come_from_different_teacher_tensors_of_the_same_shape(full_size_teacher, full_size_student):
    student, teacher = full_size_student.state_dict(), full_size_teacher.state_dict()
    keys = VDMINI_UNET.weight_map(student)
    assert len(keys) == len(set(keys.values())) == 898
    assert all(student[key].shape == teacher[source].shape for key, source in keys.items())


def test_the_forward_pass_is_the_parent_s():
    assert VDMiniUNetSpatioTemporalConditionModel.forward is UNetSpatioTemporalConditionModel.forward


def test_it_takes_the_parent_s_arguments_and_two_more():
    parent = inspect.signature(UNetSpatioTemporalConditionModel.__init__).parameters
    ours = inspect.signature(VDMiniUNetSpatioTemporalConditionModel.__init__).parameters
    assert list(ours) == [*parent, "mid_block_type", "layer_widths"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
@torch.no_grad()
def test_the_student_is_bit_equal_to_the_teacher_cut_by_hand(plan, dtype, teacher_unet):
    teacher = teacher_unet.to(dtype)
    student = student_of(teacher, plan)
    by_hand = cut_by_hand(copy.deepcopy(teacher), plan)
    # Latents that the stages halve evenly; not square; not divisible by 8; odd. A CPU is slow in bfloat16.
    shapes = ({}, {"batch": 2, "height": 8, "width": 16}, {"height": 12, "width": 20}, {"height": 9, "width": 15})
    for shape in shapes if dtype == torch.float32 else shapes[::3]:
        inputs = [x.to(dtype) for x in tiny_unet_inputs(**shape, frames=3, tokens=2)]
        expected = by_hand(*inputs).sample
        assert expected.isfinite().all() and expected.std() > 0.01
        assert torch.equal(student(*inputs).sample, expected), shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@torch.no_grad()
def test_a_plan_that_keeps_everything_gives_the_untouched_teacher(dtype, teacher_unet):
    teacher = teacher_unet.to(dtype)
    student = student_of(teacher, UNetPruningPlan.keep_everything(teacher.config))
    assert student.state_dict().keys() == teacher.state_dict().keys()
    for shape in ({"batch": 2, "tokens": 2}, {"height": 12, "width": 20}):
        inputs = [x.to(dtype) for x in tiny_unet_inputs(**shape)]
        assert torch.equal(student(*inputs).sample, teacher(*inputs).sample)


@torch.no_grad()
def test_another_plan_gives_another_output(teacher_unet):
    # A control: the equalities above are not those of a network whose blocks do not matter.
    inputs = tiny_unet_inputs(tokens=2)
    outputs = [student_of(teacher_unet, plan)(*inputs).sample for plan in PLANS.values()]
    assert all((outputs[0] - other).abs().max() > 0.01 for other in outputs[1:])


def test_every_tensor_of_the_student_has_its_part_in_the_output(teacher_unet):
    # A control: one that had none could hold anything in the tests above.
    student = student_of(teacher_unet, VDMINI_UNET)
    student(*tiny_unet_inputs(tokens=2)).sample.square().sum().backward()
    assert [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_gradients_equal_those_of_the_teacher_cut_by_hand(teacher_unet):
    student = student_of(teacher_unet, VDMINI_UNET)
    by_hand = cut_by_hand(teacher_unet, VDMINI_UNET)
    for model in (student, by_hand):
        model(*tiny_unet_inputs(batch=2, tokens=2)).sample.square().sum().backward()
    expected = dict(by_hand.named_parameters())
    assert all(torch.equal(p.grad, expected[name].grad) for name, p in student.named_parameters())


def test_a_mid_block_of_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"must be None or 'UNetMidBlockSpatioTemporal', not 'UNetMidBlock2D'"):
        VDMiniUNetSpatioTemporalConditionModel(mid_block_type="UNetMidBlock2D")


@torch.no_grad()
def test_copies_and_pickles_are_the_same_model_and_independent(teacher_unet):
    student = student_of(teacher_unet, VDMINI_UNET)
    inputs = tiny_unet_inputs()
    expected = student(*inputs).sample
    for copied in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        assert torch.equal(copied(*inputs).sample, expected)
        assert copied.config == student.config
        randomise(copied, seed=1)
        assert torch.equal(student(*inputs).sample, expected)
