"""Known numbers; needs the extra `evaluate`, which the extra `test` brings."""

import sys

import numpy as np
import pytest
import torch

from vdmini_diffusers.evaluation.continuation import psnr
from vdmini_diffusers.evaluation.frame_quality import frame_quality


def frames(seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, *size, 3), dtype=np.uint8)


class TestFigures:
    @pytest.fixture(autouse=True)
    def installed(self):
        pytest.importorskip("torchmetrics")

    def test_uniform_frames_have_closed_forms(self):
        levels = np.array([0, 100, 255])
        a = np.broadcast_to(levels.astype(np.uint8)[:, None, None, None], (3, 16, 16, 3))
        found = frame_quality(a, np.full_like(a, 100))
        c1 = (0.01 * 255) ** 2  # of SSIM's luminance term; the other one is 1
        assert found["ssim"] == pytest.approx((2 * levels * 100 + c1) / (levels**2 + 100**2 + c1), abs=1e-9)
        expected = [20 * np.log10(255 / 100), np.inf, 20 * np.log10(255 / 155)]
        assert found["psnr"] == pytest.approx(expected)
        assert set(found) == {"psnr", "ssim"}

    def test_psnr_is_that_of_each_frame(self):
        a, b = frames(0), frames(1)
        assert frame_quality(a, b)["psnr"] == pytest.approx([psnr(x, y) for x, y in zip(a, b, strict=True)])

    def test_ssim_is_scikit_image_s_inside_with_the_window_of_wang_et_al(self):
        metrics = pytest.importorskip("skimage.metrics")
        a = frames(0, (256, 256))
        b = np.clip(a + np.random.default_rng(2).normal(0, 60, a.shape), 0, 255).astype(np.uint8)
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
        expected = [metrics.structural_similarity(x, y, channel_axis=2, **options) for x, y in zip(a, b, strict=True)]
        found = frame_quality(a, b)["ssim"]
        assert found == pytest.approx(expected, abs=1e-3)  # the edges are averaged in, and mirrored
        uniform = [metrics.structural_similarity(x, y, channel_axis=2) for x, y in zip(a, b, strict=True)]
        assert np.abs(np.subtract(uniform, found)).min() > 1e-3  # a control: another window is told apart

    def test_lpips_gets_values_of_minus_one_to_one(self):
        a, b = frames(0), frames(1)

        def distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            assert x.shape == y.shape == (3, 3, 48, 64) and x.dtype == torch.float32
            return (x - y).abs().mean(dim=(1, 2, 3), keepdim=True)

        found = frame_quality(a, b, distance)["lpips"]
        expected = np.abs(a.astype(float) - b).mean(axis=(1, 2, 3)) / 127.5
        assert found == pytest.approx(expected, rel=1e-5)

    def test_wrong_frames(self):
        with pytest.raises(ValueError, match=r"equal shape, not \(3, 48, 64, 3\) and \(2, 48, 64, 3\)"):
            frame_quality(frames(0), frames(1)[:2])
        with pytest.raises(ValueError, match="uint8, 0 to 255, not of float32"):
            frame_quality(frames(0).astype(np.float32), frames(1))
        with pytest.raises(ValueError, match=r"11 x 11 pixels or more, not \(8, 64\)"):
            frame_quality(frames(0, (8, 64)), frames(1, (8, 64)))


def test_without_torchmetrics_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[evaluate\]'"):
        frame_quality(frames(0), frames(1))
