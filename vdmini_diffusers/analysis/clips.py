"""What videos are made from and compared with: prompts from a text file, and clips from a folder of videos."""

from pathlib import Path

import numpy as np

from vdmini_diffusers.data.video_decoding import UnusableVideo, decode_clip


SUFFIXES = {".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}


def read_prompts(file: str | Path, num_prompts: int) -> list[str]:
    """The first lines of a text file that are not empty.

    Raises:
        ValueError: if it has fewer.
        OSError: if it cannot be read.
    """
    lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    prompts = [line for line in lines if line]
    if len(prompts) < num_prompts:
        raise ValueError(f"{file} has {len(prompts)} prompts, and {num_prompts} are needed.")
    return prompts[:num_prompts]


def read_clips(
    folder: str | Path,
    num_clips: int,
    num_frames: int,
    fps: float,
    height: int,
    width: int,
    seed: int = 0,
    first: int = 0,
) -> np.ndarray:
    """One clip each of the videos in a folder and its subfolders, in the order of their names.

    Args:
        seed: of the moment at which a clip starts.
        first: the number of videos that are left out before.

    Returns:
        uint8 `(num_clips, num_frames, height, width, 3)`.

    Raises:
        ValueError: if the folder has fewer videos, or one of them is damaged or too short.
    """
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < first + num_clips:
        raise ValueError(
            f"{folder} has {len(files)} videos, and {first + num_clips} are needed: no clip is used twice, and real"
            " clips to compare with are others than those that videos are made from."
        )
    clips = []
    for i, file in enumerate(files[first : first + num_clips]):
        rng = np.random.default_rng((seed, first + i))
        try:
            clip = decode_clip(
                file, num_frames=num_frames, fps=fps, height=height, width=width, rng=rng, center_crop=True
            )
        except UnusableVideo as error:
            raise ValueError(f"{file} gives no clip of {num_frames} frames at {fps} a second: {error}.") from error
        clips.append(clip.permute(0, 2, 3, 1).numpy())
    return np.stack(clips)
