"""Held-out scenes for the demo teachers and their students, and what is measured of the videos made of them.

Each measure is one number a clip, so that two models can be compared clip by clip; FVD and KVD are one a set.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from vdmini_diffusers.demo.recognition import STANDS_STILL, Motion, MotionCandidates, Recogniser
from vdmini_diffusers.demo.scenes import (
    HIDDEN_WAYS,
    NUM_FRAMES,
    Scene,
    draw_captioned,
    draw_clip,
    draw_hidden,
)
from vdmini_diffusers.evaluation.continuation import MAX_PSNR, gradients, psnr
from vdmini_diffusers.evaluation.frechet_video_distance import frechet_distance, i3d_features, kernel_distance
from vdmini_diffusers.evaluation.i3d import I3D
from vdmini_diffusers.pipelines import VDMiniI2VPipeline, VDMiniT2VPipeline


BATCH_SIZE = 8
Decode = Callable[[torch.Tensor], np.ndarray]  # latents (n, frames, channels, height, width) to frames


@dataclass(frozen=True)
class Videos:
    """`frames`: uint8 `(n, 16, 64, 64, 3)`. `motions`: how each moves. `found`: objects and places seen, for captions
    only. `features`: I3D's logits `(n, 400)`, or `None` without I3D."""

    frames: np.ndarray
    motions: list[Motion]
    found: list[tuple[str, str]]
    features: np.ndarray | None


class HeldOut(ABC):
    """What both kinds share.

    Args:
        num_clips: number of scenes; as many other real clips serve as the reference of FVD.
        seed: seed of the scenes, and of the noise that videos are made from.
        detector: I3D, for FVD and KVD.
    """

    def __init__(self, num_clips: int, seed: int = 0, detector: I3D | None = None):
        self.seed, self.detector = seed, detector
        self.scenes, frames = self._draw(num_clips, seed)
        self.captions = [scene.caption for scene in self.scenes]
        self.real = self.look_at(frames)
        self.reference = self._features(self._draw(num_clips, seed + 1)[1])

    @abstractmethod
    def _draw(self, num_clips: int, seed: int) -> tuple[list[Scene], np.ndarray]:
        """Scenes, and a clip of each, uint8 `(n, 16, 64, 64, 3)`."""

    @abstractmethod
    def _motion(self, index: int, clip: np.ndarray) -> tuple[Motion, tuple[str, str]]:
        """How a clip of the scene moves, and which object and place it shows."""

    @abstractmethod
    def _right_way(self, motions: list[Motion]) -> np.ndarray:
        """1 where a clip of the scene moves as it should, `(n,)`."""

    def _features(self, frames: np.ndarray) -> np.ndarray | None:
        return None if self.detector is None else i3d_features(frames, self.detector, description="I3D")

    def look_at(self, frames: np.ndarray) -> Videos:
        """What videos show that were made of the scenes, in their order."""
        seen = [self._motion(i, clip) for i, clip in enumerate(frames)]
        return Videos(frames, [motion for motion, _ in seen], [found for _, found in seen], self._features(frames))

    def per_clip(self, videos: Videos, teacher: Videos | None = None) -> dict[str, np.ndarray]:
        """Measures by name, `(n,)` each:

        - `right_way`: 1 where the clip moves as its first frame allows (image to video) or as its caption says;
        - `moves`: 1 where it is not nearest to a still clip;
        - `speed`: distance covered, over that of the real clip;
        - `sharpness`: mean absolute gradient of the frames, over the mean of real clips;
        - `flicker`: mean absolute second difference over time, over the mean of real clips;
        - `object`, `place`: 1 where they are what the caption says (text to video);
        - `teachers_way`, `psnr_to_teacher`, `motion_cosine`: against the teacher's videos of the same noise.
        """
        distance = np.array([motion.distance for motion in videos.motions])
        numbers = {
            "right_way": self._right_way(videos.motions),
            "moves": np.array([motion != STANDS_STILL for motion in videos.motions], float),
            "speed": distance / np.array([scene.distance for scene in self.scenes]),
            "sharpness": gradients(videos.frames) / gradients(self.real.frames).mean(),
            "flicker": jerks(videos.frames) / jerks(self.real.frames).mean(),
        }
        if any(videos.found[0]):
            for i, what in enumerate(("object", "place")):
                pairs = zip(videos.found, self.scenes, strict=True)
                numbers[what] = np.array([found[i] == getattr(scene, what) for found, scene in pairs], float)
        if teacher is not None:
            pairs = list(zip(videos.motions, teacher.motions, strict=True))
            numbers["teachers_way"] = np.array([motion.way == other.way for motion, other in pairs], float)
            both = list(zip(videos.frames, teacher.frames, strict=True))
            numbers["psnr_to_teacher"] = np.array([min(psnr(clip, other), MAX_PSNR) for clip, other in both])
            numbers["motion_cosine"] = np.array([change_cosine(clip, other) for clip, other in both])
        return numbers

    def distances(self, videos: Videos) -> dict[str, float]:
        """FVD and KVD to the reference; those of `self.real` are the floor, which a perfect generator would reach.

        Raises:
            ValueError: without a detector.
        """
        if videos.features is None or self.reference is None:
            raise ValueError("FVD needs I3D: pass `detector`.")
        return {
            "fvd": frechet_distance(videos.features, self.reference),
            "kvd": kernel_distance(videos.features, self.reference),
        }

    def _sample(
        self, pipe: Any, call: Callable[[slice, list[torch.Generator]], Any], first_seed: int, decode: Decode | None
    ) -> np.ndarray:
        """Videos of all scenes, in batches; scene `i` has the noise of `first_seed + i`. `call` gives frames, 0 to 1,
        or what `decode` takes."""
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        pipe.set_progress_bar_config(disable=True)
        videos = []
        for start in tqdm(range(0, len(self.scenes), BATCH_SIZE), desc="clips", unit="batch", leave=False):
            part = slice(start, min(start + BATCH_SIZE, len(self.scenes)))
            generators = [torch.Generator().manual_seed(first_seed + i) for i in range(part.start, part.stop)]
            made = call(part, generators)
            videos.append(decode(made) if decode else (np.asarray(made) * 255).round().astype(np.uint8))
        return np.concatenate(videos)


