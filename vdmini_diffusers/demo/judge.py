"""What a distilled demo student can do, measured on held-out scenes at little cost."""

import io
import json
from collections.abc import Mapping
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vdmini_diffusers.data.latents import PrecomputedLatents
from vdmini_diffusers.demo.contact_sheet import write_contact_sheet, write_labelled_video
from vdmini_diffusers.demo.linear_decoder import LinearDecoder
from vdmini_diffusers.demo.measures import HeldOutImages, HeldOutPrompts, Videos
from vdmini_diffusers.demo.teachers import T2V_SAMPLING
from vdmini_diffusers.demo.training_latents import draw_training_clip
from vdmini_diffusers.evaluation.i3d import I3D
from vdmini_diffusers.families import find_trainable_family
from vdmini_diffusers.serialization.atomic import write_file


SAMPLING: dict[str, dict[str, Any]] = {"image": {"num_inference_steps": 1}, "text": T2V_SAMPLING}  # by what is given
FROM_LATENTS = ("right_way", "moves", "speed")  # of all scenes, decoded by one matrix
DECODED = ("sharpness", "flicker", "object", "place", "motion_cosine", "psnr_to_teacher", "fvd", "kvd")
MEASURES = (*FROM_LATENTS, *DECODED, "decoders_agree")
FIRST_VIDEOS, NUM_SHOWN = "first_videos.npz", 6  # kept beside the numbers
NUM_FILMED = 3  # of those, scenes that become videos of their own
NUM_LINEAR_CLIPS = 64  # to train on, which the matrix is fitted to


class Judge:
    """Makes a teacher's and its students' videos of held-out scenes, and measures them; both are kept.

    The way that things go is read off a linear decoding of the latents of all scenes, the rest off frames of the first
    ones by the VAE.

    Args:
        teacher: folder of its pipeline.
        latents: its training latents, by `write_training_latents`.
        folder: where the teacher's videos are kept.
        num_decoded: the number of scenes that the VAE decodes.
        detector: I3D, for FVD and KVD of those.
    """

    def __init__(
        self,
        teacher: Path,
        latents: Path,
        folder: Path,
        seed: int,
        num_clips: int,
        num_decoded: int,
        detector: I3D | None = None,
    ):
        given = find_trainable_family(str(teacher)).given
        kind = HeldOutImages if given == "image" else HeldOutPrompts
        self.seed, self.teacher_folder, self.detector = seed, teacher, detector
        self.sampling = SAMPLING[given]
        self.all: Any = kind(num_clips, seed)
        self.decoded: Any = kind(min(num_decoded, num_clips), seed, detector)
        dataset = PrecomputedLatents(latents)
        indices = range(min(NUM_LINEAR_CLIPS, len(dataset)))
        self.linear = LinearDecoder(
            torch.stack([dataset[i]["latents"] for i in indices]),
            np.stack([draw_training_clip(given, i)[0] for i in indices]),
        )
        self.cache = folder / f"teachers_videos-{seed}.npz"

    @cached_property
    def teacher(self) -> Videos:
        if not self.cache.exists():
            frames = self.decoded.generate(self.teacher_folder, **self.sampling).frames
            write_frames(self.cache, frames)
        return self.decoded.look_at(np.load(self.cache)["frames"])

    def measure(self, pipeline: Path, beside: Path | None = None) -> dict[str, list[float]]:
        """Numbers by measure, one for each clip; FVD and KVD are one.

        Args:
            beside: folder for the numbers, and the first videos; by default the pipeline's.
        """
        folder = pipeline if beside is None else beside
        file = folder / f"measures-{self.seed}.json"
        if not file.exists():
            videos = self.all.generate(pipeline, decode=self.linear, **self.sampling)
            decoded, teacher = self.teacher, None
            if pipeline != self.teacher_folder:
                decoded, teacher = self.decoded.generate(pipeline, **self.sampling), self.teacher
            found = self.all.per_clip(videos)
            numbers = {name: found[name].tolist() for name in FROM_LATENTS}
            found = self.decoded.per_clip(decoded, teacher)
            numbers |= {name: found[name].tolist() for name in DECODED if name in found}
            pairs = zip(decoded.motions, videos.motions, strict=False)  # the second has more
            numbers["decoders_agree"] = [float(one.way == other.way) for one, other in pairs]
            if decoded.features is not None:
                numbers |= {name: [value] for name, value in self.decoded.distances(decoded).items()}
            folder.mkdir(parents=True, exist_ok=True)
            write_frames(folder / FIRST_VIDEOS, decoded.frames[:NUM_SHOWN])
            write_file(file, json.dumps(numbers).encode())
        return json.loads(file.read_text())

    def write_sheet(self, folders: Mapping[str, Path], path: Path) -> None:
        """A picture of the first videos, scene by scene: the real ones, and of each folder those that were measured
        there, if they are kept. Beside it `scene-0.mp4` and the next ones show all that are of one scene at once."""
        rows = {"real": self.decoded.real.frames}
        files = {name: folder / FIRST_VIDEOS for name, folder in folders.items()}
        rows |= {name: np.load(file)["frames"] for name, file in files.items() if file.exists()}
        captions = self.decoded.captions[:NUM_SHOWN]
        sheet = [
            (f"{caption}: {name}", videos[i]) for i, caption in enumerate(captions) for name, videos in rows.items()
        ]
        write_contact_sheet(sheet, path)
        if find_spec("av") is not None:  # a GPU that is lent for minutes may come without it
            for i in range(min(NUM_FILMED, len(captions))):
                clips = {name: videos[i] for name, videos in rows.items()}
                write_labelled_video(clips, path.with_name(f"scene-{i}.mp4"))


def write_frames(file: Path, frames: np.ndarray) -> None:
    """Write an `.npz` file, whole or not at all."""
    content = io.BytesIO()
    np.savez_compressed(content, frames=frames)
    write_file(file, content.getvalue())
