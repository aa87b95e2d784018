"""Small colour clips with known motion, made from freely licensed photographs and sprites.

They train and test the image-to-video demo teacher, as the paper's own data, OpenVid-1M and UCF-101, cannot be
shipped. There are two kinds of motion. The first frame and the motion bucket decide both, so that a generated video
can be compared with ground truth:

- *drive*: a sprite on a photograph moves where it points (vehicles and animals forward, a balloon up, a drop down);
- *push-in*: a photograph without a sprite, and the camera moves in on its centre.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


NUM_FRAMES = 8
HEIGHT = WIDTH = 64  # pixels
FPS = 7
DEFAULT_MOTION_BUCKET_ID = 127  # SVD's default; the speed of a clip is proportional to its bucket
MIN_MOTION_BUCKET_ID, MAX_MOTION_BUCKET_ID = 32, 255
DRIVE_PIXELS_PER_FRAME = 1.6  # at the default bucket
PUSH_IN_PER_FRAME = 0.2 / 7  # growth of scale at the default bucket: 1.2 at the eighth frame

SPRITE_SHEET = Path(__file__).parent / "sprites.png"
SPRITE_SIZE = 64  # pixels; the sheet is one row
# Name and direction (x, y) of each sprite in the sheet, left to right. Those that face left are also used mirrored.
SPRITES = {
    "red car": (-1, 0),
    "taxi": (-1, 0),
    "blue car": (-1, 0),
    "bus": (-1, 0),
    "truck": (-1, 0),
    "tractor": (-1, 0),
    "locomotive": (-1, 0),
    "horse": (-1, 0),
    "elephant": (-1, 0),
    "blue fish": (-1, 0),
    "striped fish": (-1, 0),
    "turtle": (-1, 0),
    "duck": (-1, 0),
    "helicopter": (-1, 0),
    "balloon": (0, -1),
    "water drop": (0, 1),
}
DIRECTIONS = {(-1, 0): "left", (1, 0): "right", (0, -1): "up", (0, 1): "down"}
TRAIN_PHOTOS = (
    *("astronaut", "chelsea", "hubble_deep_field", "immunohistochemistry", "retina", "rocket", "china.jpg"),
    *("brick", "camera", "coins", "grass", "gravel"),  # grey
)
HELD_OUT_PHOTOS = ("coffee", "flower.jpg")


@dataclass(frozen=True)
class Clip:
    """`frames`: uint8 `(num_frames, height, width, 3)`, RGB 0 to 255. `kind`: `"drive"` or `"push-in"`."""

    frames: np.ndarray
    motion_bucket_id: int
    kind: str
    caption: str


def load_photos(names: tuple[str, ...]) -> dict[str, Image.Image]:
    """The named photographs out of scikit-image (public domain or CC0) and scikit-learn (CC BY 2.0).

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
    return {
        name: Image.fromarray(
            load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)()
        ).convert("RGB")
        for name in names
    }


def load_sprites() -> list[Image.Image]:
    """RGBA, in the order of `SPRITES`."""
    sheet = Image.open(SPRITE_SHEET).convert("RGBA")
    return [sheet.crop((i * SPRITE_SIZE, 0, (i + 1) * SPRITE_SIZE, SPRITE_SIZE)) for i in range(len(SPRITES))]


def random_colour_matrix(rng: np.random.Generator) -> tuple[float, ...]:
    """RGB to RGB as Pillow takes it, three rows of four: channels in random order, each with a gain and an offset."""
    gains, offsets = rng.uniform(0.5, 1.2, 3), rng.uniform(-50, 50, 3)
    rows = np.eye(3)[rng.permutation(3)] * gains[:, None]
    return tuple(np.concatenate([rows, offsets[:, None]], axis=1).ravel().tolist())


