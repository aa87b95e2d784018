"""What an untrusted JSON file may cost."""

import json
import struct
import time

import pytest

from vdmini_diffusers.serialization.safetensors_reader import (
    MAX_JSON_BYTES,
    CheckpointError,
    read_checkpoint,
    read_header,
    read_json,
)


def object_with_a_duplicate(num_keys: int) -> bytes:
    return ("{" + ",".join(f'"{i:x}":0' for i in range(num_keys)) + f',"{num_keys - 1:x}":1' + "}").encode()


@pytest.mark.parametrize("kind", ["json", "header"])
def test_a_duplicate_among_100_000_keys_is_found_at_once(tmp_path, kind):
    text = object_with_a_duplicate(100_000)
    file = tmp_path / "model_index.json"
    file.write_bytes(struct.pack("<Q", len(text)) + text if kind == "header" else text)
    start = time.process_time()
    with pytest.raises(CheckpointError, match="'1869f' is described twice"):
        (read_header if kind == "header" else read_json)(file)
    assert time.process_time() - start < 5  # minutes, in quadratic time


def test_an_index_of_10_000_shards_is_read_in_one_pass(tmp_path):
    weight_map = {f"t{i}": f"{i}.safetensors" for i in range(10_000)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    header = json.dumps({"t0": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "0.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"names the shard 1\.safetensors, which is missing"):
        read_checkpoint(tmp_path, "model")
    assert time.process_time() - start < 5


@pytest.mark.parametrize("content", ["[1]", "3", "null", '"x"', "[" * 100_000, "NaNa", "", "\x00", '{"a": 1, "a": 2}'])
def test_what_is_no_object_is_refused(tmp_path, content):
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_json(file)


def test_a_file_that_is_no_text_or_too_large_or_a_loop_of_links_is_refused(tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CheckpointError, match="should hold JSON here"):
        read_json(file)
    with file.open("wb") as stream:
        stream.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(CheckpointError, match="larger than"):
        read_json(file)
    (tmp_path / "loop.json").symlink_to("loop.json")
    with pytest.raises(CheckpointError, match="is missing"):
        read_json(tmp_path / "loop.json")


def test_a_list_is_read_where_a_list_is_expected(tmp_path):
    (tmp_path / "list.json").write_text("[1, 2]")
    assert read_json(tmp_path / "list.json", list) == [1, 2]


def test_a_message_quotes_no_more_than_a_few_characters(tmp_path):
    text = json.dumps({"t": {"dtype": "x" * 1_000_000, "shape": [], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError) as refusal:
        read_header(tmp_path / "x.safetensors")
    assert len(str(refusal.value)) < 1000
