import numpy as np
import pytest

from vdmini_diffusers.evaluation.distance_intervals import frechet_interval, kernel_interval
from vdmini_diffusers.evaluation.frechet_video_distance import frechet_distance, kernel_distance


def draws(num: int, n: int = 60, dimensions: int = 4, shift: float = 0.5) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(n, dimensions)), 1.5 * rng.normal(size=(n, dimensions)) + shift) for _ in range(num)]


MEASURES = [(frechet_interval, frechet_distance), (kernel_interval, kernel_distance)]


@pytest.mark.parametrize(("interval", "distance"), MEASURES)
def test_nine_in_ten_intervals_hold_the_mean_over_draws(interval, distance):
    expected = np.mean([distance(a, b) for a, b in draws(500)])  # of sets of this size
    intervals = [interval(a, b, num_resamples=60, confidence=0.9) for a, b in draws(60)]
    held = np.mean([low <= expected <= high for low, high in intervals])
    assert 0.8 < held < 0.98  # two standard errors about 0.9, and what 60 clips cost


def test_it_is_around_the_estimate_and_the_same_again():
    ((a, b),) = draws(1)
    low, high = frechet_interval(a, b)
    assert low < frechet_distance(a, b) < high
    assert (low, high) == frechet_interval(a, b) != frechet_interval(a, b, seed=1)
    assert kernel_interval(a, b)[0] < kernel_distance(a, b) < kernel_interval(a, b)[1]


def correlated_pairs(n: int, dimensions: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Both sets are draws of one distribution, and the two of a pair are alike."""
    rng = np.random.default_rng(n)
    common, *own = rng.normal(size=(3, n, dimensions))
    return tuple((0.9**0.5) * common + (0.1**0.5) * each for each in own)


def test_pairs_that_are_alike_do_not_make_the_kernel_distance_negative():
    sets = [correlated_pairs(n) for n in range(40, 80)]
    means = {paired: np.mean([kernel_distance(a, b, paired) for a, b in sets]) for paired in (False, True)}
    spread = np.std([kernel_distance(a, b, True) for a, b in sets]) / len(sets) ** 0.5
    assert abs(means[True]) < 3 * spread < 0.1 * -means[False]


@pytest.mark.parametrize(("interval", "distance"), MEASURES)
def test_pairs_are_resampled_together(interval, distance):
    a, b = correlated_pairs(60)
    kwargs = {"paired": True} if distance is kernel_distance else {}
    (low, high), loose = interval(a, b, paired=True), interval(a, b)
    assert low < distance(a, b, **kwargs) < high and high - low < loose[1] - loose[0]


def test_more_clips_make_it_narrower():
    widths = [np.subtract(*frechet_interval(*draws(1, n)[0])[::-1]) for n in (50, 800)]
    assert widths[0] > 2.5 * widths[1] > 0


def test_intervals_of_few_clips_are_numbers():
    """One resample in nine of three clips is one of them thrice, which makes no pair."""
    ((a, b),) = draws(1, n=3)
    assert np.isfinite(kernel_interval(a, b)).all() and np.isfinite(frechet_interval(a, b)).all()
