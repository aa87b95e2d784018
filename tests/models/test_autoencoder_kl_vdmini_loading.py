"""Saving and loading the VAEs with a compressed decoder: strict where diffusers only warns."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TINY_VAE_CONFIGS, VAE_CLASSES, decode, randomise, tiny_latents, tiny_teacher_vae


KINDS = list(VAE_CLASSES)
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
NARROW = {
    "temporal": {"decoder_block_out_channels": (32, 64, 96, 128), "decoder_upsample_out_channels": (32, 64, 96)},
    "image": {"decoder_block_out_channels": (8, 16, 24, 32), "decoder_upsample_out_channels": (8, 16, 24)},
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def vae(kind):
    return randomise(VAE_CLASSES[kind][1](**TINY_VAE_CONFIGS[kind], **NARROW[kind])).eval()


@pytest.fixture
def folder(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    return tmp_path


def assert_same_model(loaded, expected):
    tensors = expected.state_dict()
    assert loaded.state_dict().keys() == tensors.keys()
    assert all(torch.equal(value, tensors[key]) for key, value in loaded.state_dict().items())
    with torch.no_grad():
        pictures = [decode(model, tiny_latents()) for model in (loaded, expected)]
    # Close, not equal: tensors in a mapped file lie at other alignments, for which CPU kernels sum in another order.
    torch.testing.assert_close(*pictures, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "save", [{}, {"max_shard_size": "200KB"}, {"variant": "fp16"}], ids=["one file", "shards", "variant"]
)
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_what_is_saved_loads_as_the_same_model(save, low_cpu_mem_usage, vae, tmp_path):
    vae.save_pretrained(tmp_path, **save)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == ("max_shard_size" in save)
    loaded, info = type(vae).from_pretrained(
        tmp_path, variant=save.get("variant"), low_cpu_mem_usage=low_cpu_mem_usage, output_loading_info=True
    )
    assert not any(info.values()), info
    assert not loaded.training
    assert_same_model(loaded, vae)


def test_the_config_round_trips_through_json(vae, folder):
    config = type(vae).load_config(folder)
    assert config["_class_name"] == type(vae).__name__
    assert config["decoder_layers_per_block"] == [1, 3, 3, 3]
    assert config["decoder_mid_layers"] == 1 and config["decoder_mid_attention"] is False
    rebuilt = type(vae).from_config(config)
    shapes = {key: tensor.shape for key, tensor in vae.state_dict().items()}
    assert {key: tensor.shape for key, tensor in rebuilt.state_dict().items()} == shapes


def test_it_loads_from_a_subfolder_and_in_another_dtype(vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    loaded = type(vae).from_pretrained(tmp_path, subfolder="vae", torch_dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


def without_a_tensor(tensors):
    del tensors["decoder.conv_out.bias"]


def with_an_unknown_tensor(tensors):
    tensors["decoder.mid_block.attentions.0.to_q.bias"] = torch.zeros(32)


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (without_a_tensor, r"1 missing tensors \(decoder\.conv_out\.bias"),
        (with_an_unknown_tensor, r"1 unexpected tensors \(decoder\.mid_block\.attentions\.0\.to_q\.bias"),
    ],
)
def test_a_checkpoint_with_a_tensor_too_few_or_too_many_is_refused(damage, complaint, shards, vae, tmp_path):
    vae.save_pretrained(tmp_path, max_shard_size="200KB" if shards else "1GB")
    tensors = {key: value for path in tmp_path.glob("*.safetensors") for key, value in load_file(path).items()}
    damage(tensors)
    if shards:
        index = json.loads((tmp_path / INDEX).read_text())
        last = max(index["weight_map"].values())
        index["weight_map"] = {key: index["weight_map"].get(key, last) for key in tensors}
        (tmp_path / INDEX).write_text(json.dumps(index))
        for name in set(index["weight_map"].values()):
            part = {key: value for key, value in tensors.items() if index["weight_map"][key] == name}
            save_file(part, tmp_path / name, metadata={"format": "pt"})
    else:
        save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=complaint):
        type(vae).from_pretrained(tmp_path)


def test_a_tensor_of_another_shape_is_refused(vae, folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["decoder.conv_out.bias"] = torch.zeros(5)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match=r"decoder\.conv_out\.bias"):
        type(vae).from_pretrained(folder)


def test_a_teacher_s_folder_is_refused(kind, tmp_path):
    # Its config says nothing of the decoder, so the student is built with the defaults, which are of other widths.
    tiny_teacher_vae(kind).save_pretrained(tmp_path)
    with pytest.raises((ValueError, RuntimeError), match="decoder"):
        VAE_CLASSES[kind][1].from_pretrained(tmp_path)


def test_a_decoder_that_keeps_everything_opens_with_the_stock_class(kind, tmp_path):
    stock, ours = VAE_CLASSES[kind]
    teacher = tiny_teacher_vae(kind)
    widths = teacher.config.block_out_channels
    vae = ours(
        **TINY_VAE_CONFIGS[kind],
        decoder_block_out_channels=widths,
        decoder_layers_per_block=(3,) * 4,
        decoder_upsample_out_channels=widths[1:],
        decoder_mid_layers=2,
        decoder_mid_attention=True,
    )
    vae.load_state_dict(teacher.state_dict())
    vae.save_pretrained(tmp_path)
    loaded, info = stock.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_model(loaded, teacher)
