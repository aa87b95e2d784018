"""Small colour clips that a sentence describes in full: an object or the camera, a background, a way to move, a speed.

They train and test the demo teachers, from freely licensed photographs and sprites, as the paper's own data,
OpenVid-1M and UCF-101, cannot be shipped. 16 frames of 64 x 64 pixels, of two kinds:

- an *object* in front of a photograph that is out of focus moves to a side, turns, or bounces;
- the *camera* pans over a photograph, or zooms.

A [`Scene`] is what the caption says, a [`View`] what it leaves open: where the object starts, and which part of the
photograph is seen in which colours. Views are drawn independently of the way and the speed, so that **the first frame
does not tell the future**: an object of `HIDDEN_WAYS` may go either way at either speed. One number, the distance
covered, places everything in a frame, so that the motion of a generated clip can be measured by comparing it with
clips drawn at known distances. Objects have one size and start on a grid of the VAE's 8 pixels: what a small model has
to learn is how they move.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps


NUM_FRAMES = 16
SIZE = 64  # pixels
OBJECTS = ("car", "penguin", "ghost", "octopus", "star", "pizza", "ball", "frog")  # as in the sheet, left to right
OBJECT_SHEET = Path(__file__).parent / "objects.png"

OBJECT_WAYS = ("moves left", "moves right", "moves up", "moves down", "turns left", "turns right", "bounces")
CAMERA_WAYS = ("pans left", "pans right", "zooms in", "zooms out")
DIRECTIONS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
Ways = Mapping[str | None, tuple[str, ...]]  # of each object, and of the camera
ALL_WAYS: Ways = {**dict.fromkeys(OBJECTS, OBJECT_WAYS), None: CAMERA_WAYS}
HIDDEN_WAYS: Ways = {  # in image-to-video clips
    **dict.fromkeys(("car", "penguin"), ("moves left", "moves right")),
    **dict.fromkeys(("ghost", "octopus"), ("moves up", "moves down")),
    **dict.fromkeys(("star", "pizza"), ("turns left", "turns right")),
    **dict.fromkeys(("ball", "frog"), ("bounces",)),
    None: CAMERA_WAYS,
}
OBJECT_SIZE = 24  # pixels
STARTS = (24.0, 32.0, 40.0)  # pixels, of an object's centre
SPEEDS = {"slowly": 0.75, "quickly": 1.5}  # pixels a frame
TURN_PER_PIXEL = 8.0  # degrees: a quarter of a turn slowly, half a turn quickly
BOUNCE_HEIGHT, BOUNCE_LENGTH = 14.0, 11.25  # pixels: one bounce slowly, two quickly
ZOOM_PER_PIXEL = 1.02  # factor of scale: 1.25 slowly, 1.56 quickly

PLACES = {  # photographs as `load_photos` names them, in words
    "astronaut": "an astronaut",
    "chelsea": "a cat",
    "hubble_deep_field": "the stars",
    "retina": "an eye",
    "rocket": "a rocket",
    "china.jpg": "a temple",
    "coffee": "a cup of coffee",
    "flower.jpg": "a flower",
}
PHOTOS = (*PLACES, "immunohistochemistry", *("brick", "camera", "coins", "grass", "gravel"))  # the last five are grey
CAMERA_SHARE = 0.3
# Of the clips for image to video, so that the first frame is copied and not guessed: with few photographs, a model
# otherwise learns their palettes, and turns the colours of new pictures into those.
VARIED_SHARE = 0.25
OBJECT_BLUR, CAMERA_BLUR = 2.5, 0.8  # standard deviations in pixels: an object is before what is out of focus


@dataclass(frozen=True)
class Scene:
    """What a caption says. `object` is `None` where the camera moves; `place` is a photograph's name."""

    object: str | None
    place: str
    way: str
    speed: str

    @property
    def caption(self) -> str:
        place = PLACES.get(self.place, self.place.removesuffix(".jpg").replace("_", " "))
        if self.object is None:
            return f"the camera {self.way} {self.speed} on {place}"
        article = "an" if self.object[0] in "aeiou" else "a"
        return f"{article} {self.object} {self.way} {self.speed} in front of {place}"

    @property
    def distance(self) -> float:
        """Pixels from the first frame to the last."""
        return SPEEDS[self.speed] * (NUM_FRAMES - 1)

    @property
    def is_held_out(self) -> bool:
        """Whether no caption to train on says it: each object is held out in one of `PLACES`, each place once."""
        pairs: list[tuple[str | None, str]] = [*zip(OBJECTS, PLACES, strict=True)]
        return (self.object, self.place) in pairs

    @property
    def held_out_start(self) -> tuple[float, float]:
        """Where the object starts in no first frame to train on: one of nine points, another one in other places."""
        assert self.object is not None
        point = (OBJECTS.index(self.object) + PHOTOS.index(self.place)) % len(STARTS) ** 2
        return STARTS[point % len(STARTS)], STARTS[point // len(STARTS)]


@dataclass(frozen=True)
class View:
    """What a caption leaves open.

    Args:
        left, top, side: the square of the photograph that the first frame shows, as shares of its shorter side.
        mirrored: whether the photograph is mirrored.
        colours: RGB to RGB as Pillow takes it, or `None` for the photograph's own colours.
        x, y: centre of the object in the first frame, pixels.
    """

    left: float
    top: float
    side: float
    mirrored: bool
    colours: tuple[float, ...] | None
    x: float
    y: float


@cache
def load_photo(name: str) -> Image.Image:
    """A photograph out of scikit-image (public domain or CC0) or scikit-learn (CC BY 2.0).

    Raises `ImportError` if the two packages are missing: `pip install -e '.[teacher]'` in a checkout.
    """
    try:
        import skimage.data
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ImportError(
            "The photographs come with scikit-image and scikit-learn: run `pip install -e '.[teacher]'` in a checkout"
            " of the repository."
        ) from error
    pixels = load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)()
    return Image.fromarray(pixels).convert("RGB")


