"""A student in memory computes what its teacher does with module list entries deleted, and takes no memory."""

import pytest
import torch
from tiny import assert_close, cut_by_hand, output_of, randomise, tiny_teacher_unet
from tiny_video_transformers import TRANSFORMERS, outputs, tiny_transformer
from tiny_video_transformers import cut_by_hand as cut_blocks_by_hand

from vdmini_diffusers.models import VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.pruning.in_memory import student_of
from vdmini_diffusers.pruning.plans import PruningPlanError, TransformerPruningPlan
from vdmini_diffusers.pruning.presets import BK_SDM_BASE, VDMINI_UNET


@pytest.mark.parametrize("plan", [VDMINI_UNET, BK_SDM_BASE], ids=lambda plan: plan.name)
def test_a_u_net_is_that_which_is_cut_by_hand_with_the_tensors_of_its_teacher(plan):
    teacher = randomise(tiny_teacher_unet()).eval()
    student = student_of(teacher, plan, VDMiniUNetSpatioTemporalConditionModel)
    theirs = {tensor.data_ptr() for tensor in teacher.state_dict().values()}
    assert {tensor.data_ptr() for tensor in student.state_dict().values()} < theirs
    assert not any(parameter.requires_grad for parameter in student.parameters())
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert_close(output_of(student), output_of(cut_by_hand(teacher, plan)))


@pytest.mark.parametrize("name", [f"{name}Transformer3DModel" for name in ("Wan", "HunyuanVideo", "CogVideoX")])
def test_a_transformer_has_its_buffers_too(name):
    teacher, tiny = tiny_transformer(name), TRANSFORMERS[name]
    student = student_of(teacher, TransformerPruningPlan("tiny", name, tiny.kept), type(teacher))
    found = outputs(student, tiny)
    expected = outputs(cut_blocks_by_hand(teacher, tiny), tiny)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_plan_that_does_not_fit_is_refused():
    plan = TransformerPruningPlan("tiny", "WanTransformer3DModel", {"blocks": (0, 99)})
    teacher = tiny_transformer("WanTransformer3DModel")
    with pytest.raises(PruningPlanError):
        student_of(teacher, plan, type(teacher))
