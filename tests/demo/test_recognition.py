"""Objects, places and motions of real clips are found again, also in soft ones, and in no others."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vdmini_diffusers.demo.recognition import STANDS_STILL, MotionCandidates, Recogniser
from vdmini_diffusers.demo.scenes import (
    HIDDEN_WAYS,
    OBJECTS,
    PLACES,
    Scene,
    draw_captioned,
    draw_clip,
    draw_scene,
    draw_view,
)


@pytest.fixture(scope="module")
def recognise() -> Recogniser:
    return Recogniser()


def blurred(clip: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(1.2))) for frame in clip])


def test_motions_from_a_known_first_frame_are_recognised_sharp_and_soft():
    right = {"sharp": 0, "soft": 0}
    for i in range(6):
        rng = np.random.default_rng((5, i))
        scene = draw_scene(rng, HIDDEN_WAYS)
        view = draw_view(rng, scene.place)
        candidates, clip = MotionCandidates(scene, view), draw_clip(scene, view)
        found = candidates.nearest(clip)
        right["sharp"] += found.way == scene.way and abs(found.distance - scene.distance) <= 4
        right["soft"] += candidates.nearest(blurred(clip)).way == scene.way
        assert candidates.nearest(np.repeat(clip[:1], 16, axis=0)) == STANDS_STILL
    assert min(right.values()) >= 5


def test_objects_places_and_motions_of_captions_are_recognised(recognise):
    right = 0
    for i in range(6):
        rng = np.random.default_rng((6, i))
        scene, view = draw_captioned(rng, held_out=i % 2 == 0)
        clip = draw_clip(scene, view)
        found = recognise(clip, scene)
        motion = MotionCandidates(scene, found.view).nearest(clip)
        assert found.place == scene.place
        right += scene.object in (None, found.object) and motion.way == scene.way
    assert right >= 5


def test_another_object_or_place_is_not_taken_for_the_one_that_the_caption_names(recognise):
    said = Scene("car", "coffee", "moves left", "slowly")
    shown = Scene("frog", "retina", "moves right", "slowly")
    clip = draw_clip(shown, draw_view(np.random.default_rng(0), "retina"))
    found = recognise(clip, said)
    assert (found.object, found.place) == ("frog", "retina")


@pytest.mark.parametrize(("thing", "place"), list(zip(OBJECTS, PLACES, strict=True))[::4])
def test_an_object_is_found_where_the_first_frame_shows_it(recognise, thing, place):
    scene = Scene(thing, place, "moves up", "quickly")
    view = draw_view(np.random.default_rng(1), place)
    found = recognise(draw_clip(scene, view), scene).view
    assert (found.x, found.y) == pytest.approx((view.x, view.y), abs=1.5)
