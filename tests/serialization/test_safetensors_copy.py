import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vdmini_diffusers.serialization import safetensors_copy, sources
from vdmini_diffusers.serialization.safetensors_copy import copy_checkpoint
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError, read_checkpoint


DTYPES = {torch.float16: np.uint16, torch.bfloat16: np.uint16, torch.float32: np.uint32, torch.float64: np.uint64}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(st.data())
@settings(max_examples=60)
def test_any_bits_are_copied_if_and_only_if_they_are_finite_numbers(dtype, tmp_path_factory, data):
    largest = np.iinfo(DTYPES[dtype]).max
    exponent = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000}.get(dtype, 0x7FF << 52)
    near = st.sampled_from([exponent - 1, exponent, exponent + 1, largest - exponent, largest, 0])
    bits = data.draw(st.lists(st.integers(0, int(largest)) | near, min_size=1, max_size=9))
    tensor = torch.from_numpy(np.array(bits, DTYPES[dtype])).view(dtype)
    folder = tmp_path_factory.mktemp("weights")
    safetensors.torch.save_file({"a": tensor}, folder / "model.safetensors")
    source = read_checkpoint(folder, "model", None)
    if tensor.isfinite().all():
        copy_checkpoint(source, {"b": "a"}, folder / "copied", "model")
        copied = safetensors.torch.load_file(folder / "copied" / "model.safetensors")["b"]
        assert copied.view(torch.uint8).tolist() == tensor.view(torch.uint8).tolist()
    else:
        first = int(tensor.isfinite().logical_not().nonzero()[0])
        with pytest.raises(CheckpointError, match=rf"tensor 'a' holds .* at element {first}\."):
            copy_checkpoint(source, {"b": "a"}, folder / "copied", "model")


def test_tensors_of_many_chunks_are_copied_whole_and_a_fault_in_a_late_one_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_BYTES", 16)
    monkeypatch.setattr(sources, "WINDOW_BYTES", 48)
    monkeypatch.setattr(safetensors_copy, "PIECE_BYTES", 112)
    monkeypatch.setattr(safetensors_copy, "MAX_IN_USE", 2)
    tensors = {"a": torch.arange(1001.0), "b": torch.arange(77.0), "left out": torch.arange(5.0)}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    source = read_checkpoint(tmp_path, "model", None)
    for known in ({}, {tmp_path / "model.safetensors": "0" * 64}):  # the first reads all, the second skips
        out = tmp_path / f"copied-{len(known)}"
        hashes = copy_checkpoint(source, {"x": "b", "y": "a"}, out, "model", known_sha256=known)
        copied = safetensors.torch.load_file(out / "model.safetensors")
        assert torch.equal(copied["x"], tensors["b"]) and torch.equal(copied["y"], tensors["a"])
        assert len(next(iter(hashes.values())).sha256) == 64
    tensors["a"][999] = -torch.inf
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="tensor 'a' holds -inf at element 999"):
        copy_checkpoint(read_checkpoint(tmp_path, "model", None), {"y": "a"}, tmp_path / "spoilt", "model")
