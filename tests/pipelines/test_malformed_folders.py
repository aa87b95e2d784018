"""Damaged `model_index.json` and `config.json`: an `OSError` or `ValueError` that names the file or folder."""

import json
import shutil

import pytest
from tiny import student_of, tiny_svd_pipeline
from tiny_text_to_video import tiny_t2v_pipeline

from vdmini_diffusers import (
    VDMiniI2VPipeline,
    VDMiniT2VPipeline,
    VDMiniUNet3DConditionModel,
    VDMiniUNetSpatioTemporalConditionModel,
)
from vdmini_diffusers.pruning import VDMINI_UNET


CLASSES = {
    "i2v": (VDMiniI2VPipeline, VDMiniUNetSpatioTemporalConditionModel),
    "t2v": (VDMiniT2VPipeline, VDMiniUNet3DConditionModel),
}
NOT_OBJECTS = ["", "{", "[" * 100_000, "[]", "3", "null", '"text"', "\x00", '{"a": ' * 20_000]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    svd = tiny_svd_pipeline()
    VDMiniI2VPipeline(**{**svd.components, "unet": student_of(svd.unet, VDMINI_UNET)}).save_pretrained(root / "i2v")
    tiny_t2v_pipeline().save_pretrained(root / "t2v")
    return root


@pytest.fixture(params=["i2v", "t2v"])
def folder(request, whole, tmp_path):
    shutil.copytree(whole / request.param, tmp_path / request.param)
    return tmp_path / request.param


def refused(cls, folder, named) -> str:
    with pytest.raises((OSError, ValueError)) as caught:
        cls.from_pretrained(folder)
    assert str(named) in str(caught.value), caught.value
    return str(caught.value)


def test_a_model_index_that_is_no_json_object_is_refused_by_name(folder):
    for text in NOT_OBJECTS:
        (folder / "model_index.json").write_text(text)
        refused(CLASSES[folder.name][0], folder, folder / "model_index.json")
    (folder / "model_index.json").write_bytes(b"\xff\xfe\x00")
    refused(CLASSES[folder.name][0], folder, folder / "model_index.json")


@pytest.mark.parametrize(
    "entry",
    [[], ["diffusers"], ["diffusers", "A", "B"], ["diffusers", 3], [None, "A"], [["diffusers"], "A"], [{}, {}]],
)
def test_an_entry_of_another_shape_is_refused_by_name(entry, folder):
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("unet", "_class_name"):
        (folder / "model_index.json").write_text(json.dumps({**index, name: entry}))
        assert f"`{name}`" in refused(CLASSES[folder.name][0], folder, folder / "model_index.json")


@pytest.mark.parametrize(
    "change", [{"unet": 3}, {"unet": "a"}, {"unet": {}}, {"_class_name": None}, {"_class_name": 3}]
)
def test_an_entry_of_another_type_is_refused(change, folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **change}))
    refused(CLASSES[folder.name][0], folder, folder)


def test_a_config_that_is_no_json_object_is_refused_by_name(folder):
    for text in NOT_OBJECTS:
        (folder / "unet" / "config.json").write_text(text)
        refused(CLASSES[folder.name][1], folder / "unet", folder / "unet" / "config.json")


@pytest.mark.parametrize(
    "change",
    [
        {"block_out_channels": "wide"},
        {"block_out_channels": [32, None, 64]},
        {"block_out_channels": []},
        {"block_out_channels": [-32, 32, 64]},
        {"down_block_types": 3},
        {"down_block_types": [["a"], {}, None]},
        {"layers_per_block": {}},
        {"layers_per_block": [1, "two", 2]},
        {"layers_per_block": 0},
        {"in_channels": "8"},
        {"cross_attention_dim": None},
        {"mid_block_type": []},
        {"block_out_channels": [64, 64, 128]},
    ],
    ids=str,
)
def test_a_config_of_other_types_or_of_another_network_is_refused_by_the_folders_name(change, folder):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    message = refused(CLASSES[folder.name][1], folder / "unet", folder / "unet")
    assert "\n" not in message


def test_damaged_weights_are_refused_by_the_folders_name(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    refused(CLASSES[folder.name][1], folder / "unet", folder / "unet")
    refused(CLASSES[folder.name][0], folder, folder)


@pytest.mark.parametrize(
    "change", [{"block_out_channels": "wide"}, {"layers_per_block": None}, {"latent_channels": -1}]
)
def test_a_config_of_a_stock_component_is_refused_by_the_pipelines_name(change, folder):
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refused(CLASSES[folder.name][0], folder, folder)
