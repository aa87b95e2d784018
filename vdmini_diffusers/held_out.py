"""Held-out clips for the embedded models, what pipelines make of their first frames, and how far that is from real."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from vdmini_diffusers.data.moving_pictures import DEFAULT_MOTION_BUCKET_ID, HELD_OUT_PHOTOS, Clip, MovingPictures
from vdmini_diffusers.evaluation.continuation import motion_cosine, motion_ratio, psnr
from vdmini_diffusers.evaluation.frechet_video_distance import frechet_distance, i3d_features, kernel_distance
from vdmini_diffusers.evaluation.i3d import I3D
from vdmini_diffusers.evaluation.motion import motion_distance
from vdmini_diffusers.pipelines import VDMiniI2VPipeline


KINDS = ("drive", "push-in")


def held_out_clips(num_clips: int, seed: int) -> list[Clip]:
    """Clips of photographs that no embedded model was trained on, half of each kind, at the default speed."""
    pictures = MovingPictures(HELD_OUT_PHOTOS)
    return [
        pictures.clip(np.random.default_rng((seed, 3, i)), DEFAULT_MOTION_BUCKET_ID, KINDS[i % 2])
        for i in range(num_clips)
    ]


def continue_clips(
    pipe: VDMiniI2VPipeline, clips: list[Clip], num_inference_steps: int, seed: int, batch_size: int = 8
) -> np.ndarray:
    """Generate from the first frames: uint8 `(n, frames, height, width, 3)`. Clip `i` has the noise of `seed + i`."""
    videos = []
    for start in tqdm(range(0, len(clips), batch_size), desc="clips", unit="batch", leave=False):
        batch = clips[start : start + batch_size]
        frames = pipe(
            [Image.fromarray(clip.frames[0]) for clip in batch],
            num_inference_steps=num_inference_steps,
            motion_bucket_id=batch[0].motion_bucket_id,
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))],
            output_type="np",
            return_dict=False,
        )
        videos.append((np.asarray(frames) * 255).round().astype(np.uint8))
    return np.concatenate(videos)


@dataclass(frozen=True)
class Videos:
    """`frames`: uint8 `(n, frames, height, width, 3)`. `features`: I3D's logits `(n, 400)`, if it was there."""

    frames: np.ndarray
    features: np.ndarray | None


class HeldOutMeasure:
    """Measures videos that start from the first frames of held-out clips.

    Args:
        num_clips: as many again serve as the reference of FVD, which depends on their number.
        seed: of the clips, and of the noise that videos are made from.
        detector: I3D; without it nothing is said of FVD.
    """

    def __init__(self, num_clips: int, seed: int = 0, detector: I3D | None = None):
        self.seed = seed
        self.detector = detector
        self.clips = held_out_clips(num_clips, seed)
        self.real = self.watch(np.stack([clip.frames for clip in self.clips]))
        self.reference = self.watch(np.stack([clip.frames for clip in held_out_clips(num_clips, seed + 1)]))

    def watch(self, frames: np.ndarray) -> Videos:
        features = None if self.detector is None else i3d_features(frames, self.detector, description="I3D")
        return Videos(frames, features)

    def generate(self, pipeline: str | os.PathLike, num_inference_steps: int, variant: str | None = None) -> Videos:
        """What the pipeline in a folder makes of the first frames."""
        pipe = VDMiniI2VPipeline.from_pretrained(pipeline, variant=variant, dtype=torch.float32)
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        pipe.set_progress_bar_config(disable=True)
        return self.watch(continue_clips(pipe, self.clips, num_inference_steps, self.seed))

    def __call__(self, videos: Videos, teacher: Videos | None = None) -> dict[str, float]:
        """Numbers by name: against what really came, and with the teacher's videos of the same noise against those."""
        generated, real = videos.frames, self.real.frames
        numbers = {
            "psnr_to_real": psnr(generated[:, 1:], real[:, 1:]),
            "motion_cosine": motion_cosine(generated, real),
            "motion_ratio": motion_ratio(generated, real),
            "motion_course": motion_distance(generated, self.reference.frames).course,
        }
        if teacher is not None:
            numbers["psnr_to_teacher"] = psnr(generated[:, 1:], teacher.frames[:, 1:])
            if teacher.features is not None and videos.features is not None:
                numbers["i3d_cosine_to_teacher"] = mean_cosine(videos.features, teacher.features)
        if videos.features is not None:
            floor = self.distances(self.real)
            numbers |= self.distances(videos) | {"fvd_floor": floor["fvd"], "kvd_floor": floor["kvd"]}
        return numbers

    def distances(self, videos: Videos) -> dict[str, float]:
        """FVD and KVD to other real clips. Those of `self.real` are the floor: what a perfect generator would get.

        Raises:
            ValueError: without a detector.
        """
        features, reference = videos.features, self.reference.features
        if features is None or reference is None:
            raise ValueError("FVD needs I3D: give `HeldOutMeasure` a detector.")
        return {"fvd": frechet_distance(features, reference), "kvd": kernel_distance(features, reference)}


def mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of corresponding rows, each set centred by the mean of `b`, as all logits have much in common."""
    a, b = a - b.mean(axis=0), b - b.mean(axis=0)
    return float(np.mean((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))
