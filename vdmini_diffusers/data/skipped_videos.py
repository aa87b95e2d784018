"""The list of videos that are left out, gathered from all processes of a run."""

import json
import os
import socket
from collections import Counter
from pathlib import Path
from typing import NamedTuple, NoReturn

from vdmini_diffusers.data.video_decoding import UnusableVideo


NUM_FIRST_VIDEOS = 20  # if at most one of the first 20 can be used, something is wrong with all of them


class SkippedVideo(NamedTuple):
    """Name of a video (or other file of the data folder) that is left out, and why, as in `UnusableVideo`."""

    name: str
    reason: str
    detail: str


class TooFewUsableVideos(ValueError):  # noqa: N818 - says what is wrong without it
    """None of the videos can be used, or nearly none of the first ones."""


def summarize(skipped: list[SkippedVideo]) -> str:
    """One sentence: how many were skipped, for which reasons, with a few examples of each."""
    if not skipped:
        return "No video was skipped."
    parts = []
    for reason, number in Counter(video.reason for video in skipped).most_common():
        of_these = [video for video in skipped if video.reason == reason]
        examples = "; ".join(f"{video.name}: {video.detail}" if video.detail else video.name for video in of_these[:3])
        parts.append(f"{number} {reason} ({examples}{'; ...' if number > 3 else ''})")
    return f"{len(skipped)} skipped: {', '.join(parts)}."


class SkipLog:
    """Text files under `folder`, one for each process that skipped anything, with a JSON object in each line.

    `read` gives the videos of all files, whichever rank or DataLoader worker found them. A folder belongs to one run,
    which continues it when it is resumed.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.num_tried = self.num_usable = 0  # by this process
        self._listed: set[str] = set()

    def count_usable(self) -> None:
        self.num_tried += 1
        self.num_usable += 1
        self._check()

    def skip(self, name: str, why: UnusableVideo) -> None:
        """Counts and lists an unusable video. Raises `TooFewUsableVideos` if nearly all of the first are unusable."""
        self.num_tried += 1
        self.add([SkippedVideo(name, why.reason, why.detail)])
        self._check()

    def add(self, videos: list[SkippedVideo]) -> None:
        """Lists videos, each once."""
        new = [video for video in videos if video.name not in self._listed]
        if new:
            self._listed |= {video.name for video in new}
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / f"{socket.gethostname()}-{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
                file.writelines(json.dumps(video._asdict()) + "\n" for video in new)

    def read(self) -> list[SkippedVideo]:
        """All videos that any process has listed so far, by name. Raises `ValueError` if a list is malformed."""
        skipped = {}
        for path in self.folder.glob("*.jsonl"):
            try:
                # What follows the last line break is a line that a process was stopped in.
                for line in path.read_text("utf-8").split("\n")[:-1]:
                    video = SkippedVideo(**json.loads(line))
                    if not all(isinstance(part, str) for part in video):
                        raise TypeError(f"{line[:200]} is not text throughout")
                    skipped[video.name] = video
            except (ValueError, TypeError, RecursionError) as error:
                raise ValueError(f"{path} is no list of skipped videos, remove it: {error}") from error
        return [skipped[name] for name in sorted(skipped)]

    def raise_too_few(self) -> NoReturn:
        raise TooFewUsableVideos(
            f"Of {self.num_tried} videos tried, {self.num_usable} can be used. {summarize(self.read())} Check the "
            "data folder, the column of the videos, and that clips (num_frames / fps seconds) fit into them."
        )

    def _check(self) -> None:
        if self.num_tried == NUM_FIRST_VIDEOS and self.num_usable <= 1:
            self.raise_too_few()
