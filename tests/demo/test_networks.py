"""The demo teachers' networks before training."""

import pytest
import torch
from diffusers import UNet3DConditionModel, UNetSpatioTemporalConditionModel

from vdmini_diffusers.demo.networks import (
    build_i2v_unet,
    build_i2v_vae,
    build_image_encoder,
    build_t2v_unet,
    build_text_encoder,
    build_tokenizer,
    frame_by_frame,
    grow_vae,
)
from vdmini_diffusers.demo.vae_training import InnerStage, decode, feature_loss, features_of
from vdmini_diffusers.pruning import VDMINI_UNET


@pytest.fixture(scope="module")
def grown():
    """A VAE around whose inner stage the layers of a smaller one stand, and the smaller one; all weights random."""
    torch.manual_seed(0)
    small, vae = build_i2v_vae(3).eval(), build_i2v_vae().eval()
    with torch.no_grad():
        for parameter in (*small.parameters(), *vae.parameters()):
            parameter.add_(0.02 * torch.randn_like(parameter))
    grow_vae(vae, small)
    return vae, small


@pytest.fixture
def frames():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_a_vae_starts_as_a_thumbnail(frames):
    smooth = torch.nn.functional.interpolate(frames[..., :3, :3], size=(64, 64), mode="bicubic").clamp(-1, 1)
    for num_stages, size in ((3, 16), (4, 8)):
        vae = build_i2v_vae(num_stages).eval()
        latents = vae.encode(smooth).latent_dist.mean
        assert latents.shape == (2, 8 if num_stages == 4 else 4, size, size)
        error = (decode(vae, latents, num_frames=2) - smooth).abs().mean()
        assert error < 0.25 * smooth.abs().mean()


@torch.no_grad()
def test_the_inner_stage_is_what_a_vae_does_between_the_smaller_ones_features(grown, frames):
    vae, small = grown
    encoded, wanted = features_of(small, frames)
    inner = InnerStage(vae)
    moments = vae.encode(frames).latent_dist.parameters
    assert torch.allclose(inner.encoder(encoded), moments, atol=1e-5)
    # Outside of it are the smaller one's layers.
    for mine, theirs in zip(list(vae.decoder.up_blocks)[1:], small.decoder.up_blocks, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert encoded.shape == wanted.shape == (2, 96, 16, 16)


def test_the_inner_stage_learns_to_pass_features_on(grown, frames):
    vae, small = grown
    encoded, wanted = features_of(small, frames)
    inner, scale = InnerStage(vae), wanted.std(dim=(0, 2, 3), keepdim=True)
    optimizer = torch.optim.Adam(inner.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        losses.append(feature_loss(inner, encoded, wanted, scale))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]


@torch.no_grad()
def test_frame_by_frame_the_encoder_is_the_same_and_the_decoder_has_no_layers_in_time(grown, frames):
    vae, _ = grown
    single = frame_by_frame(vae).eval()
    latents = vae.encode(frames).latent_dist.mean
    assert torch.equal(single.encode(frames).latent_dist.mean, latents)
    both = decode(single, latents, num_frames=2)
    assert torch.allclose(both[1:], decode(single, latents[1:], num_frames=1), atol=1e-4)


def test_the_papers_plan_applies_to_both_unets():
    i2v, t2v = build_i2v_unet(), build_t2v_unet()
    stock = (UNetSpatioTemporalConditionModel, UNet3DConditionModel)
    for unet, cls in zip((i2v, t2v), stock, strict=True):
        assert isinstance(unet, cls)
        assert VDMINI_UNET.student_config(unet.config)["layers_per_block"] == (1, 1, 2)
    halves = [2 * sum(p.numel() for p in network.parameters()) for network in (i2v, t2v, build_i2v_vae())]
    tokenizer = build_tokenizer(["a car moves"])
    halves += [
        2 * sum(p.numel() for p in n.parameters()) for n in (build_image_encoder(), build_text_encoder(tokenizer))
    ]
    i2v_size, t2v_size, vae_size, *encoders = halves
    assert 2 * i2v_size + 2 * t2v_size + 2 * vae_size + sum(encoders) < 45e6  # bytes of all that ships, in 16 bit
