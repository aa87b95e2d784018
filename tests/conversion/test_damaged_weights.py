"""Random damage to weight files: they are refused in our words, or read; nothing else happens."""

import json
import shutil
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.serialization.safetensors_copy import copy_checkpoint
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError, read_header


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    file = tmp_path_factory.mktemp("small") / "x.safetensors"
    tensors = {"a": torch.ones(3), "b": torch.ones(2, 2, dtype=torch.float16), "c": torch.ones(0)}
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    return file.read_bytes()


class TestAnyDamage:
    """Random damage to a small file: it is refused in our words, or read; nothing else happens."""

    @settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_damaged_bytes(self, tmp_path, content, data):
        damaged = bytearray(content)
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        self.read(tmp_path, bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))

    @settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        header=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["a", "dtype", "shape", "data_offsets", "F32"]), inner, max_size=4)
            ),
            max_leaves=12,
        ),
        data=st.binary(max_size=16),
    )
    def test_any_json_as_header(self, tmp_path, header, data):
        text = json.dumps(header).encode()
        self.read(tmp_path, struct.pack("<Q", len(text)) + text + data)

    def read(self, tmp_path, content):
        file = tmp_path / "damaged.safetensors"
        file.write_bytes(content)
        try:
            tensors = read_header(file)
        except CheckpointError as error:
            assert str(file) in str(error)
            return
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        try:
            copy_checkpoint(tensors, {name: name for name in tensors}, tmp_path / "out", "x")
        except CheckpointError as error:
            assert "holds" in str(error)  # NaN or infinity
            return
        # What we accept, safetensors accepts, and what we write, it reads.
        expected = safetensors.torch.load_file(file)
        copied = safetensors.torch.load_file(tmp_path / "out" / "x.safetensors")
        assert copied.keys() == expected.keys()
        assert all(torch.equal(copied[name], expected[name]) for name in copied)

    @settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_damaged_header_of_a_whole_teacher(self, teacher_folder, tmp_path, data):
        teacher = tmp_path / "teacher"
        if not teacher.exists():
            shutil.copytree(teacher_folder, teacher)
        file = teacher / WEIGHTS
        content = (teacher_folder / WEIGHTS).read_bytes()
        header_end = 8 + struct.unpack("<Q", content[:8])[0]
        position = data.draw(st.integers(0, header_end - 1))
        damaged = content[:position] + bytes([data.draw(st.integers(0, 255))]) + content[position + 1 :]
        file.write_bytes(damaged)
        try:
            prune_pipeline(teacher, tmp_path / "student", overwrite=True)
            shutil.rmtree(tmp_path / "student")
        except CheckpointError as error:
            assert "unet" in str(error)
        assert [path.name for path in tmp_path.iterdir()] == ["teacher"]
