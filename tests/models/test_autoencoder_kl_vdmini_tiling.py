"""Tiles of space and time: what they give equals the whole clip's decoding, as far as their docstrings promise."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_latents, tiny_teacher_vae
from tiny_clips import FULL_STOCK, moving_latents, tiny_tiled_vae
from torch import nn

from vdmini_diffusers import VDMiniAutoencoderKLTemporalDecoder
from vdmini_diffusers.models.autoencoder_kl_vdmini import ClipGroupNorm, tile_spans


SCALE = 2  # two stages
# Pixels and frames from which an output sees its surroundings: each convolution of 3 sees one place further, on either
# side. In latents: conv_in, two in the ResBlock. In pixels: the upsampler, two in the ResBlock, conv_out.
REACH = SCALE * 3 + 4
REACH_FRAMES = 5  # two ResBlocks, time_conv_out


@pytest.fixture(scope="module")
def shared_vae():
    return tiny_tiled_vae()


@pytest.fixture
def vae(shared_vae):
    return copy.deepcopy(shared_vae)


@st.composite
def axes(draw):
    tile = draw(st.integers(1, 12))
    return draw(st.integers(1, 40)), tile, draw(st.integers(1, tile)), draw(st.sampled_from([1, 2, 8]))


@given(axes())
@settings(max_examples=200)
def test_tiles_cover_an_axis_and_their_weights_sum_to_one(axis):
    size, tile, stride, scale = axis
    spans = tile_spans(size, tile, stride, scale)
    total = torch.zeros(size * scale)
    for span in spans:
        assert span.latents.stop - span.latents.start == min(tile, size)
        assert span.pixels == slice(scale * span.latents.start, scale * span.latents.stop)
        assert span.weights.shape == total[span.pixels].shape and (span.weights >= 0).all()
        total[span.pixels] += span.weights
    torch.testing.assert_close(total, torch.ones_like(total))
    starts = [span.latents.start for span in spans]
    assert starts[0] == 0 and spans[-1].latents.stop == size
    assert all(0 < following - start <= stride for start, following in pairwise(starts))


def test_the_clip_s_edges_have_full_weight_and_inner_borders_none():
    first, last = tile_spans(12, 8, 4, scale=2)
    assert first.weights[:10].tolist() == [1] * 10 and last.weights[-10:].tolist() == [1] * 10
    assert first.weights[-2:].tolist() == [0, 0] and last.weights[:2].tolist() == [0, 0]


def test_tiles_spread_evenly_rather_than_leave_a_rest():
    assert [span.latents.start for span in tile_spans(25, 14, 13)] == [0, 11]
    assert [span.latents.start for span in tile_spans(100, 48, 40)] == [0, 26, 52]


@torch.no_grad()
def test_a_tile_that_holds_the_clip_changes_no_bit(vae):
    latents = moving_latents(3, 6, 8)
    expected = vae.decode(latents, num_frames=3).sample
    vae.enable_tiling(12, 16, 3, 8, 8, 2)
    assert torch.equal(vae.decode(latents, num_frames=3).sample, expected)
    assert torch.equal(vae.decode(latents, 3, return_dict=False)[0], expected)


@torch.no_grad()
def test_without_tiling_the_norms_are_the_stock_ones(vae):
    stock = copy.deepcopy(vae)
    for module in list(stock.modules()):
        for name, norm in module.named_children():
            if isinstance(norm, ClipGroupNorm):
                plain = nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps)
                plain.load_state_dict(norm.state_dict())
                setattr(module, name, plain)
    assert not any(isinstance(module, ClipGroupNorm) for module in stock.modules())
    latents = moving_latents(6, 4, 5)
    assert torch.equal(vae.decode(latents, 3).sample, stock.decode(latents, 3).sample)


def with_exact_statistics(vae, monkeypatch):
    """The norms see all of the clip before its tiles are decoded."""

    def measure(latents, *spans):
        for norm in vae._norms:
            norm.start_clip(len(latents), latents.device)
        (whole,) = tile_spans(len(latents), len(latents), 1)
        vae._decode_part(latents, whole, measuring=True)

    monkeypatch.setattr(vae, "_measure", measure)


OVERLAP, OVERLAP_FRAMES = 4 * REACH // SCALE, 4 * REACH_FRAMES  # whose outer quarters, out of sight, have no weight


@given(
    size=st.tuples(st.integers(1, 2), st.integers(20, 34), st.integers(20, 34)),
    stride=st.tuples(st.integers(1, 9), st.integers(5, 9), st.integers(5, 9)),
)
@settings(max_examples=10)
@torch.no_grad()
def test_with_exact_statistics_tiles_equal_the_whole_where_their_sight_ends_within_them(shared_vae, size, stride):
    check_with_exact_statistics(shared_vae, size, stride)


@given(
    size=st.tuples(st.integers(20, 40), st.just(2), st.just(3)),
    stride=st.tuples(st.integers(3, 9), st.just(1), st.just(1)),
)
@settings(max_examples=10)
@torch.no_grad()
def test_with_exact_statistics_chunks_of_frames_equal_the_whole(shared_vae, size, stride):
    check_with_exact_statistics(shared_vae, size, stride)


def check_with_exact_statistics(shared_vae, size, stride):
    vae = copy.deepcopy(shared_vae)
    latents = moving_latents(*size)
    frames, height, width = (
        step + overlap for step, overlap in zip(stride, (OVERLAP_FRAMES, OVERLAP, OVERLAP), strict=True)
    )
    vae.enable_tiling(SCALE * height, SCALE * width, frames, SCALE * stride[1], SCALE * stride[2], stride[0])
    vae.disable_tiling()
    expected = vae.decode(latents, len(latents)).sample
    with pytest.MonkeyPatch.context() as patch:
        with_exact_statistics(vae, patch)
        found = vae.tiled_decode(latents, len(latents)).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_less_overlap_than_that_does_not(vae, monkeypatch):
    # A control for the two tests above.
    latents = moving_latents(1, 30, 30)
    expected = vae.decode(latents, 1).sample
    with_exact_statistics(vae, monkeypatch)
    vae.enable_tiling(28, 28, 1, 24, 24, 1)
    assert (vae.decode(latents, 1).sample - expected).abs().max() > 1e-2


@torch.no_grad()
def test_the_statistics_of_the_small_clip_are_nearer_to_the_whole_than_each_tile_s_own_and_leave_no_seams(vae):
    latents = moving_latents(4, 16, 32)
    expected = vae.decode(latents, 4).sample
    vae.enable_tiling(24, 24, 4, 12, 12, 4)
    found = vae.decode(latents, 4).sample
    alone = torch.zeros_like(expected)
    _, rows, columns = vae._spans(4, 16, 32)
    vae.disable_tiling()
    for row in rows:
        for column in columns:
            tile = vae.decode(latents[:, :, row.latents, column.latents], 4).sample
            alone[:, :, row.pixels, column.pixels] += tile * row.weights[:, None] * column.weights
    error, error_alone = (found - expected).square().mean(), (alone - expected).square().mean()
    assert error < error_alone / 2


@torch.no_grad()
def test_each_clip_of_a_batch_is_decoded_for_itself(vae):
    latents = torch.cat([moving_latents(5, 8, 9), -3 * moving_latents(5, 8, 9)])
    vae.enable_tiling(12, 12, 3, 8, 8, 2)
    expected = torch.cat([vae.decode(clip, 5).sample for clip in latents.split(5)])
    assert expected.shape == (10, 3, 16, 18)
    assert torch.equal(vae.decode(latents, 5).sample, expected)
    vae.enable_slicing()
    assert torch.equal(vae.decode(latents, 5).sample, expected)


@torch.no_grad()
def test_slicing_alone_decodes_one_clip_at_a_time(vae, monkeypatch):
    latents = moving_latents(6, 4, 5)
    expected = vae.decode(latents, 3).sample
    seen = []
    vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    vae.enable_slicing()
    torch.testing.assert_close(vae.decode(latents, 3).sample, expected)
    torch.testing.assert_close(vae.decode(latents, 3, return_dict=False)[0], expected)
    assert seen == [3, 3] * 2
    vae.disable_slicing()
    assert torch.equal(vae.decode(latents, 3).sample, expected)


@torch.no_grad()
def test_no_tile_is_larger_than_asked_for(vae):
    seen = []
    vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    vae.enable_tiling(12, 16, 4, 8, 8, 3)
    vae.decode(moving_latents(9, 11, 13), 9)
    assert set(seen) == {(4, 4, 6, 8)}
    assert len(seen) == 3 + 3 * 3 * 3  # chunks of the small clip; chunks, rows and columns


@torch.no_grad()
def test_bfloat16_keeps_its_dtype_and_comes_near_float32(vae):
    latents = moving_latents(4, 10, 10)
    vae.enable_tiling(12, 12, 3, 8, 8, 2)
    expected = vae.decode(latents, 4).sample
    found = vae.bfloat16().decode(latents.bfloat16(), 4).sample
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).square().mean().sqrt() < 0.03 * expected.std()


@torch.no_grad()
def test_channels_last_gives_the_same(vae):
    latents = moving_latents(4, 10, 10)
    vae.enable_tiling(12, 12, 3, 8, 8, 2)
    expected = vae.decode(latents, 4).sample
    for parameter in vae.parameters():
        if parameter.ndim == 4:  # torch refuses the format for convolutions over time
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    found = vae.decode(latents.to(memory_format=torch.channels_last), 4).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_attention_of_the_mid_block_looks_at_its_tile_and_is_measured_like_the_rest(monkeypatch):
    vae = tiny_tiled_vae(mid_layers=2, attention=True)
    norm = vae.decoder.mid_block.attentions[0].group_norm
    latents = moving_latents(2, 8, 10)
    whole = vae.decode(latents, 2).sample
    with_exact_statistics(vae, monkeypatch)
    vae.enable_tiling(16, 20, 2, 16, 20, 2)
    # One tile by hand: the norms' statistics instead of their own, and the same picture.
    torch.testing.assert_close(vae.tiled_decode(latents, 2).sample, whole, rtol=1e-4, atol=1e-4)
    assert norm.var.shape == (2, 32) and (norm.var > 0).all()


def test_gradients_flow_through_tiles_and_checkpointing_is_refused(vae):
    vae.enable_tiling(12, 12, 3, 8, 8, 2)
    latents = moving_latents(4, 8, 8).requires_grad_()
    vae.decode(latents, 4).sample.square().sum().backward()
    assert (
        latents.grad.abs().amin(dim=(1, 2, 3)).shape == (4,) and latents.grad.isfinite().all() and latents.grad.any()
    )
    vae.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match="Tiles cannot be checkpointed"):
        vae.decode(latents, 4)


@torch.no_grad()
def test_an_error_on_the_way_leaves_the_stock_norms(vae, monkeypatch):
    latents = moving_latents(4, 8, 8)
    expected = vae.decode(latents, 4).sample
    vae.enable_tiling(12, 12, 3, 8, 8, 2)
    handle = vae.decoder.conv_out.register_forward_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        vae.decode(latents, 4)
    handle.remove()
    vae.disable_tiling()
    assert torch.equal(vae.decode(latents, 4).sample, expected)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"tile_sample_min_height": 0}, "positive multiple of 2, not 0"),
        ({"tile_sample_min_width": 13}, "positive multiple of 2, not 13"),
        ({"tile_sample_stride_width": 7}, "positive multiple of 2, not 7"),
        ({"tile_sample_min_num_frames": 0}, "positive multiple of 1, not 0"),
        ({"tile_sample_stride_height": 8.0}, "positive multiple of 2, not 8.0"),
        ({"tile_sample_stride_num_frames": -1}, "positive multiple of 1, not -1"),
        ({"tile_sample_min_height": 64}, "must not exceed `tile_sample_min_height` .64."),
        ({"tile_sample_stride_num_frames": 15}, "must not exceed `tile_sample_min_num_frames` .14."),
    ],
    ids=str,
)
def test_tiles_that_cannot_be_are_refused_and_change_nothing(vae, arguments, complaint):
    before = {name: value for name, value in vars(vae).items() if "til" in name}
    with pytest.raises(ValueError, match=complaint):
        vae.enable_tiling(**arguments)
    assert {name: value for name, value in vars(vae).items() if "til" in name} == before


def test_frames_that_are_no_whole_clips_are_refused(vae):
    vae.enable_tiling(12, 12, 3, 8, 8, 2)
    with pytest.raises(ValueError, match="holds 7 frames, which are no clips of 4"):
        vae.decode(moving_latents(7, 8, 8), 4)


def test_settings_stay_until_they_are_changed(vae):
    vae.enable_tiling(tile_sample_min_height=400)
    vae.disable_tiling()
    vae.enable_tiling()
    assert vae.tile_sample_min_height == 400 and vae.tile_sample_min_width == 384


@torch.no_grad()
def test_a_stock_checkpoint_opens_with_its_own_layers_and_widths_and_decodes_in_tiles(tmp_path):
    stock = tiny_teacher_vae()
    stock.save_pretrained(tmp_path)
    widths = stock.config.block_out_channels
    vae = VDMiniAutoencoderKLTemporalDecoder.from_pretrained(
        tmp_path, **FULL_STOCK | {"decoder_block_out_channels": widths, "decoder_upsample_out_channels": widths[1:]}
    )
    latents = tiny_latents(2, 5, 6)
    assert torch.equal(vae.decode(latents, 2).sample, stock.decode(latents, 2).sample)
    vae.enable_tiling(32, 32, 2, 24, 24, 2)
    assert vae.decode(latents, 2).sample.shape == (2, 3, 40, 48)
