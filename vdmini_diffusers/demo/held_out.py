"""Held-out clips for the demo teachers and their students, and measures of the videos that pipelines make from the
clips' first frames or captions."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from vdmini_diffusers.demo.captioned_clips import BACKGROUNDS, CaptionedClips, Scene
from vdmini_diffusers.demo.moving_pictures import DEFAULT_MOTION_BUCKET_ID, HELD_OUT_PHOTOS, Clip, MovingPictures
from vdmini_diffusers.demo.sprite_recognition import Recogniser
from vdmini_diffusers.evaluation.continuation import motion_cosine, motion_ratio, psnr
from vdmini_diffusers.evaluation.frechet_video_distance import frechet_distance, i3d_features, kernel_distance
from vdmini_diffusers.evaluation.i3d import I3D
from vdmini_diffusers.evaluation.motion import motion_distance
from vdmini_diffusers.pipelines import VDMiniI2VPipeline, VDMiniT2VPipeline


KINDS = ("drive", "push-in")


def held_out_clips(num_clips: int, seed: int) -> list[Clip]:
    """Clips of photographs that no demo teacher was trained on, half of each kind, at the default speed."""
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
    """`frames`: uint8 `(n, frames, height, width, 3)`. `features`: I3D's logits `(n, 400)`, or `None` without I3D."""

    frames: np.ndarray
    features: np.ndarray | None


class VideoMeasure:
    """Measures that apply to videos made from images and from text alike.

    Args:
        real: ground truth, uint8 `(n, frames, height, width, 3)`.
        reference: as many other real clips, for FVD, which depends on their number.
        detector: I3D; without it, FVD and KVD are left out.
    """

    def __init__(self, real: np.ndarray, reference: np.ndarray, detector: I3D | None):
        self.detector = detector
        self.real, self.reference = self.extract_features(real), self.extract_features(reference)

    def extract_features(self, frames: np.ndarray) -> Videos:
        """The frames with their features, if there is a detector."""
        features = None if self.detector is None else i3d_features(frames, self.detector, description="I3D")
        return Videos(frames, features)

    def common(self, videos: Videos, teacher: Videos | None, given_frames: int) -> dict[str, float]:
        """Distances to the reference, if there is a detector, and to the teacher's videos from the same noise.

        Args:
            given_frames: number of frames at the start of each video that were given and not generated.
        """
        numbers = {"motion_course": motion_distance(videos.frames, self.reference.frames).course}
        if teacher is not None:
            numbers["psnr_to_teacher"] = psnr(videos.frames[:, given_frames:], teacher.frames[:, given_frames:])
            if teacher.features is not None and videos.features is not None:
                numbers["i3d_cosine_to_teacher"] = mean_cosine(videos.features, teacher.features)
        if videos.features is not None:
            floor = self.distances(self.real)
            numbers |= self.distances(videos) | {"fvd_floor": floor["fvd"], "kvd_floor": floor["kvd"]}
        return numbers

    def distances(self, videos: Videos) -> dict[str, float]:
        """FVD and KVD to the reference. Those of `self.real` are the floor, which a perfect generator would reach.

        Raises:
            ValueError: without a detector.
        """
        features, reference = videos.features, self.reference.features
        if features is None or reference is None:
            raise ValueError("FVD needs I3D: pass `detector`.")
        return {"fvd": frechet_distance(features, reference), "kvd": kernel_distance(features, reference)}


