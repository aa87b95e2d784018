"""Shards of a video transformer that do not hold together, and quantised ones: refused before anything is written."""

import json
import re
import shutil

import pytest
import safetensors.torch
import torch
from tiny_hunyuan_video import tiny_hunyuan_pipeline

from vdmini_diffusers.pruning import TransformerPruningPlan
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError


PLAN = TransformerPruningPlan(
    "tiny",
    "HunyuanVideoTransformer3DModel",
    {"transformer_blocks": (0, 2), "single_transformer_blocks": (1, 3, 4)},
)
INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hunyuan") / "teacher"
    tiny_hunyuan_pipeline().save_pretrained(folder, max_shard_size="120KB")
    return folder


@pytest.fixture
def transformer(original, tmp_path):
    return shutil.copytree(original, tmp_path / "teacher") / "transformer"


def refused(transformer, match):
    with pytest.raises(CheckpointError, match=match):
        prune_pipeline(transformer.parent, transformer.parents[1] / "student", PLAN)
    assert [path.name for path in transformer.parents[1].iterdir()] == ["teacher"]


def edit_index(transformer, change):
    index = json.loads((transformer / INDEX).read_text())
    change(index)
    (transformer / INDEX).write_text(json.dumps(index))


def edit_shards(transformer, change):
    """In each shard, what `change` makes of its tensors."""
    for file in transformer.glob("*.safetensors"):
        safetensors.torch.save_file(change(safetensors.torch.load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("block", ["transformer_blocks.1.", "single_transformer_blocks.4."], ids=["removed", "kept"])
def test_shards_without_a_block(transformer, block):
    def without(names):
        return {name: value for name, value in names.items() if not name.startswith(block)}

    edit_shards(transformer, without)
    edit_index(transformer, lambda index: index.update(weight_map=without(index["weight_map"])))
    edit_index(transformer, lambda index: index["metadata"].pop("total_size"))
    refused(transformer, rf"transformer: the weights lack tensor '{re.escape(block)}.*' of the transformer")


def test_an_index_that_lies_about_the_size(transformer):
    edit_index(transformer, lambda index: index["metadata"].update(total_size=123))
    refused(transformer, rf"{INDEX}: `total_size` says 123 bytes, and the tensors of the shards have \d{{6}}: ")


def test_an_index_that_says_nothing_of_the_size(transformer):
    edit_index(transformer, lambda index: index.pop("metadata"))
    prune_pipeline(transformer.parent, transformer.parents[1] / "student", PLAN)


def test_an_index_that_names_the_wrong_shard(transformer):
    def swap(index):
        shards = sorted(set(index["weight_map"].values()))
        index["weight_map"]["x_embedder.proj.weight"] = shards[-1]

    edit_index(transformer, swap)
    refused(
        transformer, r"00001-of-00004.safetensors: tensor 'x_embedder.proj.weight' is in the shard, and not listed"
    )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
def test_quantised_weights_with_scales_beside_them(transformer, dtype):
    def quantise(state):
        weights = {name: tensor for name, tensor in state.items() if name.endswith("to_q.weight")}
        scales = {name.replace("weight", "weight_scale"): torch.ones(1) for name in weights}
        return state | {name: tensor.to(dtype) for name, tensor in weights.items()} | scales

    edit_shards(transformer, quantise)
    weight_map = {}
    for file in transformer.glob("*.safetensors"):
        weight_map |= dict.fromkeys(safetensors.torch.load_file(file), file.name)
    (transformer / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refused(transformer, r"to_q\.weight' is (F8_E4M3|I8); weights are .*have scales beside them and are not pruned")
