"""The table of what saves memory, on numbers; and the count that it goes by, against a real process."""

import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny import TWO_STAGES, tiny_svd_pipeline
from tiny_hunyuan_video import tiny_hunyuan_pipeline

from vdmini_diffusers import VDMiniI2VPipeline, optimize
from vdmini_diffusers.analysis.cost_table import FusedAttention
from vdmini_diffusers.demo.students import demo_model
from vdmini_diffusers.demo.teachers import I2V_TEACHER
from vdmini_diffusers.evaluation.live_bytes import LiveBytes, grown_by
from vdmini_diffusers.families.hunyuan_video import HUNYUAN_VIDEO
from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.generation.memory import (
    DECODING,
    DENOISING,
    GIB,
    OVERHEAD,
    SAVINGS,
    SHARE,
    MemoryNeed,
    MemorySaving,
    choose_saving,
    free_bytes,
    peak_bytes,
    save_memory,
)
from vdmini_diffusers.generation.memory_count import count_denoising, count_need
from vdmini_diffusers.generation.pipeline_call import make_clip


# Like Stable Video Diffusion's in half precision: 25 frames of 576 x 1024.
NEED = MemoryNeed(
    weights={"unet": 3 * GIB, "image_encoder": GIB, "vae": GIB // 4},
    denoiser="unet",
    denoising=4 * GIB,
    vae="vae",
    decoding_per_pixel=2048,
    num_frames=25,
    height=576,
    width=1024,
    tile=14 * 384 * 384,
    chunks=True,
)
VIDEO = 12 * 25 * 576 * 1024


def test_the_peak_is_that_of_the_part_that_takes_most():
    pixels = 576 * 1024
    decoding = 2048 * 25 * pixels + VIDEO
    assert peak_bytes(NEED, MemorySaving()) == 4.25 * GIB + round(DECODING * decoding) + OVERHEAD
    eight = round(DECODING * (2048 * 8 * pixels + VIDEO)) + OVERHEAD
    assert peak_bytes(NEED, MemorySaving(decode_chunk_size=8)) == 4.25 * GIB + eight
    assert peak_bytes(NEED, MemorySaving(offload=True, decode_chunk_size=8)) == GIB / 4 + eight
    tiles = round(DECODING * (2048 * 14 * 384 * 384 + VIDEO)) + OVERHEAD
    step = round(DENOISING * 4 * GIB) + OVERHEAD
    no_step = replace(NEED, denoising=0)
    assert peak_bytes(no_step, MemorySaving(tiling=True)) == 4.25 * GIB + tiles and tiles < step
    assert peak_bytes(NEED, MemorySaving(tiling=True)) == 4.25 * GIB + step
    assert peak_bytes(NEED, MemorySaving(offload=True, tiling=True)) == 3 * GIB + step
    one_tile = replace(NEED, num_frames=1, height=64, width=64)
    assert peak_bytes(one_tile, MemorySaving(tiling=True)) == peak_bytes(one_tile, MemorySaving())


@pytest.mark.parametrize(
    ("free", "can_offload", "changes", "chosen"),
    [
        (80, True, {}, MemorySaving()),
        (24, True, {}, MemorySaving(decode_chunk_size=8)),
        (12, True, {}, MemorySaving(offload=True, decode_chunk_size=8)),
        (10.5, True, {}, MemorySaving(offload=True, decode_chunk_size=2)),
        (12, False, {}, MemorySaving(tiling=True)),
        (24, True, {"chunks": False}, MemorySaving(tiling=True)),
        (8, False, {"denoising": 0}, MemorySaving(tiling=True, decode_chunk_size=2)),
        (10, False, {"denoising": 0, "tiles_in_time": True}, MemorySaving(tiling=True)),
        (10.5, True, {"chunks": False}, MemorySaving(offload=True, tiling=True)),
        (40, True, {"chunks": False, "tile": None}, MemorySaving(offload=True)),
    ],
)
def test_the_first_that_fits_is_taken(free, can_offload, changes, chosen):
    need = replace(NEED, **changes)
    if free == 40:
        need = replace(need, weights={"unet": 3 * GIB, "text_encoder": 40 * GIB, "vae": 0}, num_frames=14)
        free = 43
    assert choose_saving(need, int(free * GIB), can_offload) == chosen


@pytest.mark.parametrize("can_offload", [True, False])
def test_what_fits_with_nothing_is_refused_with_the_least_that_it_takes(can_offload):
    least = min(peak_bytes(NEED, saving) for saving in SAVINGS if can_offload or not saving.offload)
    enough = int(least / SHARE) + 1
    assert peak_bytes(NEED, choose_saving(NEED, enough, can_offload)) == least
    with pytest.raises(ValueError, match=rf"25 frames of 1024 x 576 pixels need about {least / GIB:.1f} GiB"):
        choose_saving(NEED, enough - 2, can_offload)


def test_tiles_in_time_are_not_taken_for_chunks_which_would_be_smaller():
    """The pipeline gives such a VAE whole clips (`VDMiniI2VPipeline.decode_latents`)."""
    need = replace(NEED, denoising=0, tiles_in_time=True)
    with pytest.raises(ValueError, match="make the clip smaller or shorter"):
        choose_saving(need, 8 * GIB, can_offload=False)


def test_a_fallback_saves_memory_or_it_would_not_be_in_the_table():
    assert len(set(SAVINGS)) == len(SAVINGS)
    peaks = {saving: peak_bytes(NEED, saving) for saving in SAVINGS}
    assert all(peaks[saving] < peaks[MemorySaving()] for saving in SAVINGS[1:] if saving != MemorySaving())


@torch.no_grad()
@pytest.mark.parametrize(("family", "make"), [(SVD, tiny_svd_pipeline), (HUNYUAN_VIDEO, tiny_hunyuan_pipeline)])
def test_a_step_is_counted_on_meta_as_it_is_where_it_runs(family, make):
    network = getattr(make(), family.denoiser)
    inputs = family.example_inputs(network.config, 5, 64, 64)
    with FusedAttention(), LiveBytes([*network.parameters(), *network.buffers()]) as counter:
        network(**inputs)
    counted = count_denoising(network, family.example_inputs, 5, 64, 64)
    assert counted == pytest.approx(counter.peak, rel=0.01)


def test_a_clip_too_small_for_the_norms_is_refused_by_its_size():
    unet = VDMiniI2VPipeline.from_pretrained(I2V_TEACHER, vae=None, image_encoder=None, dtype=torch.float32).unet
    with pytest.raises(ValueError, match="1 frame of 64 x 64 pixels: too little for this model"):
        count_denoising(unet, SVD.example_inputs, 1, 64, 64)


@torch.no_grad()
def test_a_decoder_takes_what_is_counted_for_it_at_most():
    pipe = tiny_svd_pipeline(**TWO_STAGES)
    need = count_need(pipe, SVD, 6, 32, 32, guided=False, on_cpu=False)
    assert set(need.weights) == {"unet", "vae", "image_encoder"} and need.denoiser == "unet" and need.chunks
    assert need.weights["unet"] == 4 * pipe.unet.num_parameters()
    latents = torch.randn(6, 4, 16, 16)
    with LiveBytes(pipe.vae.parameters()) as counter:
        pipe.vae.decode(latents, num_frames=6)
    assert 0.6 < counter.peak / (need.decoding_per_pixel * 6 * 32 * 32) < 1.001  # and a few scalars
    guided = count_need(pipe, SVD, 6, 32, 32, guided=True, on_cpu=True)
    assert guided.denoising == 2 * need.denoising and guided.weights == {}


def wide_pipeline(pipe):
    """The demo teacher's pipeline with networks of random weights, four times as wide."""
    unet_widths = {"block_out_channels": (64, 128, 256, 256), "num_attention_heads": (2, 4, 8, 8)}
    unet = type(pipe.unet).from_config({**pipe.unet.config, **unet_widths, "layers_per_block": 2}).eval()
    vae_widths = {"block_out_channels": (32, 64, 128, 128), "layers_per_block": 2}
    vae = type(pipe.vae).from_config({**pipe.vae.config, **vae_widths}).eval()
    return optimize(VDMiniI2VPipeline(**pipe.components | {"unet": unet, "vae": vae}))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("is_wide", "num_frames", "size"),
    [(False, 8, 64), (False, 32, 64), (False, 8, 192), (True, 14, 128), (True, 14, 256)],
)
def test_a_process_grows_by_less_than_is_said_and_by_a_third_of_it_at_least(is_wide, num_frames, size):
    pipe = VDMiniI2VPipeline.from_pretrained(demo_model("image").folder, dtype=torch.float32)
    pipe = wide_pipeline(pipe) if is_wide else pipe
    pipe.set_progress_bar_config(disable=True)
    call = {"num_frames": num_frames, "height": size, "width": size}
    said = peak_bytes(count_need(pipe, SVD, num_frames, size, size, guided=False, on_cpu=True), MemorySaving())
    for _ in range(2):
        grown = grown_by(lambda: make_clip(pipe, 0, call, Image.new("RGB", (size, size))))
        print(f"{num_frames} x {size} x {size}: {said / 2**20:.0f} MiB said, {grown / 2**20:.0f} MiB grown by")
        assert said / 3 < grown < said


def test_a_family_without_inputs_is_counted_by_its_weights():
    pipe = tiny_hunyuan_pipeline()
    need = count_need(pipe, replace(HUNYUAN_VIDEO, example_inputs=None), 5, 32, 32, guided=False, on_cpu=False)
    assert need.denoising == need.weights["transformer"] // 2
    assert need.tile is not None and not need.chunks and set(need.weights) >= {"text_encoder", "text_encoder_2"}


def test_what_is_chosen_is_switched_on():
    pipe = tiny_hunyuan_pipeline()
    assert save_memory(pipe, MemorySaving(tiling=True), "cpu") == {} and pipe.vae.use_tiling
    assert save_memory(tiny_svd_pipeline(), MemorySaving(decode_chunk_size=2), "cpu") == {"decode_chunk_size": 2}
    assert free_bytes("cpu") > GIB / 8
    assert str(MemorySaving(True, 8, True)) == "model offload, decoding 8 frames at once, VAE tiling"
