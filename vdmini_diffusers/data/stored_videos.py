"""The videos of a folder, each a video file or a folder of frames, and clips of neighbouring frames out of them.

This is how evaluation reads them: UCF-101's layout (folders of classes with `.avi` files), any other folder of videos,
and folders of JPEG or PNG frames, as StyleGAN-V stores its data sets.
"""

import os
import posixpath
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from vdmini_diffusers.data.images import read_image
from vdmini_diffusers.data.listed_files import VIDEO_ENDINGS, ending_of, list_files
from vdmini_diffusers.data.video_decoding import UnusableVideo, count_frames, crop_box, decode_frames


JPEG_ENDINGS = frozenset({"jpg", "jpeg"})
FRAME_ENDINGS = JPEG_ENDINGS | {"png", "webp", "bmp"}


class Clip(NamedTuple):
    """`frames`: uint8 `(frames, height, width, 3)`. `is_jpeg`: whether they are the very pixels of JPEG files."""

    frames: np.ndarray
    is_jpeg: bool


@dataclass(frozen=True)
class StoredVideo:
    """One video.

    Args:
        name: its path in the folder, with slashes and without the ending of a video file.
        files: the video file, or the pictures of its frames in order.
        is_frames: whether they are pictures.
    """

    name: str
    files: tuple[Path, ...]
    is_frames: bool

    def fingerprint(self) -> str:
        """What tells whether it is the video that was read before: names, sizes and times of its files."""
        states = [(file.name, file.stat()) for file in self.files]
        return f"{self.name} {[(name, state.st_size, state.st_mtime_ns) for name, state in states]}"

    def num_frames(self) -> int:
        """The number of its frames; those of a video file are decoded for it.

        Raises:
            UnusableVideo: if it cannot be decoded.
        """
        return len(self.files) if self.is_frames else count_frames(self.files[0])

    def read(self, num_frames: int, height: int, width: int, first: int = 0) -> Clip:
        """`num_frames` neighbouring frames from number `first` on, at `height` x `width`.

        Of another aspect, the central part of the picture is shown. Resizing is bicubic with antialiasing.

        Raises:
            UnusableVideo: if it is damaged, too short, or changes its size.
            ImportError: for a video file, without PyAV.
        """
        if not self.is_frames:
            clip = decode_frames(self.files[0], first=first, num_frames=num_frames, height=height, width=width)
            return Clip(clip.movedim(1, -1).numpy(), is_jpeg=False)
        chosen = self.files[first : first + num_frames]
        if len(chosen) < num_frames:
            detail = f"{len(self.files)} frames, and a clip takes {num_frames} from frame {first} on"
            raise UnusableVideo("too short", detail)
        frames = [_read_frame(file) for file in chosen]
        if len(sizes := {frame.shape for frame in frames}) > 1:
            found = " and ".join(f"{w} x {h}" for h, w, _ in sorted(sizes))
            raise UnusableVideo("changing size", f"frames of {found}")
        is_jpeg = all(ending_of(file.name) in JPEG_ENDINGS for file in chosen)
        is_jpeg = is_jpeg and frames[0].shape[:2] == (height, width)
        return Clip(np.stack([fit_frame(frame, height, width) for frame in frames]), is_jpeg)


def fit_frame(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """The central part of a picture `(rows, columns, 3)` with the aspect of `height` x `width`, resized to that."""
    if frame.shape[:2] == (height, width):
        return frame
    box = crop_box(frame.shape[0], frame.shape[1], width / height)
    part = frame[box.top : box.top + box.height, box.left : box.left + box.width]
    return resize_frame(part, height, width)


def resize_frame(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """The whole picture, by bicubic interpolation with antialiasing."""
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
    return F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()


def find_videos(folder: str | os.PathLike) -> tuple[list[StoredVideo], list[str]]:
    """All videos of a folder in the order of their names, and the names of files that belong to none.

    Raises:
        ValueError: if there is none, if frames lie in the folder itself, or two videos have one name.
        OSError: if a folder cannot be listed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder. Give a folder of videos, or of folders with frames.")
    files, skipped = list_files(folder)
    frames: dict[str, list[str]] = defaultdict(list)
    videos, others = [], [each.name for each in skipped if each.reason != "hidden"]
    for file in files:
        if ending_of(file) in VIDEO_ENDINGS:
            videos.append(StoredVideo(posixpath.splitext(file)[0], (folder / file,), is_frames=False))
        elif ending_of(file) in FRAME_ENDINGS:
            frames[posixpath.dirname(file)].append(file)
        else:
            others.append(file)
    if "" in frames:
        raise ValueError(f"{folder} holds pictures itself, such as {frames[''][0]}: give each video a folder in it.")
    for name, pictures in frames.items():
        in_order = sorted(pictures, key=_natural)
        videos.append(StoredVideo(name, tuple(folder / file for file in in_order), is_frames=True))
    if not videos:
        endings = Counter(f".{ending_of(file)}" for file in files)
        found = ", ".join(f"{number} {ending}" for ending, number in endings.most_common(5)) or "nothing"
        raise ValueError(f"{folder} holds no videos and no folders of frames. It holds {found}.")
    if repeated := [name for name, number in Counter(video.name for video in videos).items() if number > 1]:
        raise ValueError(f"{folder} holds several videos of the name {repeated[0]}: rename or remove all but one.")
    return sorted(videos, key=lambda video: video.name), sorted(others)


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers by their values: frame 10 comes after frame 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read_frame(file: Path) -> np.ndarray:
    try:
        return np.array(read_image(file))  # a copy, which may be written to: torch wants that
    except ValueError as error:
        raise UnusableVideo("broken", str(error)) from error
