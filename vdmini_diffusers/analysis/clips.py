"""What videos are made from and compared with: prompts from a text file, and clips from a folder of videos."""

from pathlib import Path

import numpy as np

from vdmini_diffusers.data.stored_videos import StoredVideo, find_videos
from vdmini_diffusers.data.video_decoding import UnusableVideo, decode_clip


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


def enough_videos(folder: str | Path, num_videos: int) -> list[StoredVideo]:
    """The first videos of a folder.

    Raises:
        ValueError: if it has fewer.
    """
    videos, _ = find_videos(folder)
    if len(videos) < num_videos:
        raise ValueError(
            f"{folder} has {len(videos)} videos, and {num_videos} are needed: no clip is used twice, and real clips to"
            " compare with are others than those that videos are made from. Give more videos, or a smaller"
            " --num_videos."
        )
    return videos[:num_videos]


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
    """One clip each of the videos in a folder, as `find_videos` reads it, in the order of their names.

    Args:
        fps: rate at which video files are read; folders of frames are taken frame by frame, from the first on.
        seed: of the moment at which the clip of a video file starts.
        first: the number of videos that are left out before.

    Returns:
        uint8 `(num_clips, num_frames, height, width, 3)`.

    Raises:
        ValueError: if the folder has fewer videos, or one of them is damaged or too short.
    """
    clips = []
    for i, video in enumerate(enough_videos(folder, first + num_clips)[first:], start=first):
        try:
            if video.is_frames:
                clips.append(video.read(num_frames, height, width).frames)
                continue
            rng, size = np.random.default_rng((seed, i)), {"height": height, "width": width}
            clip = decode_clip(video.files[0], num_frames=num_frames, fps=fps, **size, rng=rng, center_crop=True)
        except UnusableVideo as error:
            raise ValueError(
                f"{video.name} gives no clip of {num_frames} frames at {fps} a second: {error}."
            ) from error
        clips.append(clip.permute(0, 2, 3, 1).numpy())
    return np.stack(clips)
