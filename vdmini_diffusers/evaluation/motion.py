"""How clips change over time, compared between two sets of clips that need not show the same things.

I3D hardly sees the order of eight frames, and FVD on few clips is mostly bias; this needs no network, and few clips.
Clips are uint8 or float arrays `(n, frames, height, width, 3)`, RGB in 0 to 255.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MotionDistance:
    """Both 0 for a set with itself, 1 where all generated clips are still, above 0 for two draws of real clips.

    Attributes:
        amount: distance of how much clips change, relative to the mean change of the real ones. Flicker and too fast
            motion go beyond 1.
        course: distance of how that change is spread over lags, whatever its amount. It sees frames out of order,
            motion to and fro or by jerks, and noise on each frame. A clip played backwards changes in the same way.
    """

    amount: float
    course: float


def motion_distance(generated: np.ndarray, real: np.ndarray) -> MotionDistance:
    """Wasserstein distances between the distributions of `change_by_lag`: of its mean over lags, and of each lag's
    change over that mean.

    For the floor, measure other real clips in the place of the generated ones.

    Raises:
        ValueError: if the shapes differ, no real clip changes, or see `change_by_lag`.
    """
    if generated.shape != real.shape:
        raise ValueError(f"Generated and real clips must have equal shapes, not {generated.shape} and {real.shape}.")
    (amounts, courses), (real_amounts, real_courses) = map(amount_and_course, (generated, real))
    if not real_amounts.any():
        raise ValueError("The real clips do not change: there is no motion to compare with.")
    return MotionDistance(
        amount=float(wasserstein(amounts, real_amounts) / real_amounts.mean()),
        course=float(wasserstein(courses, real_courses).mean()),
    )


def change_by_lag(clips: np.ndarray) -> np.ndarray:
    """Mean absolute difference of frames 1, 2, ... apart, for each clip: float64 `(n, frames - 1)`.

    Smooth motion grows with the lag; a still clip has zeros; shuffled frames have about the same at every lag; noise
    adds as much to neighbours as to the ends.

    Raises:
        ValueError: if the clips are not of five dimensions, or of fewer than three frames, which have one lag.
    """
    if clips.ndim != 5 or clips.shape[1] < 3:
        raise ValueError(f"Clips are (n, frames, height, width, 3) with three frames or more, not {clips.shape}.")
    changes = np.empty((len(clips), clips.shape[1] - 1))
    for clip, change in zip(clips, changes, strict=True):  # one at a time: as float64 it takes eight times the memory
        frames = clip.astype(np.float64)
        for lag in range(1, len(frames)):
            change[lag - 1] = np.abs(frames[lag:] - frames[:-lag]).mean()
    return changes


def amount_and_course(clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean change `(n,)`, and each lag's change over that `(n, frames - 1)`; zeros for a still clip."""
    changes = change_by_lag(clips)
    amounts = changes.mean(axis=1)
    return amounts, changes / np.where(amounts > 0, amounts, 1)[:, None]


def wasserstein(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Between two samples of one size along the first axis, where sorted values pair up at the least cost."""
    return np.abs(np.sort(a, axis=0) - np.sort(b, axis=0)).mean(axis=0)
