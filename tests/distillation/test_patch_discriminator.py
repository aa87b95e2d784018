import pytest
import torch

from vdmini_diffusers.distillation.critics import Critic, CriticSettings
from vdmini_diffusers.distillation.patch_discriminator import SMALLEST, PatchDiscriminator


@pytest.mark.parametrize(("kind", "num_parameters"), [("per_frame", 2_766_529), ("3d", 8_294_081)])
def test_its_size_is_patch_gan_s(kind, num_parameters):
    # pix2pix's, without the 3072 weights of its three further input channels, and with the 896 biases that batch norm
    # makes superfluous: 2,768,705 - 3,072 + 896. In 3D, all but the 2,753 vectors is three times as many.
    with torch.device("meta"):
        discriminator = PatchDiscriminator(kind)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == num_parameters


@pytest.mark.parametrize("kind", ["per_frame", "3d"])
@pytest.mark.parametrize("frames", [1, 4])
def test_it_gives_logits_of_patches_for_any_number_of_frames(kind, frames):
    discriminator = PatchDiscriminator(kind, width=8)
    (logits,) = discriminator({"clips": torch.randn(2, frames, 3, 32, 40, dtype=torch.bfloat16)})
    assert logits.shape == (2, frames * 2 * 3) and logits.dtype == torch.float32


@pytest.mark.parametrize(("kind", "sees_others"), [("per_frame", False), ("3d", True)])
def test_only_the_3d_one_sees_the_frames_before_and_after(kind, sees_others):
    discriminator = PatchDiscriminator(kind, width=8)
    clips = torch.randn(1, 3, 3, 32, 32, requires_grad=True)
    (logits,) = discriminator({"clips": clips})
    logits.view(3, -1)[1].sum().backward()
    assert clips.grad[0, 1].abs().sum() > 0
    assert (clips.grad[0, [0, 2]].abs().sum() > 0) == sees_others


@pytest.mark.parametrize("kind", ["per_frame", "3d"])
def test_each_logit_sees_a_patch_of_70_pixels(kind):
    discriminator = PatchDiscriminator(kind, width=4)
    # Group norms see whole pictures, which is not what is asked here.
    discriminator.layers = torch.nn.Sequential(
        *(layer for layer in discriminator.layers if not isinstance(layer, torch.nn.GroupNorm))
    )
    clips = torch.randn(1, 1, 3, 128, 128, requires_grad=True)
    (logits,) = discriminator({"clips": clips})
    logits.view(14, 14)[7, 7].backward()
    seen = clips.grad.abs().sum(dim=(0, 1, 2)).nonzero()
    assert (seen.max(dim=0).values - seen.min(dim=0).values + 1).tolist() == [70, 70]


def test_pictures_that_leave_no_patch_are_refused():
    PatchDiscriminator.check_size((SMALLEST, SMALLEST))
    (logits,) = PatchDiscriminator(width=4)({"clips": torch.randn(1, 1, 3, SMALLEST, SMALLEST)})
    assert logits.numel() == 1
    with pytest.raises(ValueError, match="needs 24 pixels or more"):
        PatchDiscriminator.check_size((64, SMALLEST - 1))


def test_as_a_critic_it_learns_to_tell_two_kinds_of_clips_apart():
    heads = PatchDiscriminator(width=8)
    optimizer = torch.optim.AdamW(heads.parameters(), 1e-3)
    critic = Critic("adversarial", heads, optimizer, CriticSettings(generator_loss="hinge"))
    generator = torch.Generator().manual_seed(0)

    def clips():
        smooth = torch.randn(2, 2, 3, 1, 1, generator=generator).expand(2, 2, 3, 32, 32)
        return {"clips": smooth}, {"clips": smooth + 0.3 * torch.randn(smooth.shape, generator=generator)}

    def loss_for_heads():
        real, fake = clips()
        return critic.loss_for_heads(fake, [real]).loss

    before = loss_for_heads().item()
    for _ in range(30):
        loss_for_heads().backward()
        critic.step(1.0)
    real, fake = clips()
    assert critic.loss_for_heads(fake, [real]).loss.item() < 0.5 * before
    assert critic.loss_for_student(fake, []) > critic.loss_for_student(real, [])
