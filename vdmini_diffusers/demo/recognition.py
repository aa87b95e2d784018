"""What a small clip of known scenes shows: which object, where, on which background, and how it moves.

Motion is recognised by comparison: the clip that is nearest among those drawn with the same view, each way to move and
each of some distances, says the way and the distance. A clip that is nearest to a still one does not move.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vdmini_diffusers.demo.scenes import (
    CAMERA_WAYS,
    OBJECT_SIZE,
    OBJECT_WAYS,
    OBJECTS,
    PLACES,
    SIZE,
    Scene,
    View,
    draw_clip,
    load_objects,
    middle_view,
)


DISTANCES = (5.25, 11.25, 16.5, 22.5)  # pixels; the scenes' are the second and the last
FRAME_STEP = 2  # every other frame suffices to recognise a motion


class Motion(NamedTuple):
    """`way` is one of `OBJECT_WAYS` or `CAMERA_WAYS`, or `"stands still"`; `distance` in pixels, to the last frame."""

    way: str
    distance: float


STANDS_STILL = Motion("stands still", 0.0)


class MotionCandidates:
    """The clips that a generated one is compared with: those that go on from one first frame.

    Args:
        scene: its way and its speed play no part.
    """

    def __init__(self, scene: Scene, view: View):
        ways = CAMERA_WAYS if scene.object is None else OBJECT_WAYS
        self.motions = [STANDS_STILL, *(Motion(way, distance) for way in ways for distance in DISTANCES)]
        drawn = (
            draw_clip(replace(scene, way=way if distance else ways[0]), view, distance, every=FRAME_STEP)
            for way, distance in self.motions
        )
        self.clips = np.stack([halved(clip) for clip in drawn])

    def nearest(self, clip: np.ndarray) -> Motion:
        """The motion of a clip, uint8 `(16, 64, 64, 3)`, by mean squared error."""
        difference = self.clips.astype(np.float32) - halved(clip[::FRAME_STEP])
        return self.motions[int((difference**2).mean(axis=(1, 2, 3, 4)).argmin())]


def halved(clip: np.ndarray) -> np.ndarray:
    """Frames at half their size, uint8."""
    frames = clip.astype(np.uint16)
    top, bottom = frames[:, ::2], frames[:, 1::2]
    return ((top[:, :, ::2] + top[:, :, 1::2] + bottom[:, :, ::2] + bottom[:, :, 1::2]) // 4).astype(np.uint8)


class Found(NamedTuple):
    """The likeliest object and place, and a view that has the named object where the first frame shows it."""

    object: str
    place: str
    view: View


class Recogniser:
    """Finds objects and places in clips of captioned scenes, whose places are seen from about the middle."""

    def __init__(self) -> None:
        size = OBJECT_SIZE, OBJECT_SIZE
        sprites = [np.asarray(load_objects()[name].resize(size, Image.Resampling.BOX)) for name in OBJECTS]
        rgba = torch.from_numpy(np.stack(sprites)).movedim(-1, 1).float() / 255
        self.colours, self.masks = rgba[:, :3], rgba[:, 3:]
        self.places = {place: empty_place(place) for place in PLACES}

    def __call__(self, clip: np.ndarray, scene: Scene) -> Found:
        """Look at a clip, uint8 `(16, 64, 64, 3)`, for what `scene` names."""
        place = min(self.places, key=lambda name: np.median(np.abs(clip.astype(float) - self.places[name])))
        explained, corners = self._fit(clip[::3], self.places[place])
        view = middle_view(scene.place)
        if scene.object is not None:
            x, y = (float(corner) + OBJECT_SIZE / 2 for corner in corners[0, OBJECTS.index(scene.object)])
            view = replace(view, x=x, y=y)
        return Found(OBJECTS[int(explained.sum(dim=0).argmax())], place, view)

    def _fit(self, frames: np.ndarray, background: np.ndarray) -> tuple[Tensor, Tensor]:
        """`(frames, sprites)`: how much of the squared distance to the background each sprite explains at its best
        position; and `(frames, sprites, 2)`: the left upper corners there, x and y."""
        pixels, behind = (torch.from_numpy(x).movedim(-1, -3).float() / 255 for x in (frames, background))
        # Opaque pixels add: (I - B)^2 - (I - S)^2 = B^2 - S^2 - 2 I (B - S)
        masks, coloured = self.masks.expand(-1, 3, -1, -1), self.masks * self.colours
        explained = F.conv2d(behind**2 - 2 * pixels * behind, masks) + 2 * F.conv2d(pixels, coloured)
        explained = explained - (coloured * self.colours).sum(dim=(1, 2, 3))[:, None, None]
        most, index = explained.flatten(2).max(dim=2)
        width = explained.shape[-1]
        return most, torch.stack([index % width, index // width], dim=-1)


def empty_place(place: str) -> np.ndarray:
    """A place behind objects, seen from the middle: uint8 `(64, 64, 3)`."""
    scene = Scene(OBJECTS[0], place, OBJECT_WAYS[0], "slowly")
    away = replace(middle_view(place), x=-SIZE, y=-SIZE)
    return draw_clip(scene, away, distance=0.0)[0]
