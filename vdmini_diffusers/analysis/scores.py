"""How videos of a denoiser without one of its parts are scored.

FVD saturates on broken videos, and where most clips hardly move it calls a part unimportant whose removal freezes
them. So others stand beside it: KVD, the distance to the videos of the whole denoiser, and that split into content and
motion.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vdmini_diffusers.evaluation.continuation import MAX_PSNR, psnr
from vdmini_diffusers.evaluation.detectors import Detector, clip_features
from vdmini_diffusers.evaluation.frechet_video_distance import frechet_distance, kernel_distance
from vdmini_diffusers.evaluation.motion import motion_distance


@dataclass
class Clips:
    """`frames`: uint8 `(n, frames, height, width, 3)`. With a detector, their features are computed once."""

    frames: np.ndarray
    detector: Detector | None = None

    @cached_property
    def features(self) -> np.ndarray:
        """The detector's, `(n, dimension)`."""
        if self.detector is None:
            raise ValueError("Features of clips need a `detector`.")
        return clip_features(self.frames, self.detector)


@dataclass(frozen=True)
class Score:
    """A number for the videos of a denoiser without one of its parts.

    Args:
        compute: `(videos, videos of the whole denoiser with the same inputs and noise)`.
        higher_is_better: whether better videos have the larger number.
    """

    compute: Callable[[Clips, Clips], float]
    higher_is_better: bool = False


def standard_scores(detector: Detector | None = None, real: np.ndarray | None = None) -> dict[str, Score]:
    """All scores that can be computed with what is given, by name.

    - `psnr_to_unpruned`; and `content_mse` and `motion_mse`, see `content_and_motion_error`;
    - `motion_amount` and `motion_course`, `motion_distance` to the videos of the whole denoiser: 1 for still videos,
      however little they differ from the others pixel by pixel;
    - with a detector, `i3d_cosine_to_unpruned`; with real clips as well, `fvd` and `kvd` to these.

    Args:
        real: uint8 `(n, frames, height, width, 3)`.
    """
    scores = {
        "psnr_to_unpruned": Score(lambda a, b: min(psnr(a.frames, b.frames), MAX_PSNR), higher_is_better=True),
        "content_mse": Score(lambda a, b: content_and_motion_error(a.frames, b.frames)[0]),
        "motion_mse": Score(lambda a, b: content_and_motion_error(a.frames, b.frames)[1]),
        "motion_amount": Score(lambda a, b: motion_distance(a.frames, b.frames).amount),
        "motion_course": Score(lambda a, b: motion_distance(a.frames, b.frames).course),
    }
    if detector is not None:
        scores["i3d_cosine_to_unpruned"] = Score(
            lambda a, b: centred_cosine(a.features, b.features), higher_is_better=True
        )
    if detector is not None and real is not None:
        reference = Clips(real, detector)
        scores["fvd"] = Score(lambda a, b: frechet_distance(a.features, reference.features))
        scores["kvd"] = Score(lambda a, b: kernel_distance(a.features, reference.features))
    return scores


def content_and_motion_error(videos: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """The mean squared difference of two sets of clips, in two terms that add up to it.

    Content is a clip's mean over time, and motion what its frames deviate from that by. The two are orthogonal, so
    that a part whose removal freezes the videos and one whose removal recolours them can be told apart.

    Args:
        videos, others: `(n, frames, height, width, 3)`, 0 to 255.

    Raises:
        ValueError: if their shapes differ.
    """
    if videos.shape != others.shape:
        raise ValueError(f"Videos that are compared must have equal shapes, not {videos.shape} and {others.shape}.")
    content = motion = 0.0
    for clip, other in zip(videos, others, strict=True):  # one at a time: as float64 it takes eight times the memory
        difference = clip.astype(np.float64) - other
        mean = difference.mean(axis=0)
        content += (mean**2).mean() / len(videos)
        motion += ((difference - mean) ** 2).mean() / len(videos)
    return float(content), float(motion)


def centred_cosine(features: np.ndarray, others: np.ndarray) -> float:
    """Mean cosine of corresponding rows, both less the mean of `others`, as all logits have much in common."""
    a, b = features - others.mean(axis=0), others - others.mean(axis=0)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(axis=1) / np.where(norms > 0, norms, 1)))


def notes_on(num_clips: int, detector: Detector | None, scores: Collection[str]) -> list[str]:
    """What a reader of such scores has to know, given how many clips they were computed from."""
    if detector is not None and "fvd" in scores and num_clips <= detector.dimension:
        return [
            f"fvd is computed from {num_clips} clips, and features have {detector.dimension} dimensions:"
            " their covariance is singular, and fvd far above what many clips would give. Compare it within this"
            " table only, and with kvd, which is unbiased."
        ]
    return []
