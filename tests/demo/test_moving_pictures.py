import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vdmini_diffusers.demo.moving_pictures import (
    HELD_OUT_PHOTOS,
    MAX_MOTION_BUCKET_ID,
    MIN_MOTION_BUCKET_ID,
    SPRITES,
    TRAIN_PHOTOS,
    MovingPictures,
    load_photos,
    random_colour_matrix,
)


@pytest.fixture(scope="module")
def pictures():
    """Over a plain grey photograph, so that whatever moves is the sprite."""
    return MovingPictures({"grey": Image.new("RGB", (200, 100), (128, 128, 128))})


@pytest.fixture(scope="module")
def photographs():
    return MovingPictures(HELD_OUT_PHOTOS)


def centre_of_sprite(frame):
    rows, columns = np.nonzero(np.abs(frame.astype(int) - 128).max(axis=-1) > 12)
    return np.array([columns.mean(), rows.mean()])


def test_the_same_generator_gives_the_same_clip(pictures):
    first, second = (pictures.clip(np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first.frames, second.frames)
    assert (first.motion_bucket_id, first.caption) == (second.motion_bucket_id, second.caption)


def test_a_clip_is_eight_colour_frames_of_64_pixels(pictures):
    clip = pictures.clip(np.random.default_rng(0))
    assert clip.frames.shape == (8, 64, 64, 3)
    assert clip.frames.dtype == np.uint8


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), bucket=st.integers(MIN_MOTION_BUCKET_ID, MAX_MOTION_BUCKET_ID))
def test_a_sprite_moves_where_its_caption_says_at_the_speed_of_its_bucket(pictures, seed, bucket):
    clip = pictures.clip(np.random.default_rng(seed), motion_bucket_id=bucket, kind="drive")
    way = next(way for way in ("left", "right", "up", "down") if f" moves {way} " in clip.caption)
    direction = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[way]
    path = centre_of_sprite(clip.frames[-1]) - centre_of_sprite(clip.frames[0])
    assert path == pytest.approx(np.array(direction) * 7 * 1.6 * bucket / 127, abs=0.6)


def test_a_sprite_never_leaves_the_picture(pictures):
    for seed in range(20):
        clip = pictures.clip(np.random.default_rng(seed), motion_bucket_id=MAX_MOTION_BUCKET_ID, kind="drive")
        visible = [(np.abs(frame.astype(int) - 128).max(axis=-1) > 12).sum() for frame in clip.frames]
        assert min(visible) > 0.93 * max(visible)


def test_a_push_in_enlarges_the_centre(photographs):
    clip = photographs.clip(np.random.default_rng(1), motion_bucket_id=255, kind="push-in")
    scale = 1 + 0.2 * 255 / 127
    inner = round(64 / scale)
    top = (64 - inner) // 2
    centre = Image.fromarray(clip.frames[0][top : top + inner, top : top + inner])
    enlarged = np.asarray(centre.resize((64, 64), Image.Resampling.BICUBIC)).astype(float)
    still_error = np.abs(clip.frames[-1].astype(float) - clip.frames[0]).mean()
    assert np.abs(clip.frames[-1].astype(float) - enlarged).mean() < 0.5 * still_error


def test_training_and_held_out_photographs_are_different_pictures():
    assert not set(TRAIN_PHOTOS) & set(HELD_OUT_PHOTOS)
    photos = load_photos(TRAIN_PHOTOS + HELD_OUT_PHOTOS)
    assert all(photo.mode == "RGB" and min(photo.size) >= 256 for photo in photos.values())


def test_the_sheet_holds_one_square_for_each_sprite(pictures):
    assert len(pictures.sprites) == len(SPRITES)
    assert all(sprite.getchannel("A").getextrema() == (0, 255) for sprite in pictures.sprites)


def test_recolouring_gives_the_photograph_other_colours_in_every_clip_and_leaves_its_shapes():
    photo = Image.fromarray(np.random.default_rng(0).integers(60, 200, (90, 120, 3), dtype=np.uint8))
    pictures = MovingPictures({"noise": photo}, recolour=True)
    means = [
        pictures.clip(np.random.default_rng(seed), kind="push-in").frames.mean(axis=(0, 1, 2)) for seed in range(6)
    ]
    assert np.ptp(np.stack(means), axis=0).min() > 15
    matrix = np.array(random_colour_matrix(np.random.default_rng(0))).reshape(3, 4)
    assert (np.count_nonzero(matrix[:, :3], axis=0) == 1).all()  # each channel goes to one place: edges stay edges
    assert (np.count_nonzero(matrix[:, :3], axis=1) == 1).all()
