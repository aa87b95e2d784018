"""Distances between two sets of features of clips: Frechet video distance (FVD) and its unbiased kernel form (KVD).

Both from Unterthiner et al., "Towards Accurate Generative Models of Video", 2018, on the logits of I3D. With few clips
FVD is far above zero even for two draws of the same real clips: measure that floor as well, with other real clips in
the place of the generated ones.
"""

import numpy as np

from vdmini_diffusers.evaluation.detectors import I3DDetector, clip_features
from vdmini_diffusers.evaluation.i3d import I3D


BLOCK = 1024  # rows of a kernel matrix that are held at a time


def i3d_features(clips: np.ndarray, detector: I3D, batch_size: int = 8, description: str | None = None) -> np.ndarray:
    """I3D's logits of each clip, float64 `(n, 400)`. Arguments and errors are those of `clip_features`."""
    return clip_features(clips, I3DDetector(detector), batch_size, description)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance between Gaussians with the means and (n - 1) covariances of two feature sets.

    The sets need not be of one size. It is biased upwards, the more the fewer the features.

    Args:
        a, b: features `(n, dimensions)`.

    Raises:
        ValueError: see `check_features`.
    """
    a, b = check_features(a, b)
    covariance_a, covariance_b = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (a, b))
    return frechet_distance_of_moments(a.mean(axis=0), covariance_a, b.mean(axis=0), covariance_b)


def frechet_distance_of_moments(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """`|mean_a - mean_b|^2 + Tr(A + B - 2 (A B)^1/2)`.

    With factors `A = L_a L_a^T` and `B = L_b L_b^T`, the trace of the root is the sum of the singular values of
    `L_a^T L_b`. Unlike the root of `A B` it is real and exact for singular covariances, which fewer features than
    dimensions have. Rounding leaves up to about 1e-12 of the traces, of either sign, unless covariances are nearly but
    not quite singular.
    """
    root = np.linalg.svd(_factor(covariance_a).T @ _factor(covariance_b), compute_uv=False).sum()
    distance_of_means = np.sum((mean_a - mean_b) ** 2)
    return float(distance_of_means + np.trace(covariance_a) + np.trace(covariance_b) - 2 * root)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """`(dimensions, rank)`. Eigenvalues that are zero up to rounding are left out: their roots would not be small."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
    return vectors[:, kept] * np.sqrt(values[kept])


def kernel_distance(a: np.ndarray, b: np.ndarray, paired: bool = False) -> float:
    """Squared maximum mean discrepancy of two feature sets under the kernel `(x y / dimensions + 1)^3`.

    The unbiased estimate over all clips at once: in expectation zero for two draws of the same clips, for any number
    of them, and thus as often negative as positive.

    Args:
        a, b: features `(n, dimensions)`.
        paired: `b[i]` is what `a[i]` was made from, such as the clip that gave its first frame. The two are never
            compared then: they are more alike than draws of two sets, which would bring the distance below zero.

    Raises:
        ValueError: see `check_features`.
    """
    a, b = check_features(a, b)
    (distance,) = kernel_distances(a, b, np.ones((1, len(a))), np.ones((1, len(b))), paired)
    return float(distance)


def kernel_distances(
    a: np.ndarray, b: np.ndarray, counts_a: np.ndarray, counts_b: np.ndarray, paired: bool = False
) -> np.ndarray:
    """`kernel_distance` of several resamples `(r,)`, with `BLOCK` rows of the kernel matrices at a time.

    Args:
        counts_a, counts_b: how often each clip is in each resample, `(r, n)`. A clip is never paired with itself, so
            that resampling does not make the estimate biased.
        paired: as for `kernel_distance`.
    """

    def mean_of_pairs(x: np.ndarray, counts: np.ndarray) -> np.ndarray:
        num_pairs = counts.sum(axis=1) ** 2 - (counts**2).sum(axis=1)
        return _kernel_sums(x, x, counts, counts, skip_diagonal=True) / num_pairs

    num_across = counts_a.sum(axis=1) * counts_b.sum(axis=1)
    if paired:
        num_across -= (counts_a * counts_b).sum(axis=1)
    across = _kernel_sums(a, b, counts_a, counts_b, skip_diagonal=paired) / num_across
    return mean_of_pairs(a, counts_a) + mean_of_pairs(b, counts_b) - 2 * across


def _kernel_sums(
    x: np.ndarray, y: np.ndarray, counts_x: np.ndarray, counts_y: np.ndarray, skip_diagonal: bool
) -> np.ndarray:
    sums = np.zeros(len(counts_x))
    for start in range(0, len(x), BLOCK):
        similarity = (x[start : start + BLOCK] @ y.T / x.shape[1] + 1) ** 3
        if skip_diagonal:
            rows = np.arange(len(similarity))
            similarity[rows, start + rows] = 0
        sums += ((counts_x[:, start : start + BLOCK] @ similarity) * counts_y).sum(axis=1)
    return sums


def check_features(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64.

    Raises:
        ValueError: if they are no matrices of equal width, have fewer than two rows, or values that are not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"Features are matrices (n, dimensions) of equal width, not {a.shape} and {b.shape}.")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"A distance of distributions needs two clips or more, not {len(a)} and {len(b)}.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("Some features are not finite.")
    return a.astype(np.float64), b.astype(np.float64)
