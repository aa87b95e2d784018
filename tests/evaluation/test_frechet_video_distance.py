import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vdmini_diffusers.demo.moving_pictures import TRAIN_PHOTOS, MovingPictures
from vdmini_diffusers.evaluation.frechet_video_distance import (
    frechet_distance,
    i3d_features,
    kernel_distance,
    prepare,
    video_distance,
)
from vdmini_diffusers.evaluation.i3d import I3D, find_checkpoint, load_i3d, weights_sha256


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


class TestPreparing:
    def test_layout_and_range(self):
        clips = np.zeros((2, 3, 224, 224, 3), dtype=np.uint8)
        clips[1, 2, 5, 7, 0] = 255
        prepared = prepare(clips, torch.device("cpu"))
        assert prepared.shape == (2, 3, 3, 224, 224) and prepared.dtype == torch.float32
        assert (prepared == 1).nonzero().tolist() == [[1, 2, 0, 5, 7]]
        assert (prepared == -1).sum() == prepared.numel() - 1

    def test_resizing_is_bilinear_between_the_centres_of_pixels(self):
        clips = np.zeros((1, 1, 112, 112, 3), dtype=np.uint8)
        clips[..., 1, :] = 200  # the second column
        row = (prepare(clips, torch.device("cpu"))[0, 0, 0, 50] + 1) * 127.5
        torch.testing.assert_close(row[:6], torch.tensor([0.0, 50, 150, 150, 50, 0]), atol=1e-3, rtol=0)

    @settings(max_examples=10)
    @given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 255))
    def test_a_uniform_clip_of_any_size_stays_uniform(self, height, width, value):
        prepared = prepare(np.full((1, 2, height, width, 3), value, dtype=np.uint8), torch.device("cpu"))
        assert prepared.shape == (1, 2, 3, 224, 224)
        torch.testing.assert_close(prepared, torch.full_like(prepared, value / 127.5 - 1))

    @pytest.mark.parametrize(
        "clips",
        [
            np.zeros((2, 3, 8, 8, 3)),  # floats in 0 to 1, perhaps
            np.zeros((3, 8, 8, 3), dtype=np.uint8),
            np.zeros((2, 3, 3, 8, 8), dtype=np.uint8),
        ],
    )
    def test_other_arrays_are_refused(self, clips):
        with pytest.raises(ValueError, match="uint8"):
            i3d_features(clips, I3D())


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    model = I3D().requires_grad_(False)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(0.15)  # so that clips are still different after twenty layers
    return model


def noise_clips(seed: int, n: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 2, 8, 8, 3), dtype=np.uint8)


class TestVideoDistance:
    def test_features_do_not_depend_on_the_batch(self, detector):
        clips = noise_clips(0, n=3)
        together, apart = (i3d_features(clips, detector, batch_size=k) for k in (3, 2))
        assert together.shape == (3, 400) and together.dtype == np.float64
        np.testing.assert_allclose(together, apart, atol=1e-5)
        assert np.abs(together[0] - together[1]).max() > 1e-4

    def test_the_result_says_what_was_measured(self, detector):
        generated, real, reference = (noise_clips(k) for k in range(3))
        result = video_distance(generated, real, reference, detector, progress=False)
        assert json.loads(json.dumps(dataclasses.asdict(result))) == dataclasses.asdict(result)
        assert (result.num_clips, result.num_frames, result.height, result.width) == (2, 2, 8, 8)
        assert result.detector_sha256 == weights_sha256(detector)
        of = {name: i3d_features(clips, detector) for name, clips in (("gen", generated), ("ref", reference))}
        assert result.fvd == pytest.approx(frechet_distance(of["gen"], of["ref"]), rel=1e-3)
        assert result.kvd == pytest.approx(kernel_distance(of["gen"], of["ref"]), rel=1e-3)
        # Real clips in the place of generated ones are at the floor.
        again = video_distance(real, real, reference, detector, progress=False)
        assert (again.fvd, again.kvd) == (again.fvd_floor, again.kvd_floor)
        assert again.fvd_floor == pytest.approx(result.fvd_floor)

    def test_sets_of_different_sizes_are_refused(self, detector):
        with pytest.raises(ValueError, match="equal shapes"):
            video_distance(noise_clips(0), noise_clips(1), noise_clips(2, n=3), detector)

    def test_a_floor_of_clips_with_themselves_is_refused(self, detector):
        real = noise_clips(1)
        reference = np.concatenate([noise_clips(2)[:1], real[:1]])
        with pytest.raises(ValueError, match="also among the reference"):
            video_distance(noise_clips(0), real, reference, detector)


@pytest.mark.slow
def test_the_real_network_tells_spoilt_clips_from_real_ones():
    try:
        find_checkpoint()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    n, rng = 24, np.random.default_rng(0)
    pictures = MovingPictures(TRAIN_PHOTOS)
    real, other = (np.stack([pictures.clip(rng).frames for _ in range(n)]) for _ in range(2))
    detector = load_i3d()
    real_features = i3d_features(real, detector)

    def fvd(clips: np.ndarray) -> float:
        return frechet_distance(i3d_features(clips, detector), real_features)

    # The same clips, spoilt: against other ones, the few clips' floor would cover the smaller differences.
    shuffled = fvd(np.stack([clip[rng.permutation(8)] for clip in real]))
    frozen = fvd(real[:, :1].repeat(8, axis=1))
    noisy = fvd(np.clip(real + rng.normal(0, 25, real.shape), 0, 255).astype(np.uint8))
    assert frozen > 1.2 * shuffled > 50
    assert noisy > 1.5 * fvd(other)
