"""Clips whose captions say what is to be seen."""

import numpy as np
import pytest

from vdmini_diffusers.demo.captioned_clips import BACKGROUNDS, OBJECTS, CaptionedClips, Scene, all_scenes


@pytest.fixture(scope="module")
def clips() -> CaptionedClips:
    return CaptionedClips()


def centre_of_change(frames: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Where each frame differs from the place without the thing: `(x, y)`."""
    difference = np.abs(frames.astype(float) - background).sum(axis=-1)
    difference[difference < 60] = 0
    y, x = np.indices(difference.shape[1:])
    weight = difference.sum(axis=(1, 2))
    return np.stack([(difference * x).sum(axis=(1, 2)) / weight, (difference * y).sum(axis=(1, 2)) / weight], axis=1)


def test_every_scene_has_a_caption_of_its_own():
    captions = [scene.caption for scene in all_scenes()]
    assert len(set(captions)) == len(captions) == 384
    assert "an elephant moves slowly left past a temple" in captions
    assert "the camera moves away from a cat" in captions


def test_the_same_generator_gives_the_same_clip(clips):
    scene = clips.scene(np.random.default_rng(3))
    first, second = (clips.frames(scene, np.random.default_rng(5)) for _ in range(2))
    assert first.shape == (8, 64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert not np.array_equal(first, clips.frames(scene, np.random.default_rng(6)))


def test_scenes_to_train_on_are_never_those_that_are_held_out(clips):
    rng = np.random.default_rng(0)
    drawn = {clips.scene(rng) for _ in range(5000)}
    held_out = {clips.scene(rng, held_out=True) for _ in range(300)}
    assert not drawn & held_out
    assert drawn | held_out <= set(all_scenes())
    assert len(drawn) > 300
    assert {(scene.object, scene.background) for scene in held_out} == set(zip(OBJECTS, BACKGROUNDS, strict=True))


@pytest.mark.parametrize(
    ("thing", "way", "towards"),
    [
        ("bus", "left", (-1, 0)),
        ("bus", "right", (1, 0)),
        ("balloon", "up", (0, -1)),
        ("water drop", "down", (0, 1)),
    ],
)
def test_a_thing_moves_the_way_and_as_fast_as_the_caption_says(clips, thing, way, towards):
    travelled = []
    for speed in ("slowly ", "", "quickly "):
        scene = Scene(thing, "hubble_deep_field", way, speed)
        frames = clips.frames(scene, np.random.default_rng(0))
        centres = centre_of_change(frames, np.median(frames, axis=(0, 1, 2)))
        travelled.append(np.dot(centres[-1] - centres[0], towards))
    assert 2 < travelled[0] < travelled[1] < travelled[2]


def test_away_from_is_in_on_backwards(clips):
    there, back = (Scene(None, "chelsea", way, "") for way in ("in on", "away from"))
    frames = clips.frames(there, np.random.default_rng(0))
    assert np.array_equal(frames[::-1], clips.frames(back, np.random.default_rng(0)))
    assert not np.array_equal(frames[0], frames[-1])
