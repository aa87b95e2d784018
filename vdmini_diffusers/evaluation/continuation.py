"""Distances between a generated clip and the real continuation of the same first frame.

All functions take uint8 or float arrays `(..., frames, height, width, 3)` of equal shape, RGB in 0 to 255.
"""

import numpy as np


MAX_PSNR = 100.0  # dB, for equal videos in means: one value of a million that differs by one grey level gives 108


def psnr(generated: np.ndarray, real: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all values; infinite where the two are equal."""
    mse = np.mean((generated.astype(np.float64) - real.astype(np.float64)) ** 2)
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


def motion_ratio(generated: np.ndarray, real: np.ndarray) -> float:
    """Mean absolute difference of neighbouring frames, generated over real: 0 is a still picture, 1 as much change as
    in the real clip, and more means flicker or too fast a motion."""
    change = [np.abs(np.diff(clip.astype(np.float64), axis=-4)).mean() for clip in (generated, real)]
    return float(change[0] / change[1])


def motion_cosine(generated: np.ndarray, real: np.ndarray) -> float:
    """Cosine between each clip's change from its own first frame: 1 is the real motion, 0 an unrelated one.

    Each clip is compared with its own first frame, so that a constant reconstruction error is not taken for motion.

    Raises:
        ValueError: for a clip that does not change at all, whose motion has no direction.
    """
    changes = [(clip - clip[..., :1, :, :, :]).ravel() for clip in (generated.astype(np.float64), real.astype(float))]
    norms = [np.linalg.norm(change) for change in changes]
    if not all(norms):
        raise ValueError("The motion of a still clip has no direction.")
    return float(changes[0] @ changes[1] / (norms[0] * norms[1]))


def sharpness_ratio(generated: np.ndarray, real: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels, generated over real: below 1 is blur, above it noise."""
    return float(gradients(generated).mean() / gradients(real).mean())


def gradients(clips: np.ndarray) -> np.ndarray:
    """Mean absolute difference of neighbouring pixels, across and down, of each clip."""
    values = clips.astype(np.float32)
    across, down = (np.abs(np.diff(values, axis=axis)).mean(axis=(-4, -3, -2, -1)) for axis in (-2, -3))
    return across + down
