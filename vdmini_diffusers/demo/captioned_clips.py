"""Small clips whose captions name all that is seen: an object, a background, a direction and a speed.

They train and test the text-to-video demo teacher, from the photographs and sprites of `moving_pictures`. There are
384 captions. Any object appears on any background, so that some pairs can be held out.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image, ImageOps

from vdmini_diffusers.demo.moving_pictures import (
    DIRECTIONS,
    HEIGHT,
    SPRITES,
    WIDTH,
    drive,
    load_photos,
    load_sprites,
    push_in,
)


FPS = 8  # T2V-Turbo's
OBJECTS = ("red car", "bus", "tractor", "elephant", "blue fish", "duck", "balloon", "water drop")
BACKGROUNDS = {  # photographs as `load_photos` names them, in words
    "astronaut": "an astronaut",
    "chelsea": "a cat",
    "hubble_deep_field": "the stars",
    "retina": "an eye",
    "rocket": "a rocket",
    "china.jpg": "a temple",
    "coffee": "a cup of coffee",
    "flower.jpg": "a flower",
}
PIXELS_PER_FRAME = {"slowly ": 0.8, "": 1.8, "quickly ": 3.0}
GROWTH_PER_FRAME = {"slowly ": 0.015, "": 0.03, "quickly ": 0.06}
CAMERA_SHARE = 0.25


@dataclass(frozen=True)
class Scene:
    """The content of one caption.

    Attributes:
        object: one of `OBJECTS`, or `None` if the camera moves instead.
        background: a key of `BACKGROUNDS`.
        direction: `"left"`, `"right"`, `"up"` or `"down"` for an object, if it moves so; `"in on"` or `"away from"`
            for the camera.
        speed: `"slowly "`, `""` or `"quickly "`.
    """

    object: str | None
    background: str
    direction: str
    speed: str

    @property
    def caption(self) -> str:
        if self.object is None:
            return f"the camera moves {self.speed}{self.direction} {BACKGROUNDS[self.background]}"
        article = "an" if self.object[0] in "aeiou" else "a"
        return f"{article} {self.object} moves {self.speed}{self.direction} past {BACKGROUNDS[self.background]}"

    @property
    def is_held_out(self) -> bool:
        """Each object is held out on one background, and each background with one object."""
        return self.object is not None and OBJECTS.index(self.object) == list(BACKGROUNDS).index(self.background)


def ways_of(thing: str) -> tuple[str, ...]:
    """The directions of an object: objects that point sideways move to either side, mirrored."""
    dx, dy = SPRITES[thing]
    return ("left", "right") if dx else (DIRECTIONS[dx, dy],)


def all_scenes() -> list[Scene]:
    things = [
        Scene(thing, place, way, speed)
        for thing, place, speed in product(OBJECTS, BACKGROUNDS, PIXELS_PER_FRAME)
        for way in ways_of(thing)
    ]
    return things + [
        Scene(None, place, way, speed)
        for place, way, speed in product(BACKGROUNDS, ("in on", "away from"), GROWTH_PER_FRAME)
    ]


class CaptionedClips:
    """Draws clips at random, 8 frames of 64 x 64 pixels; the same generator gives the same clips."""

    def __init__(self):
        self.photos = load_photos(tuple(BACKGROUNDS))
        sprites = dict(zip(SPRITES, load_sprites(), strict=True))
        self.sprites = {thing: sprites[thing] for thing in OBJECTS}

    def scene(self, rng: np.random.Generator, held_out: bool = False) -> Scene:
        """A scene to train on, or a held-out one."""
        while True:
            camera = not held_out and rng.random() < CAMERA_SHARE
            thing = None if camera else str(rng.choice(OBJECTS))
            way = str(rng.choice(("in on", "away from") if thing is None else ways_of(thing)))
            scene = Scene(thing, str(rng.choice(list(BACKGROUNDS))), way, str(rng.choice(list(PIXELS_PER_FRAME))))
            if scene.is_held_out == held_out:
                return scene

    def view(self, place: str) -> np.ndarray:
        """The background as clips show it on average, uint8 `(64, 64, 3)`."""
        scene = Scene(None, place, "in on", "slowly ")
        views = [self.frames(scene, np.random.default_rng(i))[0] for i in range(5)]
        return np.median(views, axis=0).astype(np.uint8)

    def frames(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """uint8 `(8, 64, 64, 3)`, RGB. The view of the background varies a little, the object's start widely."""
        photo = self.photos[scene.background]
        side = rng.uniform(0.85, 1.0) * min(photo.size)
        left, top = (0.5 * (length - side) + rng.uniform(-0.04, 0.04) * side for length in photo.size)
        left, top = np.clip(left, 0, photo.width - side), np.clip(top, 0, photo.height - side)
        if scene.object is None:
            frames = push_in(photo, left, top, side, GROWTH_PER_FRAME[scene.speed])
            frames = frames if scene.direction == "in on" else frames[::-1]
        else:
            box = (left, top, left + side, top + side)
            background = photo.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box)
            dx, dy = next(step for step, way in DIRECTIONS.items() if way == scene.direction)
            sprite = self.sprites[scene.object]
            sprite = sprite if (dx, dy) == SPRITES[scene.object] else ImageOps.mirror(sprite)
            frames = drive(rng, background, sprite, dx, dy, PIXELS_PER_FRAME[scene.speed])
        return np.stack([np.asarray(frame) for frame in frames])
