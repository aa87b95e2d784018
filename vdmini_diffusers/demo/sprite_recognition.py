"""Recognises the object, the background and the direction in small clips of known sprites, as VBench's detectors do in
large ones."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps


SIZES = (22, 24, 26, 28, 30)  # pixels; as sprites are drawn
SPEED_FLOOR = 2.0  # pixels in a clip; what moves less is taken to stand still


class Seen(NamedTuple):
    """The likeliest object and background, and the given object's direction: `"left"`, ... or `"nowhere"`."""

    object: str
    background: str
    direction: str


class Recogniser:
    """Finds the nearest background, and the sprite that best explains, at any position, how the frames differ from it.

    Args:
        sprites: RGBA pictures by name.
        places: uint8 `(height, width, 3)` by name.
    """

    def __init__(self, sprites: Mapping[str, Image.Image], places: Mapping[str, np.ndarray]):
        self.names = [(name, size, mirrored) for name in sprites for size in SIZES for mirrored in (False, True)]
        largest = max(SIZES)
        self.colours = torch.zeros(len(self.names), 3, largest, largest)
        self.masks = torch.zeros(len(self.names), 1, largest, largest)
        for i, (name, size, mirrored) in enumerate(self.names):
            sprite = ImageOps.mirror(sprites[name]) if mirrored else sprites[name]
            rgba = np.asarray(sprite.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255
            self.masks[i, 0, :size, :size] = torch.from_numpy(rgba[..., 3])
            self.colours[i, :, :size, :size] = torch.from_numpy(rgba[..., :3]).movedim(-1, 0)
        self.places = dict(places)

    def __call__(self, frames: np.ndarray, thing: str) -> Seen:
        """Recognise a clip, uint8 `(frames, height, width, 3)`. `thing` is the object whose direction is taken."""
        nearest = min(self.places, key=lambda name: np.median(np.abs(frames.astype(float) - self.places[name])))
        explained, positions = self._fit(frames, self.places[nearest])
        best = self.names[int(explained.argmax())][0]
        of_thing = torch.tensor([name == thing for name, _, _ in self.names])
        candidate = int(torch.where(of_thing, explained, -torch.inf).argmax())
        way = positions[-1, candidate] - positions[0, candidate]
        return Seen(best, nearest, direction(float(way[0]), float(way[1])))

    def _fit(self, frames: np.ndarray, place: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """How much of the squared distance to the background each sprite explains, summed over the frames with the
        sprite at its best position in each; and these positions, `(frames, sprites, 2)`, x and y."""
        pixels, background = (torch.from_numpy(x).movedim(-1, -3).float() / 255 for x in (frames, place))
        margin = max(SIZES) - min(SIZES)  # the smallest sprites reach the border as well
        pixels = F.pad(pixels, (0, margin, 0, margin))
        background = F.pad(background, (0, margin, 0, margin))
        # Opaque pixels add: (I - B)^2 - (I - S)^2 = B^2 - S^2 - 2 I (B - S)
        masks, coloured = self.masks.expand(-1, 3, -1, -1), self.masks * self.colours
        explained = F.conv2d((background**2 - 2 * pixels * background), masks) + 2 * F.conv2d(pixels, coloured)
        explained = explained - (coloured * self.colours).sum(dim=(1, 2, 3))[:, None, None]
        most, index = explained.flatten(2).max(dim=2)
        width = explained.shape[-1]
        return most.sum(dim=0), torch.stack([index % width, index // width], dim=-1).float()


def direction(dx: float, dy: float) -> str:
    if max(abs(dx), abs(dy)) < SPEED_FLOOR:
        return "nowhere"
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"