class MovingPictures:
    """Draws clips at random; the same generator gives the same clips.

    Args:
        photos: names out of `TRAIN_PHOTOS` or `HELD_OUT_PHOTOS`, or photographs by name.
        push_in_share: the share of clips without a sprite, in which the camera moves.
        recolour: give the photographs other colours in every clip. With few photographs to train on, a model
            otherwise learns their palettes, and turns the colours of new pictures into those.
    """

    def __init__(
        self, photos: tuple[str, ...] | dict[str, Image.Image], push_in_share: float = 0.4, recolour: bool = False
    ):
        self.photos = photos if isinstance(photos, dict) else load_photos(photos)
        self.push_in_share = push_in_share
        self.recolour = recolour
        self.sprites = load_sprites()

    def clip(self, rng: np.random.Generator, motion_bucket_id: int | None = None, kind: str | None = None) -> Clip:
        """One clip of 8 frames at 64 x 64 pixels; what is not given is drawn."""
        if motion_bucket_id is None:
            motion_bucket_id = int(rng.integers(MIN_MOTION_BUCKET_ID, MAX_MOTION_BUCKET_ID + 1))
        if kind is None:
            kind = "push-in" if rng.random() < self.push_in_share else "drive"
        speed = motion_bucket_id / DEFAULT_MOTION_BUCKET_ID

        name = list(self.photos)[rng.integers(len(self.photos))]
        photo = self.photos[name]
        if rng.random() < 0.5:
            photo = ImageOps.mirror(photo)
        if self.recolour:
            photo = photo.convert("RGB", random_colour_matrix(rng))
        side = rng.uniform(0.25, 0.8) * min(photo.size)
        left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
        place = name.removesuffix(".jpg").replace("_", " ")

        if kind == "push-in":
            frames = push_in(photo, left, top, side, PUSH_IN_PER_FRAME * speed)
            caption = f"the camera moves in on {place}"
        else:
            background = photo.resize(
                (WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
            )
            index = int(rng.integers(len(SPRITES)))
            (thing, (dx, dy)), sprite = list(SPRITES.items())[index], self.sprites[index]
            if dx and rng.random() < 0.5:
                dx, sprite = -dx, ImageOps.mirror(sprite)
            frames = drive(rng, background, sprite, dx, dy, DRIVE_PIXELS_PER_FRAME * speed)
            caption = f"a {thing} moves {DIRECTIONS[dx, dy]} over {place}"
        return Clip(np.stack([np.asarray(frame) for frame in frames]), motion_bucket_id, kind, caption)


def push_in(photo: Image.Image, left: float, top: float, side: float, growth: float) -> list[Image.Image]:
    """The camera moves in on the centre of a square of the photograph; the scale grows by `growth` a frame."""
    frames = []
    for k in range(NUM_FRAMES):
        inset = 0.5 * side * (1 - 1 / (1 + growth * k))
        box = (left + inset, top + inset, left + side - inset, top + side - inset)
        frames.append(photo.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box))
    return frames


def drive(
    rng: np.random.Generator,
    background: Image.Image,
    sprite: Image.Image,
    dx: int,
    dy: int,
    pixels_per_frame: float,
) -> list[Image.Image]:
    """A sprite crosses a picture of 64 x 64 pixels in the direction `(dx, dy)`, from where the way is long enough."""
    size = int(rng.integers(22, 31))
    path = pixels_per_frame * (NUM_FRAMES - 1)
    x = rng.uniform(max(0, -dx * path), WIDTH - size - max(0, dx * path))
    y = rng.uniform(max(0, -dy * path), HEIGHT - size - max(0, dy * path))
    scale = 4  # drawn four times as large, so that a quarter of a pixel is the smallest step
    large = background.resize((WIDTH * scale, HEIGHT * scale), Image.Resampling.BICUBIC)
    sprite = sprite.resize((size * scale, size * scale), Image.Resampling.BICUBIC)
    frames = []
    for k in range(NUM_FRAMES):
        frame = large.copy()
        at = (round((x + dx * pixels_per_frame * k) * scale), round((y + dy * pixels_per_frame * k) * scale))
        frame.paste(sprite, at, sprite)
        frames.append(frame.resize((WIDTH, HEIGHT), Image.Resampling.BOX))
    return frames