class HeldOutImages(HeldOut):
    """64 first frames: each object in each place, where no clip to train students on has it."""

    def __init__(self, num_clips: int, seed: int = 0, detector: I3D | None = None):
        self.candidates: list[MotionCandidates] = []
        super().__init__(num_clips, seed, detector)

    def _draw(self, num_clips: int, seed: int) -> tuple[list[Scene], np.ndarray]:
        scenes, frames, candidates = [], [], []
        for i in range(num_clips):
            rng = np.random.default_rng((seed, 3, i))
            scene, view = draw_hidden(rng, held_out=True)
            scenes.append(scene)
            frames.append(draw_clip(scene, view))
            if seed == self.seed:
                candidates.append(MotionCandidates(scene, view))
        self.candidates = candidates or self.candidates
        return scenes, np.stack(frames)

    def _motion(self, index: int, clip: np.ndarray) -> tuple[Motion, tuple[str, str]]:
        return self.candidates[index].nearest(clip), ("", "")

    def _right_way(self, motions: list[Motion]) -> np.ndarray:
        pairs = zip(motions, self.scenes, strict=True)
        return np.array([motion.way in HIDDEN_WAYS[scene.object] for motion, scene in pairs], float)

    def generate(
        self,
        pipeline: str | os.PathLike | VDMiniI2VPipeline,
        num_inference_steps: int,
        variant: str | None = None,
        noise_seed: int | None = None,
        decode: Decode | None = None,
    ) -> Videos:
        """The videos that a pipeline (or its folder) makes from the first frames, without guidance.

        Args:
            noise_seed: by default that of the scenes.
            decode: what makes frames of latents, by default the pipeline's VAE.
        """
        pipe = pipeline
        if not isinstance(pipe, VDMiniI2VPipeline):
            pipe = VDMiniI2VPipeline.from_pretrained(pipe, variant=variant, dtype=torch.float32)

        def call(part: slice, generators: list[torch.Generator]) -> Any:
            return pipe(
                [Image.fromarray(clip[0]) for clip in self.real.frames[part]],
                num_frames=NUM_FRAMES,
                num_inference_steps=num_inference_steps,
                generator=generators,
                output_type="latent" if decode else "np",
                return_dict=False,
            )

        seed = self.seed if noise_seed is None else noise_seed
        return self.look_at(self._sample(pipe, call, 1000 * seed, decode))


class HeldOutPrompts(HeldOut):
    """Captions of an object in a place where no demo teacher has seen it."""

    def __init__(self, num_clips: int, seed: int = 0, detector: I3D | None = None):
        self.recognise = Recogniser()
        super().__init__(num_clips, seed, detector)

    def _draw(self, num_clips: int, seed: int) -> tuple[list[Scene], np.ndarray]:
        scenes, frames = [], []
        for i in range(num_clips):
            scene, view = draw_captioned(np.random.default_rng((seed, 4, i)), held_out=True)
            scenes.append(scene)
            frames.append(draw_clip(scene, view))
        return scenes, np.stack(frames)

    def _motion(self, index: int, clip: np.ndarray) -> tuple[Motion, tuple[str, str]]:
        scene = self.scenes[index]
        found = self.recognise(clip, scene)
        return MotionCandidates(scene, found.view).nearest(clip), (found.object, found.place)

    def _right_way(self, motions: list[Motion]) -> np.ndarray:
        return np.array([m.way == scene.way for m, scene in zip(motions, self.scenes, strict=True)], float)

    def generate(
        self,
        pipeline: str | os.PathLike | VDMiniT2VPipeline,
        num_inference_steps: int,
        decode: Decode | None = None,
        **kwargs: Any,
    ) -> Videos:
        """The videos that a pipeline (or its folder) makes from the captions; `decode` as for images."""
        pipe = pipeline
        if not isinstance(pipe, VDMiniT2VPipeline):
            pipe = VDMiniT2VPipeline.from_pretrained(pipe, dtype=torch.float32)

        def call(part: slice, generators: list[torch.Generator]) -> Any:
            made = pipe(
                self.captions[part],
                num_frames=NUM_FRAMES,
                num_inference_steps=num_inference_steps,
                generator=generators,
                output_type="latent" if decode else "np",
                return_dict=False,
                **kwargs,
            )[0]
            return made.movedim(1, 2) if decode else made

        return self.look_at(self._sample(pipe, call, 1000 * self.seed, decode))


def jerks(clips: np.ndarray) -> np.ndarray:
    """Mean absolute second difference over time, `(n,)`."""
    return np.abs(np.diff(clips.astype(np.float32), n=2, axis=1)).mean(axis=(1, 2, 3, 4))


def change_cosine(clip: np.ndarray, other: np.ndarray) -> float:
    """Cosine between two clips' changes from their first frames; 0 where one is still."""
    a, b = ((x.astype(np.float32) - x[:1]).ravel() for x in (clip, other))
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms else 0.0
