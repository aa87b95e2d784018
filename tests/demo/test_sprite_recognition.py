"""What a caption says is found again in the clip, and in no other."""

import numpy as np
import pytest

from vdmini_diffusers.demo.captioned_clips import BACKGROUNDS, OBJECTS, CaptionedClips, Scene
from vdmini_diffusers.demo.sprite_recognition import Recogniser, direction


@pytest.fixture(scope="module")
def clips() -> CaptionedClips:
    return CaptionedClips()


@pytest.fixture(scope="module")
def recognise(clips) -> Recogniser:
    return Recogniser(clips.sprites, {place: clips.view(place) for place in BACKGROUNDS})


@pytest.mark.parametrize(("thing", "place"), list(zip(OBJECTS, BACKGROUNDS, strict=True)))
def test_thing_place_and_way_of_real_clips_are_recognised(clips, recognise, thing, place):
    rng = np.random.default_rng(OBJECTS.index(thing))
    way = {"balloon": "up", "water drop": "down"}.get(thing, "right")
    frames = clips.frames(Scene(thing, place, way, ""), rng)
    assert recognise(frames, thing) == (thing, place, way)


def test_soft_noisy_clips_are_recognised_as_well(clips, recognise):
    rng = np.random.default_rng(0)
    frames = clips.frames(Scene("elephant", "rocket", "left", ""), rng).astype(float)
    soft = (frames + np.roll(frames, 1, axis=1) + np.roll(frames, 1, axis=2)) / 3
    noisy = (soft + rng.normal(0, 12, soft.shape)).clip(0, 255).astype(np.uint8)
    assert recognise(noisy, "elephant") == ("elephant", "rocket", "left")


def test_a_thing_that_stands_goes_nowhere(clips, recognise):
    frames = clips.frames(Scene("bus", "coffee", "left", ""), np.random.default_rng(1))
    still = np.repeat(frames[:1], 8, axis=0)
    assert recognise(still, "bus") == ("bus", "coffee", "nowhere")


def test_directions_are_those_of_the_screen():
    assert [direction(*way) for way in ((3, 1), (-3, 1), (1, 3), (1, -3), (1, 1))] == [
        "right",
        "left",
        "down",
        "up",
        "nowhere",
    ]
