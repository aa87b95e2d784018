"""Layers that are computed again in the backward pass give the same gradients, and hold less in between."""

import pytest
import torch
from tiny import randomise, student_of, tiny_teacher_unet, tiny_unet_inputs
from tiny_text_to_video import tiny_t2v_inputs, tiny_t2v_teacher

from vdmini_diffusers.distillation.feature_taps import FirstFeatures
from vdmini_diffusers.distillation.recomputation import recompute_layers
from vdmini_diffusers.evaluation.live_bytes import LiveBytes
from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.families.videocrafter import VIDEOCRAFTER
from vdmini_diffusers.pruning import VDMINI_UNET


def student_of_svd(seed: int = 0):
    return randomise(student_of(randomise(tiny_teacher_unet()), VDMINI_UNET), seed).train()


def gradients(model, inputs) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # of dropout
    (model(**inputs) if isinstance(inputs, dict) else model(*inputs)).sample.square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", [SVD, VIDEOCRAFTER], ids=lambda family: family.name)
def test_gradients_are_bit_equal(family):
    if family is SVD:
        inputs, student = tiny_unet_inputs(), student_of_svd
    else:
        inputs, student = tiny_t2v_inputs(), lambda: randomise(tiny_t2v_teacher()).train()
    expected = gradients(student(), inputs)
    model = student()
    names = set(model.state_dict())
    recompute_layers(model, family.recomputed_layers)
    found = gradients(model, inputs)
    assert set(model.state_dict()) == names
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def held_after_forward(model) -> int:
    """Bytes that wait for the backward pass."""
    with LiveBytes(list(model.parameters())) as counter:
        output = model(*tiny_unet_inputs(frames=4, height=16, width=16)).sample
    assert output.requires_grad
    return counter.live


def test_a_fraction_of_what_diffusers_checkpointing_holds_is_held():
    plain, by_diffusers, by_layer = (student_of_svd() for _ in range(3))
    by_diffusers.enable_gradient_checkpointing()
    recompute_layers(by_layer, SVD.recomputed_layers)
    held = [held_after_forward(model) for model in (plain, by_diffusers, by_layer)]
    assert held[2] < 0.3 * held[1] < 0.3 * held[0]


@pytest.mark.parametrize("taps", SVD.critic_taps.values(), ids=SVD.critic_taps.keys())
def test_features_of_a_forward_pass_that_ends_early_have_the_same_gradient(taps):
    gradients, ran = [], []
    for again in (False, True):
        backbone = randomise(tiny_teacher_unet()).eval().requires_grad_(False)
        backbone.mid_block, backbone.up_blocks = None, torch.nn.ModuleList()  # as of a critic
        if again:
            recompute_layers(backbone, SVD.recomputed_layers)
        backbone.down_blocks[0].resnets[0].register_forward_hook(lambda *_, again=again: ran.append(again))
        sample, *others = tiny_unet_inputs()
        sample.requires_grad_()
        with FirstFeatures(backbone, taps) as features:
            backbone(sample, *others)
        assert list(features) == list(taps)
        torch.stack([feature.square().mean() for feature in features.values()]).sum().backward()
        gradients.append(sample.grad)
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0
    assert ran == [False, True]  # hooks of a layer do not run again


def test_without_gradients_nothing_changes():
    model = student_of_svd()
    with torch.no_grad():
        expected = model(*tiny_unet_inputs()).sample
        recompute_layers(model, SVD.recomputed_layers)
        assert torch.equal(model(*tiny_unet_inputs()).sample, expected)
