"""How uncertain FVD and KVD are: bootstrap intervals over the clips of both sets."""

import numpy as np
from tqdm.auto import tqdm

from vdmini_diffusers.evaluation.frechet_video_distance import (
    check_features,
    frechet_distance_of_moments,
    kernel_distances,
)


Interval = tuple[float, float]


def frechet_interval(
    a: np.ndarray,
    b: np.ndarray,
    num_resamples: int = 200,
    confidence: float = 0.95,
    ddof: int = 1,
    seed: int = 0,
    progress: bool = False,
    paired: bool = False,
) -> Interval:
    """Interval of the FVD that sets of these sizes give on average.

    FVD of resampled clips is larger on average than that of the clips, as clips recur; their spread is that of FVD
    over draws. So the quantiles of the resamples are shifted by the difference between their mean and the estimate.

    Args:
        a, b: features `(n, dimensions)`.
        ddof: covariances are divided by `n - ddof`.
        paired: as for `kernel_distance`. Pairs are resampled as such.

    Raises:
        ValueError: see `check_features`.
    """
    a, b = check_features(a, b)
    centre = a.mean(axis=0)  # for precision: no distance depends on it
    a, b = a - centre, b - centre
    counts_a, counts_b = _counts(len(a), len(b), num_resamples, seed, paired)
    once = np.ones(len(a)), np.ones(len(b))
    estimate = frechet_distance_of_moments(*_moments(a, once[0], ddof), *_moments(b, once[1], ddof))
    resampled = [
        frechet_distance_of_moments(*_moments(a, of_a, ddof), *_moments(b, of_b, ddof))
        for of_a, of_b in tqdm(
            zip(counts_a, counts_b, strict=True), "bootstrap", num_resamples, disable=not progress, leave=False
        )
    ]
    low, high = np.quantile(resampled, _levels(confidence)) - np.mean(resampled) + estimate
    return float(low), float(high)


def kernel_interval(
    a: np.ndarray,
    b: np.ndarray,
    num_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
    paired: bool = False,
) -> Interval:
    """Interval of KVD: quantiles of the resamples, which are unbiased.

    Args:
        a, b: features `(n, dimensions)`.
        paired: as for `kernel_distance`. Pairs are resampled as such.

    Raises:
        ValueError: see `check_features`.
    """
    a, b = check_features(a, b)
    resampled = kernel_distances(a, b, *_counts(len(a), len(b), num_resamples, seed, paired), paired)
    low, high = np.quantile(resampled, _levels(confidence))
    return float(low), float(high)


def _levels(confidence: float) -> list[float]:
    return [(1 - confidence) / 2, (1 + confidence) / 2]


def _counts(num_a: int, num_b: int, num_resamples: int, seed: int, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    """How often each clip is in each resample, float64 `(resamples, n)`. None is of one clip, without pairs."""
    rng = np.random.default_rng(seed)

    def draw(n: int) -> np.ndarray:
        counts = rng.multinomial(n, np.full(n, 1 / n), num_resamples)
        while (alone := counts.max(axis=1) == n).any():
            counts[alone] = rng.multinomial(n, np.full(n, 1 / n), alone.sum())
        return counts.astype(float)

    counts = draw(num_a)
    return counts, counts if paired else draw(num_b)


def _moments(features: np.ndarray, counts: np.ndarray, ddof: int) -> tuple[np.ndarray, np.ndarray]:
    n = len(features)
    mean = counts @ features / n
    centred = features - mean
    return mean, (centred.T * counts) @ centred / (n - ddof)