@cache
def load_objects() -> dict[str, Image.Image]:
    """RGBA, 64 x 64 pixels each."""
    sheet = Image.open(OBJECT_SHEET).convert("RGBA")
    side = sheet.height
    return {name: sheet.crop((i * side, 0, (i + 1) * side, side)) for i, name in enumerate(OBJECTS)}


def draw_scene(
    rng: np.random.Generator, ways: Ways, places: Sequence[str] = tuple(PLACES), camera_share: float = CAMERA_SHARE
) -> Scene:
    """Any scene of `ways`."""
    thing = None if rng.random() < camera_share else str(rng.choice(OBJECTS))
    return Scene(thing, str(rng.choice(places)), str(rng.choice(ways[thing])), str(rng.choice(list(SPEEDS))))


def draw_hidden(rng: np.random.Generator, held_out: bool = False) -> tuple[Scene, View]:
    """For image to video: to train on, or one of an object at its `held_out_start`."""
    varied = not held_out and rng.random() < VARIED_SHARE
    places = PHOTOS if varied else tuple(PLACES)
    scene = draw_scene(rng, HIDDEN_WAYS, places, camera_share=0.0 if held_out else CAMERA_SHARE)
    while True:
        view = (draw_varied_view if varied else draw_view)(rng, scene.place)
        if scene.object is None or ((view.x, view.y) == scene.held_out_start) == held_out:
            return scene, view


def draw_captioned(rng: np.random.Generator, held_out: bool = False) -> tuple[Scene, View]:
    """For text to video: to train on, or one whose object is not trained on in its place."""
    while True:
        scene = draw_scene(rng, ALL_WAYS, camera_share=0.0 if held_out else CAMERA_SHARE)
        if scene.is_held_out == held_out:
            return scene, draw_view(rng, scene.place)


def all_captioned_scenes() -> list[Scene]:
    things = [Scene(*parts) for parts in product(OBJECTS, PLACES, OBJECT_WAYS, SPEEDS)]
    return things + [Scene(None, *parts) for parts in product(PLACES, CAMERA_WAYS, SPEEDS)]


