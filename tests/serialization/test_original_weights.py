"""Original checkpoints, whose tensors are found in the file without being loaded: as diffusers converts them."""

import pickle
import re

import pytest
import safetensors.torch
import torch
from diffusers.loaders import single_file_model
from original_hunyuan_video import original_hunyuan_video
from tiny_hunyuan_video import tiny_hunyuan_transformer

from vdmini_diffusers.serialization.original_weights import read_original_weights
from vdmini_diffusers.serialization.safetensors_copy import copy_checkpoint
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError


HUNYUAN = "HunyuanVideoTransformer3DModel"


@pytest.fixture(scope="module")
def state():
    """Diffusers' names; the single-stream blocks' attention has the rows that its converter takes for granted."""
    state = tiny_hunyuan_transformer(num_layers=2, num_single_layers=2).bfloat16().state_dict()
    for name, tensor in state.items():
        if re.match(r"single_transformer_blocks.*\.attn\.to_[qkv]", name):
            state[name] = torch.randn(3072, *tensor.shape[1:]).bfloat16()
    return state


@pytest.fixture
def save(tmp_path):
    def save(content, name="mp_rank_00_model_states.pt"):
        if name.endswith(".safetensors"):
            safetensors.torch.save_file(content, tmp_path / name)
        else:
            torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("kind", ["module", "bare", "safetensors", "more"])
def test_every_tensor_is_the_one_that_diffusers_makes(state, save, tmp_path, kind):
    original = original_hunyuan_video(state)
    file = save(
        {
            "module": {"module": original},
            "more": {"ema": {name: tensor + 1 for name, tensor in original.items()}, "module": original},
        }.get(kind, original),
        "original.safetensors" if kind == "safetensors" else "mp_rank_00_model_states.pt",
    )
    stored = read_original_weights(file, HUNYUAN)
    converted = single_file_model.SINGLE_FILE_LOADABLE_CLASSES[HUNYUAN]["checkpoint_mapping_fn"](dict(original))
    assert {name: tensor.shape for name, tensor in stored.items()} == {n: tuple(t.shape) for n, t in converted.items()}
    copy_checkpoint(stored, {name: name for name in stored}, tmp_path / "copied", "x", known_sha256={file: None})
    copied = safetensors.torch.load_file(tmp_path / "copied/x.safetensors")
    assert all(torch.equal(copied[name], tensor) for name, tensor in converted.items())
    assert all(torch.equal(copied[name], tensor) for name, tensor in state.items())
    assert len(stored["norm_out.linear.weight"].ranges) == 2  # its halves are swapped


def test_the_dtype_of_a_quantised_file_is_kept_for_what_checks_it(state, save):
    original = original_hunyuan_video(state)
    name = "double_blocks.0.img_attn_qkv.weight"
    original[name] = original[name].to(torch.float8_e4m3fn)
    stored = read_original_weights(save({"module": original}), HUNYUAN)
    assert stored["transformer_blocks.0.attn.to_k.weight"].dtype == "F8_E4M3"
    assert stored["transformer_blocks.1.attn.to_k.weight"].dtype == "BF16"


class TestRefusals:
    def test_a_file_of_another_network(self, save):
        with pytest.raises(CheckpointError, match="is not an original checkpoint of a Hunyuan"):
            read_original_weights(save({"single_blocks.0.linear1.weight": torch.ones(12, 4)}), HUNYUAN)

    def test_a_class_that_diffusers_does_not_convert(self, save):
        with pytest.raises(ValueError, match="converts no original checkpoint to a LatteTransformer3DModel"):
            read_original_weights(save({"x": torch.ones(1)}), "LatteTransformer3DModel")

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            (lambda tensor: tensor * 2, "weight"),
            (lambda tensor: tensor + 1, "weight"),
            (lambda tensor: -tensor, "weight"),
            (lambda tensor: tensor.T, "weight"),
            (lambda tensor: tensor.float(), "weight"),
            (lambda tensor: None, "weight"),
            (lambda tensor: torch.zeros(6, 1, dtype=tensor.dtype), "weight"),
            (lambda tensor: tensor[:0], "weight"),
            (lambda tensor: tensor.squeeze(), "weight"),
        ],
    )
    def test_a_converter_that_does_more_than_move_rows(self, save, monkeypatch, change, name):
        converter = {"checkpoint_mapping_fn": lambda checkpoint: {k: change(v) for k, v in checkpoint.items()}}
        monkeypatch.setitem(single_file_model.SINGLE_FILE_LOADABLE_CLASSES, HUNYUAN, converter)
        with pytest.raises(CheckpointError, match=f"makes '{name}' by more than moving rows"):
            read_original_weights(save({"weight": torch.ones(6, 4)}), HUNYUAN)

    def test_rows_of_tensors_that_differ_in_dtype(self, save, monkeypatch):
        converter = {"checkpoint_mapping_fn": lambda checkpoint: {"x": torch.cat(list(checkpoint.values()))}}
        monkeypatch.setitem(single_file_model.SINGLE_FILE_LOADABLE_CLASSES, HUNYUAN, converter)
        with pytest.raises(CheckpointError, match="by more than moving rows"):
            read_original_weights(save({"a": torch.ones(6, 4), "b": torch.ones(6, 4).half()}), HUNYUAN)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"a": 1}, "holds other things than tensors by name"),
            ({"a": torch.arange(3)}, r"tensor 'a' is torch\.int64"),
            ({"a": torch.ones(3, 4).T}, "or not contiguous"),
            ([torch.ones(3)], "holds other things than tensors by name"),
            ({"a": torch.ones(3).to_sparse()}, "is sparse|cannot be read|holds other things"),
        ],
    )
    def test_a_pickle_of_other_things(self, save, content, message):
        with pytest.raises(CheckpointError, match=message):
            read_original_weights(save(content), HUNYUAN)

    @pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
    def test_rows_without_bytes_take_no_memory(self, save, name):
        with pytest.raises(CheckpointError, match=r"'a' has the shape \[2199023255552, 0\]: weights are not empty"):
            read_original_weights(save({"a": torch.ones(2**41, 0), "b": torch.ones(1)}, name), HUNYUAN)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.pt is not a file"):
            read_original_weights(tmp_path / "nowhere.pt", HUNYUAN)

    def test_a_file_that_is_no_archive(self, tmp_path):
        (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": 1}))
        with pytest.raises(CheckpointError, match="neither safetensors nor an archive"):
            read_original_weights(tmp_path / "x.pt", HUNYUAN)