class HeldOutMeasure(VideoMeasure):
    """Measures videos that start from the first frames of held-out clips.

    Args:
        num_clips: number of clips; as many again serve as the reference.
        seed: seed of the clips, and of the noise that videos are made from.
        detector: I3D, for FVD and KVD.
    """

    def __init__(self, num_clips: int, seed: int = 0, detector: I3D | None = None):
        self.seed = seed
        self.clips = held_out_clips(num_clips, seed)
        self.captions = [clip.caption for clip in self.clips]
        others = held_out_clips(num_clips, seed + 1)
        real, reference = (np.stack([clip.frames for clip in clips]) for clips in (self.clips, others))
        super().__init__(real, reference, detector)

    def generate(self, pipeline: str | os.PathLike, num_inference_steps: int, variant: str | None = None) -> Videos:
        """The videos that the pipeline in a folder makes from the first frames."""
        pipe = VDMiniI2VPipeline.from_pretrained(pipeline, variant=variant, dtype=torch.float32)
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        pipe.set_progress_bar_config(disable=True)
        return self.extract_features(continue_clips(pipe, self.clips, num_inference_steps, self.seed))

    def __call__(self, videos: Videos, teacher: Videos | None = None) -> dict[str, float]:
        """Measures by name: against ground truth, and against the teacher's videos from the same noise."""
        generated, real = videos.frames, self.real.frames
        return {
            "psnr_to_real": psnr(generated[:, 1:], real[:, 1:]),
            "motion_cosine": motion_cosine(generated, real),
            "motion_ratio": motion_ratio(generated, real),
        } | self.common(videos, teacher, given_frames=1)


class HeldOutPrompts(VideoMeasure):
    """Measures videos made from captions, of an object on a background on which no demo teacher has seen it.

    Its arguments are those of [`HeldOutMeasure`].
    """

    def __init__(self, num_clips: int, seed: int = 0, detector: I3D | None = None):
        self.seed = seed
        self.pictures = CaptionedClips()
        self.recognise = Recogniser(self.pictures.sprites, {name: self.pictures.view(name) for name in BACKGROUNDS})
        self.scenes, real = self._draw(num_clips, seed)
        self.captions = [scene.caption for scene in self.scenes]
        super().__init__(real, self._draw(num_clips, seed + 1)[1], detector)

    def _draw(self, num_clips: int, seed: int) -> tuple[list[Scene], np.ndarray]:
        scenes, frames = [], []
        for i in range(num_clips):
            rng = np.random.default_rng((seed, 4, i))
            scenes.append(self.pictures.scene(rng, held_out=True))
            frames.append(self.pictures.frames(scenes[-1], rng))
        return scenes, np.stack(frames)

    def generate(
        self,
        pipeline: str | os.PathLike | VDMiniT2VPipeline,
        num_inference_steps: int,
        batch_size: int = 8,
        **kwargs: Any,
    ) -> Videos:
        """The videos that a pipeline (or its folder) makes from the captions. Clip `i` has the noise of `seed + i`."""
        pipe = pipeline
        if not isinstance(pipe, VDMiniT2VPipeline):
            pipe = VDMiniT2VPipeline.from_pretrained(pipe, dtype=torch.float32)
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        pipe.set_progress_bar_config(disable=True)
        videos = []
        for start in tqdm(range(0, len(self.scenes), batch_size), desc="clips", unit="batch", leave=False):
            batch = self.captions[start : start + batch_size]
            frames = pipe(
                batch,
                num_frames=self.real.frames.shape[1],
                num_inference_steps=num_inference_steps,
                generator=[torch.Generator().manual_seed(self.seed + start + i) for i in range(len(batch))],
                output_type="np",
                return_dict=False,
                **kwargs,
            )[0]
            videos.append((np.asarray(frames) * 255).round().astype(np.uint8))
        return self.extract_features(np.concatenate(videos))

    def __call__(self, videos: Videos, teacher: Videos | None = None) -> dict[str, float]:
        """Measures by name: `object_accuracy`, `background_accuracy` and `direction_accuracy`, which are shares of the
        videos that show what their captions name, and those of `common`."""
        seen = [
            self.recognise(frames, scene.object or "")
            for frames, scene in zip(videos.frames, self.scenes, strict=True)
        ]
        return {
            f"{what}_accuracy": float(
                np.mean([getattr(s, what) == getattr(scene, what) for s, scene in zip(seen, self.scenes, strict=True)])
            )
            for what in ("object", "background", "direction")
        } | self.common(videos, teacher, given_frames=0)


def mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean cosine of corresponding rows, both centred by the mean of `b`, as all logits have much in common."""
    a, b = a - b.mean(axis=0), b - b.mean(axis=0)
    return float(np.mean((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))
