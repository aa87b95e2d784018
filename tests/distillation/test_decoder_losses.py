"""Losses of a VAE's decoder at points that are worked out by hand."""

import sys
import types

import pytest
import torch
from torch import nn

from vdmini_diffusers.distillation.decoder_losses import lpips_distance, perceptual_loss, pixel_loss, stage_loss
from vdmini_diffusers.distillation.losses import MAX_ADAPTIVE_WEIGHT, adaptive_weight


def test_pixel_loss_is_the_mean_absolute_or_squared_difference():
    decoded, target = torch.zeros(1, 2, 3, 2, 2), torch.zeros(1, 2, 3, 2, 2)
    target[0, 0, 0, 0] = 3.0  # two values of 24
    assert pixel_loss(decoded, target, "l1").item() == pytest.approx(6 / 24)
    assert pixel_loss(decoded, target, "l2").item() == pytest.approx(18 / 24)


def test_the_perceptual_loss_compares_each_frame_with_its_own():
    decoded, target = torch.randn(2, 3, 3, 4, 5), torch.randn(2, 3, 3, 4, 5)

    def distance(a, b):
        assert a.shape == (6, 3, 4, 5)
        return (a - b).square().sum(dim=(1, 2, 3))

    expected = (decoded - target).square().sum() / 6
    torch.testing.assert_close(perceptual_loss(decoded, target, distance), expected)


def test_the_stage_loss_compares_kept_channels_relative_to_the_teacher_s_size():
    teacher = {"up": torch.randn(2, 6, 3, 3), "mid": 100 * torch.randn(2, 4, 3, 3)}
    pairs = (("a", "up", (1, 4)), ("b", "mid", (0, 1, 3)))
    kept = {"a": teacher["up"][:, [1, 4]], "b": teacher["mid"][:, [0, 1, 3]]}
    assert stage_loss(kept, teacher, pairs).item() == 0
    assert stage_loss({name: 3 * value for name, value in kept.items()}, teacher, pairs).item() == pytest.approx(4)
    with pytest.raises(ValueError, match="does not belong"):
        stage_loss({"a": teacher["up"], "b": kept["b"]}, teacher, pairs)


def test_the_adaptive_weight_makes_both_gradients_equally_long_at_the_last_layer():
    torch.manual_seed(3)
    layer = nn.Linear(4, 3)
    output = layer(torch.randn(5, 4))
    reconstruction, adversarial = output.square().mean(), -0.01 * output.mean()
    weight = adaptive_weight(reconstruction, adversarial, layer.weight)
    assert not weight.requires_grad
    gradients = [
        torch.autograd.grad(loss, layer.weight, retain_graph=True)[0].norm()
        for loss in (reconstruction, weight * adversarial)
    ]
    assert gradients[1].item() == pytest.approx(gradients[0].item(), rel=0.05)  # 1e-4 is added to the divisor
    assert adaptive_weight(1e9 * reconstruction, adversarial, layer.weight).item() == MAX_ADAPTIVE_WEIGHT


def test_without_lpips_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)  # as where it is not installed
    with pytest.raises(ImportError, match=r"pip install -e '\.\[lpips\]'.*--perceptual_loss none"):
        lpips_distance()


def test_without_its_pretrained_network_the_error_names_the_options(monkeypatch):
    def no_network(**kwargs):
        raise OSError("<urlopen error>")

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=no_network))
    with pytest.raises(RuntimeError, match=r"pretrained alex .*urlopen.*--lpips_random_trunk.*--perceptual_loss none"):
        lpips_distance("alex")
