"""Differences between two training recipes whose runs share their seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class PairedDifference(NamedTuple):
    """Mean difference over pairs, and the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired_difference(of: Sequence[float], to: Sequence[float], confidence: float = 0.95) -> PairedDifference:
    """`of` less `to`, pair by pair, with Student's t interval of the mean, which takes the pairs for independent.

    Raises:
        ImportError: without scipy, which scikit-image brings (`pip install -e '.[teacher]'`).
        ValueError: if there are fewer than two pairs, or `of` and `to` differ in length.
    """
    if len(of) != len(to) or len(of) < 2:
        raise ValueError(f"An interval needs two pairs of numbers at least, not {len(of)} and {len(to)} numbers.")
    try:
        from scipy.stats import t
    except ImportError as error:
        raise ImportError("Intervals need scipy: run `pip install -e '.[teacher]'` in a checkout.") from error
    differences = np.subtract(of, to)
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / len(differences) ** 0.5
    half = float(t.ppf(0.5 + confidence / 2, len(differences) - 1)) * error
    return PairedDifference(mean, mean - half, mean + half)