def draw_hidden_clip(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A clip to train image to video on, uint8 `(16, 64, 64, 3)`, and its caption."""
    scene, view = draw_hidden(rng)
    return draw_clip(scene, view), scene.caption


def draw_captioned_clip(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """The same for text to video."""
    scene, view = draw_captioned(rng)
    return draw_clip(scene, view), scene.caption


def draw_view(rng: np.random.Generator, place: str) -> View:
    """The middle of the photograph, and an object that starts anywhere on the grid."""
    return replace(middle_view(place), x=float(rng.choice(STARTS)), y=float(rng.choice(STARTS)))


def middle_view(place: str) -> View:
    photo = load_photo(place)
    side = 0.52
    left, top = (0.5 * (length / min(photo.size) - side) for length in photo.size)
    return View(left, top, side, mirrored=False, colours=None, x=0.5 * SIZE, y=0.5 * SIZE)


def draw_varied_view(rng: np.random.Generator, place: str) -> View:
    """Any part of the photograph, in other colours. Zooming out and panning stay inside it from any view."""
    photo = load_photo(place)
    width, height = (length / min(photo.size) for length in photo.size)
    side = rng.uniform(0.3, 0.5)
    margin = 0.36 * side  # the furthest pan goes 0.352
    return replace(
        draw_view(rng, place),
        left=rng.uniform(margin, width - side - margin),
        top=rng.uniform(margin, height - side - margin),
        side=side,
        mirrored=rng.random() < 0.5,
        colours=random_colour_matrix(rng),
    )


def random_colour_matrix(rng: np.random.Generator) -> tuple[float, ...]:
    """RGB to RGB as Pillow takes it, three rows of four: channels in random order, each with a gain and an offset."""
    gains, offsets = rng.uniform(0.5, 1.2, 3), rng.uniform(-50, 50, 3)
    rows = np.eye(3)[rng.permutation(3)] * gains[:, None]
    return tuple(np.concatenate([rows, offsets[:, None]], axis=1).ravel().tolist())


def draw_clip(scene: Scene, view: View, distance: float | None = None, every: int = 1) -> np.ndarray:
    """The clip, uint8 `(16, 64, 64, 3)`, RGB.

    Args:
        distance: pixels from the first frame to the last; by default the scene's. 0 is a still picture.
        every: draw every second, third, ... frame only.
    """
    distances = np.linspace(0, scene.distance if distance is None else distance, NUM_FRAMES)[::every]
    photo = load_photo(scene.place)
    photo = ImageOps.mirror(photo) if view.mirrored else photo
    photo = photo if view.colours is None else photo.convert("RGB", view.colours)
    if scene.object is None:
        frames = [_show(photo, view, CAMERA_BLUR, *camera_pose(scene.way, d)) for d in distances]
    else:
        background = _show(photo, view, OBJECT_BLUR)
        sprite = load_objects()[scene.object]
        frames = [_paste(background, sprite, view, *object_pose(scene.way, d)) for d in distances]
    return np.stack([np.asarray(frame) for frame in frames])


def object_pose(way: str, distance: float) -> tuple[float, float, float]:
    """Displacement in x and y, pixels, and angle, degrees anticlockwise, after a distance."""
    if way in DIRECTIONS:
        dx, dy = DIRECTIONS[way]
        return dx * distance, dy * distance, 0.0
    if way == "bounces":
        return 0.0, -BOUNCE_HEIGHT * abs(math.sin(math.pi * distance / BOUNCE_LENGTH)), 0.0
    return 0.0, 0.0, TURN_PER_PIXEL * distance * (1 if way == "turns left" else -1)


def camera_pose(way: str, distance: float) -> tuple[float, float]:
    """What the camera shows after a distance: how far to the right, in pixels, and at which scale."""
    if way in ("pans left", "pans right"):
        return (distance if way == "pans right" else -distance), 1.0
    return 0.0, ZOOM_PER_PIXEL ** (distance if way == "zooms in" else -distance)


def _show(photo: Image.Image, view: View, blur: float, shift: float = 0.0, scale: float = 1.0) -> Image.Image:
    """A square of the photograph, resized and blurred; with a margin while blurring, whose border would show."""
    unit = min(photo.size)
    side, shift = unit * view.side / scale, unit * view.side * shift / SIZE
    left = unit * (view.left + 0.5 * view.side) + shift - 0.5 * side
    top = unit * (view.top + 0.5 * view.side) - 0.5 * side
    box = (left, top, left + side, top + side)
    return photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box).filter(ImageFilter.GaussianBlur(blur))


def _paste(
    background: Image.Image, sprite: Image.Image, view: View, dx: float, dy: float, angle: float
) -> Image.Image:
    """The sprite is resampled once, at its exact place, size and angle."""
    zoom, radians = sprite.width / OBJECT_SIZE, math.radians(angle)
    cos, sin = zoom * math.cos(radians), zoom * math.sin(radians)
    x, y, centre = view.x + dx, view.y + dy, sprite.width / 2
    # From pixels of the frame to pixels of the sprite, which is drawn twice as large and halved against aliasing.
    matrix = (cos / 2, -sin / 2, centre - cos * x + sin * y, sin / 2, cos / 2, centre - sin * x - cos * y)
    large = sprite.transform((2 * SIZE, 2 * SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    small = large.resize((SIZE, SIZE), Image.Resampling.BOX)
    return Image.alpha_composite(background.convert("RGBA"), small).convert("RGB")
