import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import randomise
from torch import nn
from transformers import VideoMAEConfig, VideoMAEModel

from vdmini_diffusers.evaluation.detectors import (
    I3DDetector,
    TorchScriptDetector,
    VideoMAEDetector,
    clip_features,
    feature_batches,
    load_detector,
    prepare,
)
from vdmini_diffusers.evaluation.i3d import I3D
from vdmini_diffusers.serialization.hashes import weights_sha256


class TestPreparing:
    def test_layout_and_range(self):
        clips = torch.zeros((2, 3, 224, 224, 3), dtype=torch.uint8)
        clips[1, 2, 5, 7, 0] = 255
        prepared = prepare(clips, torch.device("cpu"))
        assert prepared.shape == (2, 3, 3, 224, 224) and prepared.dtype == torch.float32
        assert (prepared == 1).nonzero().tolist() == [[1, 2, 0, 5, 7]]
        assert (prepared == -1).sum() == prepared.numel() - 1

    def test_resizing_is_bilinear_between_the_centres_of_pixels(self):
        clips = torch.zeros((1, 1, 112, 112, 3), dtype=torch.uint8)
        clips[..., 1, :] = 200  # the second column
        row = (prepare(clips, torch.device("cpu"))[0, 0, 0, 50] + 1) * 127.5
        torch.testing.assert_close(row[:6], torch.tensor([0.0, 50, 150, 150, 50, 0]), atol=1e-3, rtol=0)

    @settings(max_examples=10)
    @given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 255))
    def test_a_uniform_clip_of_any_size_stays_uniform(self, height, width, value):
        prepared = prepare(torch.full((1, 2, height, width, 3), value, dtype=torch.uint8), torch.device("cpu"))
        assert prepared.shape == (1, 2, 3, 224, 224)
        torch.testing.assert_close(prepared, torch.full_like(prepared, value / 127.5 - 1))


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    model = I3D().requires_grad_(False)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(0.15)  # so that clips are still different after twenty layers
    return I3DDetector(model)


def noise_clips(seed: int, n: int = 2, frames: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, frames, 8, 8, 3), dtype=np.uint8)


class TestFeatures:
    def test_they_do_not_depend_on_the_batch(self, detector):
        clips = noise_clips(0, n=3)
        together, apart = (clip_features(clips, detector, batch_size=k) for k in (3, 2))
        assert together.shape == (3, 400) and together.dtype == np.float64
        np.testing.assert_allclose(together, apart, atol=1e-5)
        assert np.abs(together[0] - together[1]).max() > 1e-4

    def test_clips_are_taken_when_they_are_needed(self, detector):
        taken = []

        def clips():
            for index, clip in enumerate(noise_clips(0, n=3)):
                taken.append(index)
                yield clip

        batches = feature_batches(clips(), detector, batch_size=1)
        assert next(batches).shape == (1, 400) and taken == [0]

    @pytest.mark.parametrize(
        "clips",
        [
            np.zeros((2, 3, 8, 8, 3)),  # floats in 0 to 1, perhaps
            np.zeros((3, 8, 8, 3), dtype=np.uint8),
            np.zeros((2, 3, 3, 8, 8), dtype=np.uint8),
        ],
    )
    def test_other_arrays_are_refused(self, clips, detector):
        with pytest.raises(ValueError, match="uint8"):
            clip_features(clips, detector)

    def test_clips_of_unequal_length_or_too_short_are_refused(self, detector):
        clips = [*noise_clips(0, 2), *noise_clips(1, 1, frames=3)]
        with pytest.raises(ValueError, match=r"one shape: one is \(3, 8, 8, 3\), and the first is \(2, 8, 8, 3\)"):
            list(feature_batches(clips, detector))
        with pytest.raises(ValueError, match="clips of 2 frames or more, not of 1"):
            clip_features(noise_clips(0, frames=1), detector)

    def test_features_that_are_not_finite_are_refused(self):
        model = I3D().requires_grad_(False)
        model.logits.bias[3] = float("nan")
        with pytest.raises(ValueError, match=r"99\.8% are finite"):
            clip_features(noise_clips(0, 1), I3DDetector(model))


class LikeStyleGANs(nn.Module):
    """Answers the call of StyleGAN-V's detector: uint8 `(n, 3, frames, height, width)`."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert x.dtype == torch.uint8 and x.shape[1] == 3 and rescale and resize and return_features
        return (x.float() / 255).mean(dim=[2, 3, 4]) @ self.weight


class TestTorchScript:
    @pytest.fixture
    def file(self, tmp_path):
        torch.jit.script(LikeStyleGANs()).save(tmp_path / "i3d.pt")
        return tmp_path / "i3d.pt"

    def test_it_is_called_as_style_gan_v_does(self, file):
        clips = noise_clips(0, 3, frames=9)
        found = load_detector("torchscript", str(file))
        weight = torch.jit.load(file).weight.detach().double().numpy()
        expected = (clips / 255).mean(axis=(1, 2, 3)) @ weight
        np.testing.assert_allclose(clip_features(clips, found), expected, rtol=1e-5)
        assert found.dimension == 5
        assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()

    def test_files_that_are_none_and_programs_of_other_calls(self, tmp_path):
        (tmp_path / "x.pt").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="is no TorchScript file"):
            TorchScriptDetector(tmp_path / "x.pt")
        torch.jit.script(nn.Linear(3, 3)).save(tmp_path / "linear.pt")
        with pytest.raises(ValueError, match="cannot be called as StyleGAN-V's detector"):
            TorchScriptDetector(tmp_path / "linear.pt")
        with pytest.raises(FileNotFoundError, match=r"no file missing\.pt"):
            load_detector("torchscript", "missing.pt")


class TestVideoMAE:
    @pytest.fixture
    def model(self):
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = VideoMAEConfig(image_size=16, patch_size=8, num_frames=4, tubelet_size=2, **sizes)
        return randomise(VideoMAEModel(config)).eval()

    def test_features_are_those_of_its_own_image_processor(self, model, tmp_path):
        from transformers import VideoMAEImageProcessor

        model.save_pretrained(tmp_path)
        detector = load_detector("videomae", str(tmp_path))
        clips = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), dtype=np.uint8)
        # Those that VideoMAE was trained with; the default of the class is 0.5 throughout.
        values = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
        processor = VideoMAEImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, **values)
        videos = [[frame.transpose(2, 0, 1) for frame in clip] for clip in clips]
        with torch.no_grad():
            expected = model(processor(videos, return_tensors="pt").pixel_values).last_hidden_state.mean(dim=1)
        np.testing.assert_allclose(clip_features(clips, detector), expected, rtol=1e-4, atol=1e-5)
        assert detector.dimension == 8 and detector.sha256 == weights_sha256(model)

    def test_clips_of_other_lengths_are_refused(self, model):
        with pytest.raises(ValueError, match="exactly 4 frames, not of 2"):
            clip_features(noise_clips(0), VideoMAEDetector(model))

    def test_another_model_is_refused(self, tmp_path, model):
        from safetensors.torch import load_file, save_file

        model.save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        save_file({k: t for k, t in tensors.items() if "layernorm" not in k}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=r"tensors are missing, such as .*layernorm"):
            load_detector("videomae", str(tmp_path))


def test_kinds_that_do_not_exist_and_weights_that_are_not_named():
    with pytest.raises(ValueError, match="Detectors are i3d, torchscript and videomae, not 'r3d'"):
        load_detector("r3d", "x")
    with pytest.raises(ValueError, match="--detector_weights"):
        load_detector("videomae")
