"""T2V-Turbo's LoRA merged into VideoCrafter2 computes what the two compute beside each other."""

import json

import original_unet
import pytest
import torch
from original_inputs import CONTEXT, UNET_INPUTS, normal
from original_lora import AdaptedWeights, draw_factors, walk
from torch import nn

from vdmini_diffusers import VDMiniUNet3DConditionModel
from vdmini_diffusers.t2v_turbo.convert import convert_t2v_turbo
from vdmini_diffusers.t2v_turbo.lora import adapted_weights, merge_lora
from vdmini_diffusers.t2v_turbo.tensors import OriginalCheckpointError


WIDTHS = (32, 32, 64, 64)
GUIDANCE = 12


@pytest.fixture(scope="module")
def factors():
    return draw_factors(walk(WIDTHS, original_unet.HEAD, CONTEXT, GUIDANCE))


@pytest.fixture(scope="module")
def as_list(factors):
    """As in `unet_lora.pt`."""
    return [factor for pair in factors.values() for factor in pair]


@torch.no_grad()
def test_the_merged_network_computes_what_base_and_lora_compute(
    whole, originals, factors, as_list, tokenizer_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(original_unet, "GROUPS", 32)
    monkeypatch.setattr(original_unet, "WIDTHS", WIDTHS)
    beside = AdaptedWeights(factors)
    beside.update(originals[0]["unet"])
    torch.manual_seed(3)  # as a demo that starts anew makes the layer that VideoCrafter2 does not have
    beside["time_cond_proj.weight"] = nn.Linear(GUIDANCE, WIDTHS[0], bias=False).weight.double()
    guidance = normal(1, GUIDANCE)
    expected = original_unet.unet(beside, **UNET_INPUTS, guidance=guidance)
    assert (expected - originals[1]["unet"]).abs().max() > 0.1
    torch.save(whole, tmp_path / "model.ckpt")
    torch.save([nn.Parameter(factor) for factor in as_list], tmp_path / "unet_lora.pt")
    folder = convert_t2v_turbo(
        tmp_path / "model.ckpt",
        tmp_path / "out",
        unet_checkpoint_path=tmp_path / "unet_lora.pt",
        tokenizer=tokenizer_folder,
        time_cond_proj_seed=3,
    )
    unet = VDMiniUNet3DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float64)
    inputs = [UNET_INPUTS[name] for name in ("latents", "timesteps", "context")]
    output = unet(*inputs, fps=UNET_INPUTS["fps"], timestep_cond=guidance).sample
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    record = json.loads((folder / "conversion_provenance.json").read_text())
    assert (record["unet"], record["lora"], record["time_cond_proj_seed"]) == ("T2V-Turbo", True, 3)
    assert "from the seed 3" in (folder / "README.md").read_text()


def test_every_factor_changes_its_own_weight_and_no_other(originals, factors, as_list):
    base = {**originals[0]["unet"]}
    for position, name in enumerate(factors):
        if position % 40 == 0:  # of some hundred
            alone = [torch.zeros_like(factor) for factor in as_list]
            alone[2 * position : 2 * position + 2] = factors[name]
            merged = merge_lora(base, alone, time_cond_proj_seed=0)
            assert [key for key in base if not torch.equal(merged[key], base[key])] == [f"{name}.weight"]


def test_at_full_size_the_order_is_that_of_the_walk():
    layers = walk((320, 640, 1280, 1280), 64, 1024, 256)
    shapes = {f"{name}.weight": layer.weight for name, layer in layers}
    assert adapted_weights(dict(sorted(shapes.items()))) == list(shapes) != sorted(shapes)
    assert len(layers) == 575


class TestRefusals:
    def test_the_layer_for_the_guidance_is_not_drawn_unasked(self, originals, as_list):
        with pytest.raises(OriginalCheckpointError, match="training drew it at random, and it is in no file but the"):
            merge_lora(originals[0]["unet"], as_list)

    def test_a_base_that_is_merged_already(self, originals, as_list):
        with pytest.raises(OriginalCheckpointError, match="T2V-Turbo is merged into it already"):
            merge_lora(originals[0]["unet_mg"], as_list, 0)

    def test_a_lora_of_another_network(self, originals, as_list):
        with pytest.raises(
            OriginalCheckpointError, match=r"The LoRA has \d+ factors, and this U-Net \d+ layers of two each"
        ):
            merge_lora(originals[0]["unet"], as_list[4:], 0)

    def test_factors_in_another_order(self, originals, as_list):
        swapped = [factor for pair in zip(as_list[1::2], as_list[::2], strict=True) for factor in pair]
        with pytest.raises(
            OriginalCheckpointError, match=r"do not fit the layers: time_embed\.0\.weight \[128, 32\] by"
        ):
            merge_lora(originals[0]["unet"], swapped, 0)


def test_a_lora_without_the_layer_for_the_guidance_needs_no_seed(originals):
    layers = walk(WIDTHS, original_unet.HEAD, CONTEXT, None)
    merged = merge_lora(originals[0]["unet"], [x for pair in draw_factors(layers).values() for x in pair])
    assert merged.keys() == originals[0]["unet"].keys()
