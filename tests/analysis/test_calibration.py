"""The losses of Taylor's importance: the data's reconstruction, at every noise level of the objective."""

import pytest
import torch
from accelerate import cpu_offload
from tiny import randomise, tiny_teacher_unet
from torch.utils.data import TensorDataset

from vdmini_diffusers.analysis.calibration import reconstruction_losses
from vdmini_diffusers.distillation.losses import pseudo_huber_loss
from vdmini_diffusers.distillation.noise import karras_sigmas
from vdmini_diffusers.families.svd import SVD


class Clips(TensorDataset):
    def __init__(self, num_clips: int):
        generator = torch.Generator().manual_seed(0)
        self.latents = torch.randn(num_clips, 2, 4, 8, 8, generator=generator)

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index):
        return {
            "latents": self.latents[index],
            "image_latents": self.latents[index][0],
            "image_embeds": torch.ones(1, 16),
            "added_time_ids": torch.zeros(3),
            "caption": "not a tensor",
        }


def test_every_clip_is_denoised_from_every_level():
    levels, clips = [], Clips(3)

    class Zero(torch.nn.Module):
        """Predicts zero, so that `D(x; sigma) = x / (sigma^2 + 1)`."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, latents, timesteps, *args, **kwargs):
            levels.append((len(latents), (4 * timesteps).exp()))
            return (latents[:, :, :4] * self.weight,)

    losses = list(reconstruction_losses(SVD, clips, num_clips=3, batch_size=2)(Zero()))
    sigmas = karras_sigmas(4)[:-1].float()
    assert [count for count, _ in levels] == [2, 2, 2, 1, 1, 1]
    for (_, found), expected in zip(levels, [*sigmas, *sigmas], strict=True):
        torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-4, atol=0)
    # At sigma 700 nothing of the noisy latents is left: the loss is the clips' own size.
    expected = 0.1 * pseudo_huber_loss(torch.zeros(2, 2, 4, 8, 8), clips.latents[:2])
    torch.testing.assert_close(losses[0], expected, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_a_denoiser_whose_weights_are_offloaded_has_the_same_losses():
    unet, device = randomise(tiny_teacher_unet()), torch.device("cpu")
    whole = list(reconstruction_losses(SVD, Clips(1), num_clips=1)(unet))
    cpu_offload(unet, device, offload_buffers=True)
    assert unet.conv_in.weight.is_meta
    losses = list(reconstruction_losses(SVD, Clips(1), num_clips=1, device=device)(unet))
    torch.testing.assert_close(losses, whole, rtol=0, atol=0)


def test_the_gradient_at_a_teacher_is_not_zero():
    unet = randomise(tiny_teacher_unet())
    for loss in reconstruction_losses(SVD, Clips(1), num_clips=1)(unet):
        loss.backward()
    assert unet.conv_in.weight.grad.abs().min() > 0


@pytest.mark.parametrize("num_clips", [0, 4])
def test_clips_that_are_not_there(num_clips):
    with pytest.raises(ValueError, match="between 1 and the 3 clips"):
        reconstruction_losses(SVD, Clips(3), num_clips)
