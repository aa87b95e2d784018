import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vdmini_diffusers.demo.scenes import draw_hidden_clip
from vdmini_diffusers.evaluation import frechet_video_distance
from vdmini_diffusers.evaluation.frechet_video_distance import (
    frechet_distance,
    frechet_distance_of_moments,
    i3d_features,
    kernel_distance,
    kernel_distances,
)
from vdmini_diffusers.evaluation.i3d import find_checkpoint, load_i3d


def features(seed: int, n: int, dimensions: int) -> np.ndarray:
    """Correlated, with a mean and scale of their own."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(dimensions, dimensions)) / dimensions**0.5
    return rng.normal(size=(n, dimensions)) @ mixing + rng.normal(size=dimensions)


def with_moments(mean: list[float], deviations: list[float], seed: int = 0) -> np.ndarray:
    """A sample with exactly this mean and diagonal covariance."""
    sample = np.random.default_rng(seed).normal(size=(50, len(mean)))
    sample -= sample.mean(axis=0)
    whitened = sample @ np.linalg.inv(np.linalg.cholesky(np.cov(sample, rowvar=False))).T
    return whitened * deviations + mean


sets = st.builds(features, st.integers(0, 2**32), st.integers(2, 30), st.just(6))


class TestFrechetDistance:
    def test_closed_form_of_independent_normals(self):
        a = with_moments([1, 2, 3], [1, 2, 0.5])
        b = with_moments([1, 0, 4], [3, 2, 1], seed=1)
        expected = (0 + 4 + 1) + ((1 - 3) ** 2 + 0 + (0.5 - 1) ** 2)
        assert frechet_distance(a, b) == pytest.approx(expected)

    def test_one_dimension(self):
        a, b = np.array([[0.0], [2.0]]), np.array([[5.0], [5.0], [5.0]])
        assert frechet_distance(a, b) == pytest.approx((1 - 5) ** 2 + 2)

    @pytest.mark.parametrize("n", [15, 200])  # fewer than dimensions: singular covariances
    def test_the_other_forms_of_the_root_agree(self, n):
        a, b = features(0, n, 20), features(1, n + 5, 20)
        covariances = [np.cov(x, rowvar=False) for x in (a, b)]
        rest = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum(map(np.trace, covariances))
        eigenvalues = np.linalg.eigvals(covariances[0] @ covariances[1])
        by_eigenvalues = rest - 2 * np.sqrt(eigenvalues.real.clip(min=0)).sum()
        centred = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b)]
        by_singular_values = rest - 2 * np.linalg.norm(centred[0] @ centred[1].T, "nuc")
        assert frechet_distance(a, b) == pytest.approx(by_eigenvalues, rel=1e-6)
        assert frechet_distance(a, b) == pytest.approx(by_singular_values, rel=1e-6)

    @pytest.mark.parametrize(("n", "dimensions"), [(2048, 400), (500, 64)])
    def test_independent_implementations_agree_to_a_millionth(self, n, dimensions):
        linalg = pytest.importorskip("scipy.linalg")
        a, b = features(0, n, dimensions), features(1, n, dimensions)
        (mean_a, covariance_a), (mean_b, covariance_b) = ((x.mean(axis=0), np.cov(x, rowvar=False)) for x in (a, b))
        # The form of StyleGAN-V, of pytorch-fid and of Heusel et al.
        root = linalg.sqrtm(covariance_a @ covariance_b).real
        expected = np.square(mean_a - mean_b).sum() + np.trace(covariance_a + covariance_b - 2 * root)
        found = frechet_distance_of_moments(mean_a, covariance_a, mean_b, covariance_b)
        assert found == frechet_distance(a, b)
        assert found == pytest.approx(expected, rel=1e-6)

    def test_torchmetrics_agrees_to_a_millionth(self):
        fid = pytest.importorskip("torchmetrics.image.fid")  # of the extra `evaluate`
        a, b = features(0, 2048, 400), features(1, 2048, 400)
        moments = [torch.from_numpy(m) for x in (a, b) for m in (x.mean(axis=0), np.cov(x, rowvar=False))]
        assert frechet_distance(a, b) == pytest.approx(fid._compute_fid(*moments).item(), rel=1e-6)

    def test_singular_covariances_cost_no_precision(self):
        # 50 clips in 400 dimensions: 351 eigenvalues are zero, and the roots of their rounding errors would add up.
        a, b = features(0, 50, 400), features(1, 60, 400)
        centred = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b)]
        rest = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum((x**2).sum() for x in centred)
        exact = rest - 2 * np.linalg.norm(centred[0] @ centred[1].T, "nuc")
        assert frechet_distance(a, b) == pytest.approx(exact, rel=1e-11)

    @given(sets, sets)
    def test_it_is_a_distance_and_symmetric(self, a, b):
        assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
        assert frechet_distance(a, b) >= -1e-5
        assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-5)

    @given(sets, sets, st.floats(0.1, 10), st.integers(0, 100))
    def test_turning_and_shifting_both_changes_nothing_and_scaling_squares(self, a, b, scale, seed):
        rng = np.random.default_rng(seed)
        turn, shift = np.linalg.qr(rng.normal(size=(6, 6)))[0], rng.normal(size=6)
        moved = frechet_distance(a @ turn * scale + shift, b @ turn * scale + shift)
        assert moved == pytest.approx(scale**2 * frechet_distance(a, b), rel=1e-5, abs=1e-4 * scale**2)

    def test_few_clips_alone_make_a_distance(self):
        # Why a floor is measured: of one distribution, and the more the fewer.
        draws = [np.random.default_rng(k).normal(size=(1000, 20)) for k in (0, 1)]
        few, many = (frechet_distance(draws[0][:n], draws[1][:n]) for n in (20, 1000))
        assert few > 20 * many > 0


class TestKernelDistance:
    def test_sum_over_pairs_by_hand(self):
        a, b = features(0, 4, 3), features(1, 5, 3)

        def kernel(x, y):
            return (x @ y / 3 + 1) ** 3

        within_a = np.mean([kernel(a[i], a[j]) for i in range(4) for j in range(4) if i != j])
        within_b = np.mean([kernel(b[i], b[j]) for i in range(5) for j in range(5) if i != j])
        across = np.mean([kernel(x, y) for x in a for y in b])
        assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * across)

    def test_draws_of_one_distribution_are_at_zero_on_average(self):
        draws = np.random.default_rng(0).normal(size=(2000, 2, 8, 5)) + 0.5
        distances = np.array([kernel_distance(a, b) for a, b in draws])
        standard_error = distances.std() / len(distances) ** 0.5
        assert abs(distances.mean()) < 3 * standard_error < 0.1
        assert 0.3 < (distances < 0).mean() < 0.7
        assert np.mean([frechet_distance(a, b) for a, b in draws[:20]]) > 1  # a control: that one is biased

    def test_torchmetrics_agrees_to_a_millionth(self):
        kid = pytest.importorskip("torchmetrics.image.kid")  # of the extra `evaluate`
        a, b = features(0, 300, 40), features(1, 300, 40)
        expected = kid.poly_mmd(torch.from_numpy(a), torch.from_numpy(b), degree=3, coef=1.0).item()
        assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-6)

    def test_blocks_of_rows_change_nothing(self, monkeypatch):
        a, b = features(0, 23, 5), features(1, 17, 5)
        whole = kernel_distance(a, b)
        monkeypatch.setattr(frechet_video_distance, "BLOCK", 7)
        assert kernel_distance(a, b) == pytest.approx(whole, rel=1e-12)

    def test_counts_are_clips_that_recur(self):
        a, b = features(0, 6, 3), features(1, 5, 3)
        counts = np.array([[2, 0, 1, 3, 0, 0]]), np.array([[1, 1, 0, 1, 2]])
        rows = [np.repeat(np.arange(len(c[0])), c[0]) for c in counts]
        k = [(a[rows[i]] @ x.T / 3 + 1) ** 3 for i, x in ((0, a[rows[0]]), (0, b[rows[1]]))]
        within_b = (b[rows[1]] @ b[rows[1]].T / 3 + 1) ** 3
        apart = [r[:, None] != r[None] for r in rows]  # a clip is not paired with itself
        expected = k[0][apart[0]].mean() + within_b[apart[1]].mean() - 2 * k[1].mean()
        assert kernel_distances(a, b, *counts)[0] == pytest.approx(expected)

    @given(sets, sets)
    def test_symmetric(self, a, b):
        assert kernel_distance(a, b) == pytest.approx(kernel_distance(b, a), abs=1e-9)

    def test_it_grows_with_the_shift(self):
        a, b = (np.random.default_rng(k).normal(size=(300, 5)) for k in (0, 1))
        near, far = kernel_distance(a, b + 0.5), kernel_distance(a, b + 1)
        assert 0.05 < near < far / 2


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
class TestWrongFeatures:
    def test_other_shapes(self, distance):
        for wrong in (np.zeros(4), np.zeros((4, 2)), np.zeros((4, 3, 1))):
            with pytest.raises(ValueError, match="matrices"):
                distance(np.zeros((4, 3)), wrong)

    def test_a_single_clip(self, distance):
        with pytest.raises(ValueError, match="two clips or more"):
            distance(np.zeros((4, 3)), np.zeros((1, 3)))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_none(self, distance, value):
        broken = np.zeros((4, 3))
        broken[1, 1] = value
        with pytest.raises(ValueError, match="finite"):
            distance(broken, np.zeros((4, 3)))


@pytest.mark.slow
def test_the_real_network_tells_spoilt_clips_from_real_ones():
    try:
        find_checkpoint()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    n, rng = 24, np.random.default_rng(0)
    real, other = (np.stack([draw_hidden_clip(rng)[0] for _ in range(n)]) for _ in range(2))
    detector = load_i3d()
    real_features = i3d_features(real, detector)

    def fvd(clips: np.ndarray) -> float:
        return frechet_distance(i3d_features(clips, detector), real_features)

    # The same clips, spoilt: against other ones, the few clips' floor would cover the smaller differences.
    shuffled = fvd(np.stack([clip[rng.permutation(16)] for clip in real]))
    frozen = fvd(real[:, :1].repeat(16, axis=1))
    noisy = fvd(np.clip(real + rng.normal(0, 25, real.shape), 0, 255).astype(np.uint8))
    assert frozen > 1.2 * shuffled > 50
    assert noisy > 1.5 * fvd(other)
