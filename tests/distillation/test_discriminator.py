import pytest
import torch
from tiny import randomise

from vdmini_diffusers.distillation.discriminator import DiscriminatorHeads, LatentDiscriminator


CHANNELS = {"down_blocks.0": 8, "down_blocks.1": 16}
BATCH, FRAMES = 2, 3


def features() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "down_blocks.0": torch.randn(BATCH * FRAMES, 8, 4, 6),
        "down_blocks.1": torch.randn(BATCH * FRAMES, 16, 2, 3),
    }


def heads(**options: object) -> DiscriminatorHeads:
    return randomise(DiscriminatorHeads(CHANNELS, condition_dim=5, width=32, **options)).eval()


def logits_of(model, features, levels=(0.1, 0.2), condition=None):
    condition = torch.ones(BATCH, 5) if condition is None else condition
    with torch.no_grad():
        return model(features, torch.tensor(levels), condition)


def test_every_feature_has_a_spatial_and_a_temporal_head_that_judge_every_place():
    shapes = [tuple(logits.shape) for logits in logits_of(heads(), features())]
    assert shapes == [(2, 3 * 24), (2, 24 * 3), (2, 3 * 6), (2, 6 * 3)]


def test_videos_of_a_batch_are_judged_one_by_one():
    model, both = heads(), features()
    together = logits_of(model, both)
    for i in range(BATCH):
        alone = {name: feature[i * FRAMES : (i + 1) * FRAMES] for name, feature in both.items()}
        with torch.no_grad():
            single = model(alone, torch.tensor([(0.1, 0.2)[i]]), torch.ones(1, 5))
        for a, b in zip(single, together, strict=True):
            assert torch.allclose(a[0], b[i], atol=1e-5)


def test_tokens_in_their_grid_are_judged_as_channels_of_frames_are():
    model, frames = heads(), features()
    tokens = {name: f.unflatten(0, (BATCH, FRAMES)).movedim(2, -1).contiguous() for name, f in frames.items()}
    assert tokens["down_blocks.0"].shape == (BATCH, FRAMES, 4, 6, 8)
    for a, b in zip(logits_of(model, frames), logits_of(model, tokens), strict=True):
        torch.testing.assert_close(a, b)


def changes_when_shuffled(model, over: str) -> bool:
    """Whether the multiset of logits changes when frames, or places, change their order."""
    straight = features()
    if over == "frames":
        shuffled = {n: f.unflatten(0, (BATCH, FRAMES))[:, [2, 0, 1]].flatten(0, 1) for n, f in straight.items()}
    else:
        shuffled = {n: f.flatten(2)[..., torch.randperm(f[0, 0].numel())].view_as(f) for n, f in straight.items()}
    pairs = zip(logits_of(model, straight), logits_of(model, shuffled), strict=True)
    return any(not torch.allclose(a.sort().values, b.sort().values, atol=1e-5) for a, b in pairs)


def test_temporal_heads_see_the_order_of_frames_and_not_of_places():
    model = heads(spatial=False)
    assert changes_when_shuffled(model, "frames") and not changes_when_shuffled(model, "places")


def test_spatial_heads_see_the_order_of_places():
    assert changes_when_shuffled(heads(temporal=False), "places")


def test_a_temporal_kernel_of_one_does_not_see_the_order_of_frames():
    assert not changes_when_shuffled(heads(spatial=False, temporal_kernel_size=1), "frames")


@pytest.mark.parametrize("changed", ["noise level", "condition"])
def test_logits_depend_on_noise_level_and_condition(changed):
    model = heads()
    before = logits_of(model, features())
    if changed == "condition":
        after = logits_of(model, features(), condition=torch.arange(10.0).view(2, 5))
    else:
        after = logits_of(model, features(), levels=(-0.9, 1.2))
    assert all(not torch.allclose(a, b, atol=1e-4) for a, b in zip(before, after, strict=True))


def test_the_level_of_a_feature_is_not_normalised_away():
    bright = {name: feature + 3 for name, feature in features().items()}
    before, after = logits_of(heads(), features()), logits_of(heads(), bright)
    assert all((a.mean() - b.mean()).abs() > 1e-3 for a, b in zip(before, after, strict=True))


def test_heads_without_any_are_refused():
    with pytest.raises(ValueError, match="needs spatial or temporal heads"):
        heads(spatial=False, temporal=False)


def test_saved_heads_load_as_they_were(tmp_path):
    model = heads()
    model.save_pretrained(tmp_path)
    loaded = DiscriminatorHeads.from_pretrained(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(logits_of(model, features()), logits_of(loaded, features()), strict=True)
    )


def test_sizes_on_svds_encoder():
    with torch.device("meta"):
        model = DiscriminatorHeads({f"down_blocks.{i}": c for i, c in enumerate((320, 640, 1280, 1280))}, 1024)
    spatial, temporal = (
        sum(p.numel() for p in part.parameters()) for part in (model.spatial_heads, model.temporal_heads)
    )
    assert (round(spatial / 1e6, 2), round(temporal / 1e6, 2)) == (10.48, 3.50)


def test_the_light_critic_judges_latents_alone():
    model = randomise(LatentDiscriminator(4, condition_dim=5, widths=(16, 32))).eval()
    latents = torch.randn(BATCH * FRAMES, 4, 8, 8)
    with torch.no_grad():
        logits = model({"latents": latents}, torch.tensor([0.1, 0.2]), torch.ones(BATCH, 5))
    assert [tuple(x.shape) for x in logits] == [(2, 3 * 16), (2, 16 * 3), (2, 3 * 4), (2, 4 * 3)]
