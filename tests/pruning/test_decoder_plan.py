"""Plans of VAE decoders: what they refuse, and the config that follows from them."""

import dataclasses
import inspect

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

from vdmini_diffusers import VDMiniAutoencoderKL, VDMiniAutoencoderKLTemporalDecoder
from vdmini_diffusers.pruning import DECODER_PLANS, P1, Q2, DecoderPruningPlan, PruningPlan, PruningPlanError


STAGES = {"down_block_types": ("DownEncoderBlock2D",) * 4, "block_out_channels": (128, 256, 512, 512)}


def stock_config(cls=AutoencoderKLTemporalDecoder, **changes):
    with torch.device("meta"):
        if cls is AutoencoderKL:
            changes = {"up_block_types": ("UpDecoderBlock2D",) * 4, **changes}
        vae = cls(**{**STAGES, "layers_per_block": 2, **changes})
    return {key: value for key, value in vae.config.items() if not key.startswith("_")}


@pytest.mark.parametrize("plan", DECODER_PLANS.values(), ids=DECODER_PLANS)
def test_json_gives_an_equal_plan_back(plan):
    again = PruningPlan.from_json_string(plan.to_json_string())
    assert again == plan and hash(again) == hash(plan) and type(again) is DecoderPruningPlan


def test_the_json_reads_as_the_plan_does():
    assert P1.to_json_string() == (
        "{\n"
        '  "kind": "vae_decoder",\n'
        '  "name": "p1",\n'
        '  "mid": [0],\n'
        '  "keep_mid_attention": false,\n'
        '  "up": {"0": [0, 1, 2], "1": [0, 1, 2], "2": [0, 1, 2], "3": [0]},\n'
        '  "widths": [512, 384, 128, 64],\n'
        '  "upsampler_widths": [384, 128, 64]\n'
        "}\n"
    )


@pytest.mark.parametrize(
    ("cls", "ours", "sample_size"),
    [
        (AutoencoderKLTemporalDecoder, VDMiniAutoencoderKLTemporalDecoder, 768),
        (AutoencoderKL, VDMiniAutoencoderKL, 512),
    ],
)
def test_built_without_arguments_our_classes_are_what_p1_makes_of_the_stock_vaes(cls, ours, sample_size):
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(ours.__init__).parameters.items()
        if name != "self"
    }
    assert defaults == P1.student_config(stock_config(cls, sample_size=sample_size))


def test_q2_has_39_157_804_parameters_and_p1_39_411_372():
    for plan, expected in ((P1, 39_411_372), (Q2, 39_157_804)):
        with torch.device("meta"):
            vae = VDMiniAutoencoderKLTemporalDecoder(**plan.student_config(stock_config()))
        assert sum(parameter.numel() for parameter in vae.decoder.parameters()) == expected


@pytest.mark.parametrize("cls", [AutoencoderKLTemporalDecoder, AutoencoderKL])
def test_the_plan_that_keeps_everything_gives_the_stock_vae_s_tensors(cls):
    config = stock_config(cls)
    ours = {AutoencoderKLTemporalDecoder: VDMiniAutoencoderKLTemporalDecoder, AutoencoderKL: VDMiniAutoencoderKL}[cls]
    with torch.device("meta"):
        stock, student = cls(**config), ours(**DecoderPruningPlan.keep_everything(config).student_config(config))
    shapes = {name: tensor.shape for name, tensor in stock.state_dict().items()}
    assert {name: tensor.shape for name, tensor in student.state_dict().items()} == shapes
    keys = DecoderPruningPlan.keep_everything(config).weight_map(shapes)
    assert keys == {name: name for name in shapes}


def test_what_never_runs_in_the_stock_vae_is_not_kept():
    plan = DecoderPruningPlan.keep_everything(stock_config(layers_per_block=1))
    assert plan.mid == (0,) and not plan.keep_mid_attention
    assert DecoderPruningPlan.keep_everything(stock_config(layers_per_block=3)).mid == (0, 1)
    assert DecoderPruningPlan.keep_everything(stock_config(AutoencoderKL, layers_per_block=1)).mid == (0, 1)
    assert not DecoderPruningPlan.keep_everything(
        stock_config(AutoencoderKL, mid_block_add_attention=False)
    ).keep_mid_attention


def test_p1_folds_both_shortcuts_and_q2_none():
    config = stock_config()
    assert P1.folded_shortcuts(config) == (2, 3)
    assert Q2.folded_shortcuts(config) == ()
    assert P1.only_layers(config).upsampler_widths == (512, 256, 128)
    assert Q2.only_layers(config).upsampler_widths == (512, 512, 256)
    assert P1.only_layers(config).widths == (512, 512, 256, 128)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"mid": (2,)}, "at most ResBlocks 0 and 1"),
        ({"mid": (1, 0)}, "at most ResBlocks 0 and 1"),
        ({"mid": 1}, "`mid` lists whole numbers from 0"),
        ({"keep_mid_attention": 0}, "true or false, not 0"),
        ({"keep_mid_attention": True}, "runs between its two ResBlocks"),
        ({"up": {0: (0,), 1: (0,), 3: (0,)}}, "names every up block from 0"),
        ({"up": {0: (0,), 1: (), 2: (0,), 3: (0,)}}, "is empty"),
        ({"widths": (512, 384, 128)}, "have 4 `widths` and 3 `upsampler_widths`"),
        ({"widths": (512, 384, 128, 0)}, "lists whole numbers from 1"),
        ({"upsampler_widths": (384, True, 64)}, "lists whole numbers from 1"),
        ({"upsampler_widths": "abc"}, "lists whole numbers from 1"),
    ],
)
def test_a_malformed_plan_is_refused(change, complaint):
    with pytest.raises(PruningPlanError, match=complaint):
        dataclasses.replace(P1, **change)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"up": {0: (0, 3), 1: (0,), 2: (0,), 3: (0,)}}, "up_blocks.0 has 3 ResBlocks, of which 3 is not one"),
        ({"up": {0: (0,), 1: (1,), 2: (1, 2), 3: (0,)}}, "removes ResBlock 0 of up_blocks.2, which alone takes 512"),
        ({"widths": (512, 384, 128, 160)}, "width 160 of up block 3 is not a multiple of 32, .* up to 128"),
        ({"widths": (500, 384, 128, 64)}, "width 500 of up block 0 is not a multiple of 32"),
        ({"upsampler_widths": (384, 544, 64)}, "width 544 of upsampler 1 is not a multiple of 32"),
        ({"upsampler_widths": (512, 128, 64)}, "Upsampler 0 hands over 512 channels, and up block 1 has 384"),
    ],
)
def test_a_plan_that_does_not_fit_the_vae_is_refused(change, complaint):
    with pytest.raises(PruningPlanError, match=complaint):
        dataclasses.replace(P1, **change).student_config(stock_config())


def test_layers_that_the_vae_does_not_have_are_refused():
    whole = DecoderPruningPlan.keep_everything(stock_config())
    with pytest.raises(PruningPlanError, match="the mid block that the VAE does not have"):
        whole.student_config(stock_config(layers_per_block=1))
    with pytest.raises(PruningPlanError, match="the mid block that the VAE does not have"):
        whole.student_config(stock_config(AutoencoderKL, mid_block_add_attention=False))
    config = stock_config(down_block_types=("DownEncoderBlock2D",) * 3, block_out_channels=(128, 256, 512))
    with pytest.raises(PruningPlanError, match="has 4 up blocks, and the VAE 3"):
        P1.student_config(config)
