"""The VAEs with a compressed decoder are the networks their configs describe, and compute what the stock ones do."""

import copy
import inspect
import pickle

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder
from tiny import (
    TINY_VAE_CONFIGS,
    VAE_CLASSES,
    decode,
    randomise,
    tiny_image,
    tiny_latents,
    tiny_svd_pipeline,
    tiny_teacher_vae,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vdmini_diffusers import VDMiniAutoencoderKL, VDMiniAutoencoderKLTemporalDecoder, VDMiniI2VPipeline


KINDS = list(VAE_CLASSES)
LATENTS = {"temporal": (14, 4, 72, 128), "image": (16, 4, 40, 64)}  # Tables A1 and A3
NEW_FIELDS = [
    "decoder_block_out_channels",
    "decoder_layers_per_block",
    "decoder_upsample_out_channels",
    "decoder_mid_layers",
    "decoder_mid_attention",
]
STOCK = {
    "decoder_layers_per_block": (3, 3, 3, 3),
    "decoder_mid_layers": 2,
    "decoder_mid_attention": True,
}
FULL_STOCK = {
    "decoder_block_out_channels": (128, 256, 512, 512),
    "decoder_upsample_out_channels": (256, 512, 512),
    **STOCK,
}
Q2 = {"decoder_block_out_channels": (64, 96, 384, 512), "decoder_upsample_out_channels": (128, 160, 384)}


def like(vae, **changes):
    """Our class with the stock VAE's decoder, but for `changes`."""
    kind = "temporal" if isinstance(vae, AutoencoderKLTemporalDecoder) else "image"
    widths = tuple(vae.config.block_out_channels)
    fields = {"decoder_block_out_channels": widths, "decoder_upsample_out_channels": widths[1:], **STOCK, **changes}
    config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    return VAE_CLASSES[kind][1](**config, **fields).to(vae.dtype).eval()


def copy_of(vae, **changes):
    """The same with the tensors that the two have in common."""
    ours = like(vae, **changes)
    tensors = vae.state_dict()
    ours.load_state_dict({key: tensors[key] for key in ours.state_dict()})
    return ours


@pytest.mark.parametrize(
    ("kind", "fields", "num_parameters", "tera_macs"),
    [
        ("temporal", FULL_STOCK, 63_579_183, 48.601),
        ("temporal", {}, 39_411_372, 14.425),
        ("temporal", Q2, 39_157_804, 14.411),
        ("image", FULL_STOCK, 49_490_179, 12.508),
        ("image", {}, 30_124_291, 3.629),
        ("image", Q2, 30_000_323, 3.709),
    ],
    ids=["SVD", "P1", "Q2", "SD", "SD P1", "SD Q2"],
)
def test_parameters_and_multiplications_of_the_decoder_at_full_size(kind, fields, num_parameters, tera_macs):
    with torch.device("meta"):
        vae = VAE_CLASSES[kind][1](**fields)
    vae.to("meta")  # diffusers makes the mixing factors on the CPU, whatever the device
    assert sum(p.numel() for p in vae.decoder.parameters()) == num_parameters
    assert sum(p.numel() for p in vae.encoder.parameters()) == 34_163_592
    frames, _, height, width = LATENTS[kind]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pictures = decode(vae, torch.empty(LATENTS[kind], device="meta"))
    assert pictures.shape == (frames, 3, 8 * height, 8 * width)
    assert counter.get_total_flops() / 2 / 1e12 == pytest.approx(tera_macs, abs=5e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_and_forward_are_the_parent_s(kind):
    stock, ours = VAE_CLASSES[kind]
    for name in ("forward", "encode"):
        assert getattr(ours, name) is getattr(stock, name)
    assert list(inspect.signature(ours.decode).parameters) == list(inspect.signature(stock.decode).parameters)
    # Stable Video Diffusion's pipeline looks for this argument in the signature.
    assert ("num_frames" in inspect.signature(ours.forward).parameters) == (kind == "temporal")


@pytest.mark.parametrize("kind", KINDS)
def test_it_takes_the_parent_s_arguments_and_five_more(kind):
    stock, ours = (inspect.signature(cls.__init__).parameters for cls in VAE_CLASSES[kind])
    assert list(ours) == [*stock, *NEW_FIELDS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_config_that_keeps_everything_gives_the_untouched_stock_vae(kind, dtype):
    stock = tiny_teacher_vae(kind).to(dtype)
    ours = copy_of(stock)
    assert list(ours.state_dict()) == list(stock.state_dict())
    for latents, num_frames in ((tiny_latents(), 2), (tiny_latents(6, 3, 2), 3), (tiny_latents(1, 2, 2), 1)):
        expected = decode(stock, latents.to(dtype), num_frames)
        assert expected.isfinite().all() and expected.std() > 0.01
        assert torch.equal(decode(ours, latents.to(dtype), num_frames), expected)
    pictures = torch.rand(2, 3, 16, 24).to(dtype)
    assert torch.equal(ours(pictures).sample, stock(pictures).sample)


def cut_by_hand(vae, mid_layers, up_layers):
    """The stock VAE with entries of module lists deleted, in place."""
    mid = vae.decoder.mid_block
    if mid_layers < 2:
        mid.attentions = nn.ModuleList()
    mid.resnets = mid.resnets[:mid_layers]
    for block, num_layers in zip(vae.decoder.up_blocks, up_layers, strict=True):
        block.resnets = block.resnets[:num_layers]
    return vae


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_fewer_layers_are_the_stock_vae_without_them(kind):
    stock = tiny_teacher_vae(kind)
    ours = copy_of(stock, decoder_mid_layers=1, decoder_mid_attention=False, decoder_layers_per_block=(1, 2, 3, 1))
    expected = decode(cut_by_hand(stock, 1, (1, 3, 2, 1)), tiny_latents())
    assert torch.equal(decode(ours, tiny_latents()), expected)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_without_mid_layers_the_mid_block_does_nothing(kind):
    stock = tiny_teacher_vae(kind)
    ours = copy_of(stock, decoder_mid_layers=0, decoder_mid_attention=False)
    for resnet in stock.decoder.mid_block.resnets:  # a stock block needs one; made to add nothing
        for module in (resnet, *resnet.children()):
            if hasattr(module, "conv2"):
                nn.init.zeros_(module.conv2.weight)
                nn.init.zeros_(module.conv2.bias)
    for module in stock.decoder.mid_block.attentions:
        nn.init.zeros_(module.to_out[0].weight)
        nn.init.zeros_(module.to_out[0].bias)
    torch.testing.assert_close(decode(ours, tiny_latents()), decode(stock, tiny_latents()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_two_mid_layers_without_attention_skip_it(kind):
    stock = tiny_teacher_vae(kind)
    ours = copy_of(stock, decoder_mid_attention=False)
    stock.decoder.mid_block.attentions[0] = nn.Identity()
    stock.decoder.mid_block.attentions[0].forward = lambda hidden_states, **kwargs: hidden_states
    assert torch.equal(decode(ours, tiny_latents()), decode(stock, tiny_latents()))


NARROW = {
    "temporal": {"decoder_block_out_channels": (32, 64, 96, 128), "decoder_upsample_out_channels": (32, 64, 96)},
    "image": {"decoder_block_out_channels": (8, 16, 24, 32), "decoder_upsample_out_channels": (8, 24, 24)},
}
MIDS = [(0, False), (1, False), (2, False), (2, True)]


def narrow(kind, mid=(1, False), layers=(1, 3, 2, 1)):
    return randomise(
        like(
            tiny_teacher_vae(kind),
            **NARROW[kind],
            decoder_layers_per_block=layers,
            decoder_mid_layers=mid[0],
            decoder_mid_attention=mid[1],
        )
    )


@pytest.mark.parametrize("mid", MIDS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_the_decoder_has_its_part_in_the_output(kind, mid):
    vae = narrow(kind, mid)
    decode(vae, tiny_latents(3)).square().sum().backward()
    assert [name for name, p in vae.decoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("mid", MIDS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_gives_the_same_gradients(kind, mid):
    gradients = []
    for checkpointing in (False, True):
        vae = narrow(kind, mid, layers=(1, 1, 1, 1))
        if checkpointing:
            vae.enable_gradient_checkpointing()
        vae.train()
        decode(vae, tiny_latents()).square().sum().backward()
        gradients.append({name: p.grad for name, p in vae.decoder.named_parameters()})
    assert all(torch.equal(gradients[1][name], gradient) for name, gradient in gradients[0].items())


def test_a_shortcut_convolution_is_where_an_upsampler_hands_over_another_width():
    names = [name for name, _ in narrow("image").decoder.named_modules() if name.endswith("conv_shortcut")]
    assert names == ["up_blocks.2.resnets.0.conv_shortcut"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"decoder_block_out_channels": (64, 128)}, "has 4 entries with the 4 stages"),
        ({"decoder_layers_per_block": (1, 3, 3)}, "has 4 entries with the 4 stages"),
        ({"decoder_upsample_out_channels": (64, 128, 384, 512)}, "has 3 entries with the 4 stages"),
        ({"decoder_block_out_channels": (64, 100, 384, 512)}, "must be multiples of 32, the groups of each norm"),
        ({"decoder_upsample_out_channels": (64, 128, 0)}, "must be multiples of 32"),
        ({"decoder_layers_per_block": (0, 3, 3, 3)}, "must be at least 1"),
        ({"decoder_mid_layers": 3}, "must be 0, 1 or 2, not 3"),
        ({"decoder_mid_attention": True}, "needs `decoder_mid_layers=2`"),
    ],
)
@pytest.mark.parametrize("cls", [VDMiniAutoencoderKLTemporalDecoder, VDMiniAutoencoderKL])
def test_fields_that_describe_no_decoder_are_refused(cls, change, complaint):
    with torch.device("meta"), pytest.raises(ValueError, match=complaint):
        cls(**change)


def test_other_up_blocks_are_refused():
    with pytest.raises(ValueError, match="must be 'UpDecoderBlock2D' throughout"):
        VDMiniAutoencoderKL(up_block_types=("AttnUpDecoderBlock2D",) * 4)


@torch.no_grad()
def test_slicing_and_tiling_work_as_in_the_parent():
    stock = tiny_teacher_vae("image")
    ours = copy_of(stock)
    latents = tiny_latents(2, 4, 6)
    for vae in (stock, ours):
        vae.enable_slicing()
        vae.enable_tiling()
    assert torch.equal(decode(ours, latents), decode(stock, latents))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_copies_and_pickles_are_the_same_model_and_independent(kind):
    vae = narrow(kind)
    expected = decode(vae, tiny_latents())
    for copied in (copy.deepcopy(vae), pickle.loads(pickle.dumps(vae))):
        assert torch.equal(decode(copied, tiny_latents()), expected)
        assert copied.config == vae.config
        randomise(copied, seed=1)
        assert torch.equal(decode(vae, tiny_latents()), expected)


def test_it_takes_the_vae_s_place_in_a_pipeline_which_saves_and_loads_it(tmp_path):
    pipe = tiny_svd_pipeline()
    teacher = pipe.vae
    config = {key: value for key, value in teacher.config.items() if not key.startswith("_")}
    vae = VDMiniAutoencoderKLTemporalDecoder(
        **config,
        decoder_block_out_channels=(32, 32),
        decoder_layers_per_block=(1, 2),
        decoder_upsample_out_channels=(32,),
    )
    pipe = VDMiniI2VPipeline(**{**pipe.components, "vae": randomise(vae).eval()})
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "vae/autoencoder_kl_vdmini.py").is_file()
    loaded = VDMiniI2VPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.vae) is VDMiniAutoencoderKLTemporalDecoder
    arguments = {"height": 16, "width": 16, "num_frames": 2, "output_type": "pt"}
    frames = [p(tiny_image(), generator=torch.Generator().manual_seed(0), **arguments).frames for p in (pipe, loaded)]
    assert frames[0].shape == (1, 2, 3, 16, 16)
    torch.testing.assert_close(*frames)


def test_the_tiny_vaes_have_a_shortcut_where_stable_video_diffusion_has_one():
    # A control: the tests use them in its place.
    with torch.device("meta"):
        full = VDMiniAutoencoderKLTemporalDecoder(**FULL_STOCK)
    names = [name for name, _ in full.decoder.named_modules() if name.endswith("conv_shortcut")]
    tiny = like(tiny_teacher_vae("temporal"))
    assert names == [name for name, _ in tiny.decoder.named_modules() if name.endswith("conv_shortcut")]
    assert len(names) == 2 and TINY_VAE_CONFIGS.keys() == VAE_CLASSES.keys()
