"""The original VAE's and text encoder's tensors, renamed, compute what the original's description says."""

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from drawn_weights import DrawnWeights
from original_text_encoder import LAYERS, TOKENS, VOCABULARY, text_encoder
from original_vae import GROUPS, WIDTHS, decode, encode
from transformers import CLIPTextConfig, CLIPTextModel

from vdmini_diffusers.t2v_turbo.tensors import OriginalCheckpointError, convert_tensors
from vdmini_diffusers.t2v_turbo.text_encoder import (
    original_text_encoder_key,
    text_encoder_config,
    unused_text_encoder_keys,
)
from vdmini_diffusers.t2v_turbo.vae import original_vae_key, vae_config


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def converted_vae(tensors):
    config = vae_config(tensors) | {"norm_num_groups": GROUPS}
    assert config["block_out_channels"] == WIDTHS
    vae = AutoencoderKL(**config).double().eval()
    vae.load_state_dict(convert_tensors(tensors, shapes_of(vae), original_vae_key, network="VAE"))
    return vae


def converted_text_encoder(tensors):
    model = CLIPTextModel(CLIPTextConfig(**text_encoder_config(tensors))).double().eval()
    unused = unused_text_encoder_keys(tensors)
    model.load_state_dict(convert_tensors(tensors, shapes_of(model), original_text_encoder_key, unused))
    return model


def draw(function, *args):
    weights = DrawnWeights()
    with torch.no_grad():
        function(weights, *args)
    return weights


def assert_same_gradients(model, weights, source_of):
    """None of them zero: a changed tensor changes the output."""
    for name, parameter in model.named_parameters():
        source = source_of(name)
        gradient = weights[source.key].grad
        gradient = gradient if source.third is None else gradient.chunk(3)[source.third]
        error = (parameter.grad - gradient.reshape(parameter.shape)).abs().max()
        # The bias of a key shifts all scores of a row alike, which softmax takes away: in it, both are rounding.
        if not (name.endswith("k_proj.bias") or name.endswith("to_k.bias")):
            assert gradient.abs().max() > 1e-9, name
        assert error <= 1e-9 * gradient.abs().max() + 1e-13, name


class TestVae:
    def test_it_encodes_and_decodes_as_the_original(self):
        pixels = torch.randn(2, 3, 32, 24, dtype=torch.float64)
        latents = torch.randn(2, 4, 4, 3, dtype=torch.float64)
        weights = draw(encode, pixels)
        with torch.no_grad():
            decode(weights, latents)
        assert len(weights) == 248
        vae = converted_vae(weights)
        for tensor in weights.values():
            tensor.requires_grad_()
        expected = encode(weights, pixels), decode(weights, latents)
        posterior = vae.encode(pixels).latent_dist
        output = torch.cat([posterior.mean, posterior.logvar], dim=1), vae.decode(latents).sample
        for ours, theirs in zip(output, expected, strict=True):
            assert theirs.std() > 0.1
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
        sum(x.square().mean() for x in expected).backward()
        sum(x.square().mean() for x in output).backward()
        assert_same_gradients(vae, weights, original_vae_key)

    def test_at_full_size_it_is_stable_diffusion_s(self):
        widths = (128, 256, 512, 512)
        tensors = {f"encoder.down.{i}.block.0.conv2.weight": torch.empty(n, 1) for i, n in enumerate(widths)}
        with init_empty_weights():
            vae = AutoencoderKL(**vae_config({**tensors, "post_quant_conv.weight": torch.empty(4, 4)}))
        assert vae.num_parameters() == 83_653_863
        assert len({original_vae_key(name).key for name in vae.state_dict()}) == 248

    def test_something_else_is_refused(self):
        with pytest.raises(OriginalCheckpointError, match="no VAE of VideoCrafter2: it has no 'encoder"):
            vae_config({"conv_in.weight": torch.zeros(1)})


class TestTextEncoder:
    def test_it_encodes_as_the_original_without_its_last_layer(self):
        tokens = torch.randint(1, VOCABULARY, (2, TOKENS))
        tokens[0, 5:] = 0  # padding
        weights = draw(text_encoder, tokens)
        model = converted_text_encoder(weights)
        assert model.config.num_hidden_layers == LAYERS - 1 and model.config.hidden_act == "gelu"
        for name, tensor in weights.items():
            tensor.requires_grad_(name != "attn_mask")
        expected, output = text_encoder(weights, tokens), model(tokens).last_hidden_state
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
        weighting = torch.randn_like(expected)  # the norm before it makes every sum of squares the same
        for result in (expected, output):
            (result * weighting).sum().backward()
        assert_same_gradients(model, weights, original_text_encoder_key)

    def test_a_tensor_of_the_last_layer_may_be_missing_and_no_other(self):
        weights = dict(draw(text_encoder, torch.zeros(1, TOKENS, dtype=torch.long)))
        for name in ("text_projection", f"transformer.resblocks.{LAYERS - 1}.ln_1.bias"):
            del weights[name]
        converted_text_encoder(weights)
        del weights["transformer.resblocks.1.ln_1.bias"]
        with pytest.raises(OriginalCheckpointError, match=r"1 missing: transformer\.resblocks\.1\.ln_1\.bias"):
            converted_text_encoder(weights)

    def test_a_number_in_a_name_is_not_taken_for_that_many_layers(self):
        weights = dict(draw(text_encoder, torch.zeros(1, TOKENS, dtype=torch.long)))
        weights["transformer.resblocks.999999999.ln_1.bias"] = torch.zeros(1)
        with pytest.raises(OriginalCheckpointError, match=r"1 unknown: transformer\.resblocks\.999999999\.ln_1"):
            converted_text_encoder(weights)

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("token_embedding.weight", (60,)),
            ("transformer.resblocks.1.attn.in_proj_bias", (2,)),
            ("transformer.resblocks.1.attn.in_proj_weight", ()),
        ],
    )
    def test_a_tensor_of_another_shape_is_named(self, name, shape):
        weights = dict(draw(text_encoder, torch.zeros(1, TOKENS, dtype=torch.long)))
        weights[name] = torch.zeros(shape)
        with pytest.raises(OriginalCheckpointError, match=name.replace(".", r"\.")):
            converted_text_encoder(weights)

    def test_at_full_size_it_has_the_parameters_of_23_layers_of_open_clip_s(self):
        tensors = {
            "token_embedding.weight": torch.empty(49408, 1024, device="meta"),
            "positional_embedding": torch.empty(77, 1024, device="meta"),
            "transformer.resblocks.0.mlp.c_fc.weight": torch.empty(4096, 1024, device="meta"),
        }
        tensors |= {f"transformer.resblocks.{i}.ln_1.bias": torch.empty(1024, device="meta") for i in range(24)}
        config = text_encoder_config(tensors)
        assert (config["bos_token_id"], config["eos_token_id"], config["num_attention_heads"]) == (49406, 49407, 16)
        with init_empty_weights():
            model = CLIPTextModel(CLIPTextConfig(**config))
        assert model.num_parameters() == 340_387_840
