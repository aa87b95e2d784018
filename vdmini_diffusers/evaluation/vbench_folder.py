"""A folder of videos for VBench that is filled by several processes, over several runs.

`<output_dir>/videos` holds the finished videos and nothing else: VBench takes the ending of all names from the first
file that it finds there. `<output_dir>/generation.json` says what they were made with.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from vdmini_diffusers.data.video_writing import import_av, whole_shape, write_video
from vdmini_diffusers.evaluation.vbench_videos import WantedVideo
from vdmini_diffusers.serialization.atomic import write_file
from vdmini_diffusers.serialization.safetensors_reader import read_json


SETTINGS = "generation.json"
VIDEOS = "videos"


class GenerationFolderError(ValueError):
    """A folder that cannot be gone on with; the message names files and says what to do."""


def open_generation(output_dir: Path, settings: Mapping[str, Any]) -> Path:
    """Make the folder, or go on with one of the same settings, and return that of its videos.

    Raises:
        GenerationFolderError: if the folder holds videos of other settings, or something else.
        OSError: if it cannot be written.
    """
    record, videos = output_dir / SETTINGS, output_dir / VIDEOS
    if record.exists():
        before = read_json(record)
        differing = [
            _difference(name, before.get(name), settings.get(name))
            for name in {**before, **settings}
            if before.get(name) != settings.get(name)
        ]
        if differing:
            raise GenerationFolderError(
                f"{output_dir} holds videos of other settings ({'; '.join(differing)}): choose another folder, or give"
                " the same settings to go on."
            )
    elif output_dir.exists() and any(output_dir.iterdir()):
        raise GenerationFolderError(f"{output_dir} is neither empty nor a folder with a {SETTINGS}: choose another.")
    videos.mkdir(parents=True, exist_ok=True)
    if not record.exists():
        write_file(record, (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode())
    return videos


def unfinished_videos(folder: Path, wanted: Sequence[WantedVideo]) -> list[WantedVideo]:
    """Those that are not there yet. Those that are there are decoded to their last frame.

    That is some 0.1 s of a core for a video of 14 frames of 576 x 1024, so minutes for VBench's thousands at each
    start: little beside making them, and no note of what was checked can be out of date.

    Raises:
        GenerationFolderError: if a file is not one of the wanted videos, is damaged, or is longer, shorter, larger
            or smaller than the others. Nothing is removed.
        ImportError: without PyAV.
    """
    import_av()  # before the first video is made, which needs it
    names = {video.name for video in wanted}
    there = sorted(os.listdir(folder))
    if foreign := [name for name in there if name not in names]:
        raise GenerationFolderError(
            f"{folder} holds {_some(foreign)}, which the prompt list does not ask for: move them elsewhere, as VBench"
            " would take them for results."
        )
    shapes = {name: whole_shape(folder / name) for name in tqdm(there, "videos there", leave=False, disable=None)}
    if damaged := [name for name, shape in shapes.items() if shape is None]:
        raise GenerationFolderError(
            f"{folder} holds {_some(damaged)}, damaged: remove them, and the same command makes them again, alike."
        )
    if len(set(shapes.values())) > 1:
        examples = {shape: name for name, shape in shapes.items()}
        told = "; ".join(f"{f} frames of {h} x {w}: {name}" for (f, h, w), name in examples.items())
        raise GenerationFolderError(
            f"{folder} holds videos that differ in length or size ({told}): remove those that are wrong, and the same"
            " command makes them again."
        )
    return [video for video in wanted if video.name not in shapes]


def keep_video(folder: Path, name: str, frames: Sequence[Image.Image] | np.ndarray, fps: float) -> None:
    """Write a video that appears under its name when it is complete.

    Raises:
        OSError: if it cannot be written.
        ImportError: without PyAV.
    """
    # Beside `videos` and not in it, where VBench would find what a killed process leaves.
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as unfinished:
        partial = Path(unfinished) / "video.mp4"
        write_video(frames, partial, fps)
        os.replace(partial, folder / name)


def _difference(name: str, before: Any, now: Any) -> str:
    if isinstance(before, Mapping) and isinstance(now, Mapping):  # hashes of hundreds of files
        return f"{name} of {_some(sorted(key for key in {**before, **now} if before.get(key) != now.get(key)))}"
    return f"{name} {before!r}, now {now!r}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(map(repr, names[:3]))}{more}"
