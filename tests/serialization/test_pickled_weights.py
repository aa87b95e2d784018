"""Untrusted pickles: no more comes out of a file than it has bytes, and only dense tensors."""

import json
import shutil
import zipfile

import pytest
import safetensors.torch
import torch

from vdmini_diffusers.serialization.pickled_weights import find_pickles, unpickle
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError
from vdmini_diffusers.t2v_turbo.checkpoint import read_original
from vdmini_diffusers.t2v_turbo.tensors import OriginalCheckpointError


def refused(state, tmp_path, match):
    """By both readers of pickles."""
    file = tmp_path / "weights.bin"
    if state is not None:
        torch.save(state, file)
    with pytest.raises(CheckpointError, match=match):
        unpickle([file], tmp_path / "scratch")
    assert not list((tmp_path / "scratch").iterdir())
    with pytest.raises(OriginalCheckpointError, match=match):
        read_original(file)


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(10**10), torch.zeros(8).as_strided((10**5, 10**5), (0, 0))],
    ids=["stride-0", "overlapping"],
)
def test_a_tensor_that_is_larger_than_its_file(tmp_path, tensor):
    refused({"weight": tensor}, tmp_path, r"weight' take \d+ bytes, and the file has \d+")


def test_many_names_for_one_large_tensor(tmp_path):
    weight = torch.zeros(100_000)
    refused({f"weight.{i}": weight for i in range(10)}, tmp_path, "it repeats elements")


def test_a_lora_of_tensors_that_are_larger_than_their_file(tmp_path):
    torch.save([torch.zeros(1).expand(10**10)], tmp_path / "unet_lora.pt")
    with pytest.raises(OriginalCheckpointError, match="it repeats elements"):
        read_original(tmp_path / "unet_lora.pt")


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
        (torch.ones(3, device="meta"), "without data"),
    ],
)
def test_a_tensor_of_another_kind(tmp_path, tensor, kind):
    refused({"weight": tensor}, tmp_path, f"'weight' is {kind}")


@pytest.mark.parametrize("state", [[1], 3, {"a": 1}, {3: torch.ones(1)}, {("a",) * 9: torch.ones(1)}])
def test_other_things_than_tensors_by_name(tmp_path, state):
    refused(state, tmp_path, "holds other things than tensors by name")


def test_a_compressed_archive(tmp_path):
    """torch.save compresses nothing; a few kilobytes of zeros could become gigabytes."""
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "plain.bin")
    with (
        zipfile.ZipFile(tmp_path / "plain.bin") as plain,
        zipfile.ZipFile(tmp_path / "weights.bin", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in plain.namelist():
            packed.writestr(member, plain.read(member))
    refused(None, tmp_path, "its members are compressed")


def test_a_truncated_archive(tmp_path):
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "plain.bin")
    (tmp_path / "weights.bin").write_bytes((tmp_path / "plain.bin").read_bytes()[:2000])
    refused(None, tmp_path, "cannot be read as pickled weights")


def test_tied_weights_and_views_are_read(tmp_path):
    """With one file from before PyTorch 1.6, which is no archive."""
    weight = torch.arange(12.0)
    state = {"a": weight, "tied": weight, "view": weight[3:6], "turned": weight.view(3, 4).T}
    torch.save({"a": weight, "tied": weight}, tmp_path / "new.bin")
    torch.save({k: v for k, v in state.items() if k not in ("a", "tied")}, tmp_path / "old.bin", pickle_protocol=2)
    torch.save({"legacy": weight}, tmp_path / "legacy.bin", _use_new_zipfile_serialization=False)
    files = [tmp_path / name for name in ("new.bin", "old.bin", "legacy.bin")]
    found = unpickle(files, tmp_path / "scratch")
    for name, expected in {**state, "legacy": weight}.items():
        assert torch.equal(safetensors.torch.load_file(found[name].file)[name], expected)
    shutil.rmtree(tmp_path / "scratch")


@pytest.mark.parametrize("name", [3, None, "../x.bin", "x.pt", "a/x.bin"])
def test_an_index_that_names_another_file(tmp_path, name):
    (tmp_path / "model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"must map each tensor|shards are files beside their index"):
        find_pickles(tmp_path, "model")
