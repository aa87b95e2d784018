import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdmini_diffusers.evaluation.feature_statistics import FeatureStatistics


def features(seed: int, n: int = 50, dimensions: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dimensions)) @ rng.normal(size=(dimensions, dimensions)) + rng.normal(size=dimensions)


def statistics_of(x: np.ndarray, batch: int, indices: np.ndarray | None = None, **options) -> FeatureStatistics:
    indices = np.arange(len(x)) if indices is None else indices
    found = FeatureStatistics(x.shape[1], **options)
    for start in range(0, len(x), batch):
        found.add(x[start : start + batch], indices[start : start + batch])
    return found


class TestSums:
    @given(st.integers(1, 60), st.integers(0, 1000))
    def test_batches_make_no_difference(self, batch, seed):
        x = features(seed)
        found = statistics_of(x, batch)
        np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found.covariance(), np.cov(x, rowvar=False), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found.covariance(ddof=0), np.cov(x, rowvar=False, ddof=0), rtol=1e-10, atol=1e-10)
        assert found.num == 50 and found.has_all_features
        np.testing.assert_array_equal(found.features, x)

    def test_a_large_mean_cancels_nothing(self):
        x = features(0) + 1e8
        # What sums of squares, as StyleGAN-V's `FeatureStats` has them, make of it.
        naive = x.T @ x / len(x) - np.outer(x.mean(axis=0), x.mean(axis=0))
        exact = np.cov(x - 1e8, rowvar=False, ddof=0)
        found = statistics_of(x, 7).covariance(ddof=0)
        assert np.abs(found - exact).max() < 1e-5 * np.abs(exact).max() < np.abs(naive - exact).max()

    @given(st.integers(1, 4), st.integers(0, 1000))
    def test_processes_that_share_the_clips_have_the_statistics_of_one(self, num_processes, seed):
        x = features(seed)
        parts = [statistics_of(x[k::num_processes], 4, np.arange(50)[k::num_processes]) for k in range(num_processes)]
        merged = FeatureStatistics(6)
        for part in parts:
            merged.merge(part)
        np.testing.assert_allclose(merged.mean, x.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(merged.covariance(), np.cov(x, rowvar=False), rtol=1e-10, atol=1e-10)
        np.testing.assert_array_equal(merged.features, x)


class TestKeptFeatures:
    def test_the_sample_is_the_same_in_any_batches_and_processes(self):
        x = features(0, n=500)
        size = {"max_kept_bytes": 40 * 6 * 8}
        whole = statistics_of(x, 500, **size)
        parts = [statistics_of(x[k::3], 11, np.arange(500)[k::3], **size) for k in range(3)]
        merged = FeatureStatistics(6, **size)
        for part in reversed(parts):
            merged.merge(part)
        assert whole.features.shape == (40, 6) and not whole.has_all_features
        np.testing.assert_array_equal(merged.features, whole.features)
        np.testing.assert_array_equal(statistics_of(x, 7, **size).features, whole.features)
        np.testing.assert_allclose(merged.covariance(), np.cov(x, rowvar=False), rtol=1e-10)  # of all, not of those 40

    def test_memory_is_bounded(self):
        found = FeatureStatistics(6, max_kept_bytes=40 * 6 * 8)
        for k in range(100):
            found.add(features(k), np.arange(50 * k, 50 * k + 50))
            assert sum(len(each) for each, _ in found._kept) <= 80 + 50

    def test_the_sample_is_uniform(self):
        x = np.arange(4000.0)[:, None]
        kept = statistics_of(x, 4000, max_kept_bytes=1000 * 8).features
        assert abs(kept.mean() - 2000) < 3 * 4000 / 12**0.5 / 1000**0.5
        assert np.abs(np.histogram(kept, 10, (0, 4000))[0] - 100).max() < 40


class TestStored:
    def test_there_and_back(self, tmp_path):
        found = statistics_of(features(0), 8)
        found.save(tmp_path / "s.safetensors", {"num_frames": 16, "name": "ucf"})
        loaded, settings = FeatureStatistics.load(tmp_path / "s.safetensors")
        assert settings == {"num_frames": 16, "name": "ucf"} and loaded.num == 50
        for name in ("mean", "scatter", "features"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(found, name))
        loaded.add(features(1), np.arange(50, 100))
        assert loaded.num == 100

    def test_other_and_damaged_files_are_refused(self, tmp_path):
        (tmp_path / "s").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="holds no statistics of features"):
            FeatureStatistics.load(tmp_path / "s")
        found = statistics_of(features(0), 8)
        found.num = 40  # other than there are
        found.save(tmp_path / "s", {})
        with pytest.raises(ValueError, match="holds no statistics of features: shapes"):
            FeatureStatistics.load(tmp_path / "s")


class TestWrongFeatures:
    def test_shapes_values_and_clips_that_recur(self):
        found = FeatureStatistics(6)
        with pytest.raises(ValueError, match=r"of 2 clips are \(2, 6\) values, not \(3, 6\)"):
            found.add(features(0, 3), np.arange(2))
        with pytest.raises(ValueError, match="not finite"):
            found.add(np.full((1, 6), np.nan), np.arange(1))
        found.add(features(0, 3), np.arange(3))
        found.add(features(0, 3), np.arange(2, 5))
        with pytest.raises(ValueError, match="1 clips were counted twice"):
            _ = found.features
        with pytest.raises(ValueError, match="6 and 5 dimensions"):
            found.merge(FeatureStatistics(5))

    def test_one_clip_has_no_covariance(self):
        with pytest.raises(ValueError, match="two clips or more, not 1"):
            statistics_of(features(0, 1), 1).covariance()
