"""Distances between two sets of clips: Frechet video distance (FVD) and its unbiased kernel form (KVD).

Both from Unterthiner et al., "Towards Accurate Generative Models of Video", 2018, on the logits of I3D. With few clips
FVD is far above zero even for two draws of the same real clips; hence `video_distance` measures that floor as well.

Clips are uint8 arrays `(n, frames, height, width, 3)`, RGB.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from vdmini_diffusers.evaluation.i3d import I3D, RESOLUTION, weights_sha256


@dataclass(frozen=True)
class VideoDistance:
    """What was measured, and on what; `dataclasses.asdict` gives it as JSON.

    `fvd` and `kvd` are those of generated against reference clips, the floors those of other real clips against the
    same reference: what a perfect generator would get. `num_clips` is the size of each of the three sets.
    """

    fvd: float
    fvd_floor: float
    kvd: float
    kvd_floor: float
    num_clips: int
    num_frames: int
    height: int
    width: int
    detector_sha256: str


def video_distance(
    generated: np.ndarray,
    real: np.ndarray,
    reference: np.ndarray,
    detector: I3D,
    batch_size: int = 8,
    progress: bool = True,
) -> VideoDistance:
    """FVD and KVD of `generated` and of `real` against `reference`.

    For image to video, generate from the first frames of `real`: then generated and real clips show the same things,
    and neither shows those of `reference`. Generated from the first frames of `reference`, they would resemble it in
    content as no other real clips do, and could fall below the floor.

    Args:
        generated, real, reference: clips `(n, frames, height, width, 3)`, equal in shape: FVD depends on `n`.
        detector: see `load_i3d`.

    Raises:
        ValueError: if shapes or types are wrong, or `real` and `reference` have a clip in common.
    """
    if not generated.shape == real.shape == reference.shape:
        shapes = f"{generated.shape}, {real.shape} and {reference.shape}"
        raise ValueError(f"Generated, real and reference clips must have equal shapes, not {shapes}.")
    check_clips(generated)
    if {clip.tobytes() for clip in real} & {clip.tobytes() for clip in reference}:
        raise ValueError("A real clip is also among the reference clips: their distance would be no floor.")
    features = {
        name: i3d_features(clips, detector, batch_size, name if progress else None)
        for name, clips in (("generated", generated), ("real", real), ("reference", reference))
    }
    num_clips, num_frames, height, width, _ = generated.shape
    return VideoDistance(
        fvd=frechet_distance(features["generated"], features["reference"]),
        fvd_floor=frechet_distance(features["real"], features["reference"]),
        kvd=kernel_distance(features["generated"], features["reference"]),
        kvd_floor=kernel_distance(features["real"], features["reference"]),
        num_clips=num_clips,
        num_frames=num_frames,
        height=height,
        width=width,
        detector_sha256=weights_sha256(detector),
    )


def check_clips(clips: np.ndarray) -> None:
    # Values of 0 to 1, the other custom, would pass as nearly black clips.
    if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3:
        raise ValueError(
            f"Clips are uint8 arrays (n, frames, height, width, 3), not {clips.dtype} arrays {clips.shape}."
        )


@torch.no_grad()
def i3d_features(clips: np.ndarray, detector: I3D, batch_size: int = 8, description: str | None = None) -> np.ndarray:
    """I3D's logits of each clip, float64 `(n, 400)`, on the device of `detector`.

    Frames are resized to 224 x 224 by plain bilinear interpolation (half-pixel centres, no antialiasing, aspect not
    kept), as StyleGAN-V does. Give a `description` for a progress bar.

    Raises:
        ValueError: if the clips' type or shape is wrong, or they have fewer than two frames.
    """
    check_clips(clips)
    device = next(detector.parameters()).device
    starts = tqdm(range(0, len(clips), batch_size), description, disable=description is None, unit="batch")
    return np.concatenate([detector(prepare(clips[k : k + batch_size], device)).cpu() for k in starts]).astype(float)


def prepare(clips: np.ndarray, device: torch.device) -> torch.Tensor:
    """Clips as `I3D` takes them: float `(n, frames, 3, 224, 224)` in -1 to 1."""
    frames = torch.from_numpy(np.ascontiguousarray(clips)).to(device).movedim(-1, 2).flatten(0, 1)
    frames = frames.float() / 127.5 - 1  # (n * frames, 3, height, width)
    if frames.shape[-2:] != (RESOLUTION, RESOLUTION):
        frames = F.interpolate(frames, (RESOLUTION, RESOLUTION), mode="bilinear", align_corners=False)
    return frames.unflatten(0, clips.shape[:2])


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance between Gaussians with the means and (n - 1) covariances of two feature sets.

    `|mean_a - mean_b|^2 + Tr(A + B - 2 (A B)^1/2)`, where the trace of the root is that of the symmetric
    `(A^1/2 B A^1/2)^1/2`. The sets need not be of one size. It is biased upwards, the more the fewer the features.
    Rounding leaves up to about 1e-6 of the traces, of either sign.

    Args:
        a, b: features `(n, dimensions)`.

    Raises:
        ValueError: see `check_features`.
    """
    a, b = check_features(a, b)
    covariance_a, covariance_b = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (a, b))
    values, vectors = np.linalg.eigh(covariance_a)
    root_a = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    trace_of_root = np.sqrt(np.linalg.eigvalsh(root_a @ covariance_b @ root_a).clip(min=0)).sum()
    distance_of_means = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    return float(distance_of_means + np.trace(covariance_a) + np.trace(covariance_b) - 2 * trace_of_root)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared maximum mean discrepancy of two feature sets under the kernel `(x y / dimensions + 1)^3`.

    The unbiased estimate over all clips at once: in expectation zero for two draws of the same clips, for any number
    of them, and thus as often negative as positive.

    Args:
        a, b: features `(n, dimensions)`.

    Raises:
        ValueError: see `check_features`.
    """
    a, b = check_features(a, b)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def mean_of_pairs(x: np.ndarray) -> float:
        similarity = kernel(x, x)
        return (similarity.sum() - np.trace(similarity)) / (len(x) * (len(x) - 1))

    return float(mean_of_pairs(a) + mean_of_pairs(b) - 2 * kernel(a, b).mean())


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
