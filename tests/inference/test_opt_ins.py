"""Ways to be faster that do not compute exactly the same: each works with our pipelines, and by how much it errs."""

import copy
import math

import pytest
import torch
from diffusers import AutoencoderTiny, TorchAoConfig
from diffusers.utils import is_torchao_available
from test_rewrites import compressed_vae
from tiny import (
    decode,
    randomise,
    student_of,
    tiny_image,
    tiny_latents,
    tiny_svd_pipeline,
    tiny_teacher_unet,
    tiny_unet_inputs,
)
from tiny_text_to_video import tiny_t2v_pipeline
from torch import nn

from vdmini_diffusers import VDMiniI2VPipeline, VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.inference import optimize
from vdmini_diffusers.pruning import VDMINI_UNET


def decibels(output: torch.Tensor, exact: torch.Tensor) -> float:
    """Signal to error."""
    error = output.double() - exact.double()
    return 10 * math.log10(float(exact.double().square().mean() / error.square().mean()))


def in_bf16(network: nn.Module) -> nn.Module:
    return nn.Module.to(copy.deepcopy(network), torch.bfloat16)  # diffusers' own warns of half precision


@torch.no_grad()
def test_bf16_as_a_whole_and_under_autocast_err_alike():
    student, inputs = student_of(randomise(tiny_teacher_unet()), VDMINI_UNET), tiny_unet_inputs(frames=3)
    exact = student(*inputs).sample
    assert decibels(in_bf16(student)(*[x.bfloat16() for x in inputs]).sample, exact) > 35
    with torch.autocast("cpu", torch.bfloat16):  # norms and sums of float32 weights
        assert decibels(student(*inputs).sample, exact) > 35


@torch.no_grad()
def test_decoders_in_bf16_err_alike_whole_and_under_autocast():
    vae, latents = compressed_vae(), tiny_latents(3, 8, 8)
    exact = decode(vae, latents)
    assert decibels(decode(in_bf16(vae), latents.bfloat16()), exact) > 35
    with torch.autocast("cpu", torch.bfloat16):
        assert decibels(decode(vae, latents), exact) > 35
        x = torch.randn(1, 64, 4, 4)
        assert vae.decoder.mid_block.resnets[0].spatial_res_block.conv1(x).dtype == torch.bfloat16
        assert vae.decoder.mid_block.resnets[0].spatial_res_block.norm1(x).dtype == torch.float32


@torch.no_grad()
def test_a_vae_in_half_precision_is_not_upcast_where_its_config_says_so():
    pipe = VDMiniI2VPipeline(**tiny_svd_pipeline().components)
    pipe.set_progress_bar_config(disable=True)
    dtypes = []
    pipe.vae.encoder.register_forward_hook(lambda *call: dtypes.append(call[2].dtype))
    for part in (pipe.vae, pipe.unet, pipe.image_encoder):
        nn.Module.to(part, torch.float16)
    for upcast in (True, False):
        pipe.vae.register_to_config(force_upcast=upcast)
        pipe(tiny_image(), 16, 16, 2, output_type="latent", generator=torch.Generator().manual_seed(0))
    assert dtypes == [torch.float32, torch.float16]


def tiny_decoder() -> AutoencoderTiny:
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    return randomise(AutoencoderTiny(**widths, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))).eval()


@torch.no_grad()
def test_a_tiny_decoder_serves_text_to_video_in_chunks_of_any_size():
    pipe = tiny_t2v_pipeline()
    pipe.vae = tiny_decoder()

    def video(**kwargs):
        size = {"height": 16, "width": 16, "num_frames": 3, "num_inference_steps": 2}
        return pipe("a cat", **size, generator=torch.Generator().manual_seed(0), **kwargs).frames

    whole, latents = video(output_type="pt"), video(output_type="latent")
    assert whole.shape == (1, 3, 3, 16, 16)
    torch.testing.assert_close(video(output_type="pt", decode_chunk_size=1), whole)
    by_hand = pipe.vae.decode(latents.transpose(1, 2).flatten(0, 1)).sample
    torch.testing.assert_close(whole[0], (by_hand / 2 + 0.5).clamp(0, 1))


@torch.no_grad()
def test_a_tiny_decoder_takes_the_latents_of_image_to_video():
    pipe = VDMiniI2VPipeline(**tiny_svd_pipeline().components)
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(tiny_image(), 16, 16, 2, output_type="latent").frames
    assert tiny_decoder().decode(latents.flatten(0, 1)).sample.shape == (2, 3, 16, 16)


@pytest.mark.slow
@pytest.mark.skipif(not is_torchao_available(), reason="torchao is not installed")
@pytest.mark.parametrize(
    "name, least",
    [("Int8WeightOnlyConfig", 50), ("Float8WeightOnlyConfig", 38), ("Int8DynamicActivationInt8WeightConfig", 40)],
)
@torch.no_grad()
def test_quantised_students_are_saved_loaded_and_optimised(name, least, tmp_path):
    import torchao.quantization

    version = {} if "Float8" in name else {"version": 2}
    config = TorchAoConfig(getattr(torchao.quantization, name)(**version))
    student, inputs = student_of(randomise(tiny_teacher_unet()), VDMINI_UNET), tiny_unet_inputs(frames=3)
    exact = student(*inputs).sample
    student.save_pretrained(tmp_path / "exact")
    load = VDMiniUNetSpatioTemporalConditionModel.from_pretrained
    quantised = load(tmp_path / "exact", quantization_config=config, torch_dtype=torch.float32)
    output = quantised(*inputs).sample
    assert least < decibels(output, exact) < 60
    quantised.save_pretrained(tmp_path / "quantised")
    sizes = [
        sum(file.stat().st_size for file in (tmp_path / kind).glob("*.safetensors")) for kind in ("exact", "quantised")
    ]
    assert sizes[1] < 0.7 * sizes[0]  # linear layers only
    loaded = load(tmp_path / "quantised", torch_dtype=torch.float32)
    assert torch.equal(loaded(*inputs).sample, output)
    assert decibels(optimize(loaded)(*inputs).sample, exact) > least
