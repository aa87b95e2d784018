"""Clips show what their captions say, and their first frames do not tell what comes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdmini_diffusers.demo.scenes import (
    CAMERA_WAYS,
    DIRECTIONS,
    HIDDEN_WAYS,
    OBJECT_WAYS,
    OBJECTS,
    PHOTOS,
    PLACES,
    SPEEDS,
    STARTS,
    Scene,
    all_captioned_scenes,
    draw_captioned,
    draw_clip,
    draw_hidden,
    draw_scene,
    draw_varied_view,
    draw_view,
    load_objects,
    middle_view,
)


def centre_of_object(scene: Scene, view, frame: np.ndarray) -> np.ndarray:
    """By what differs from the same frame without the object."""
    empty = draw_clip(scene, replace(view, x=-100.0), distance=0.0)[0]
    weights = np.abs(frame.astype(int) - empty).sum(axis=-1)
    rows, columns = np.indices(weights.shape)
    return np.array([(columns * weights).sum(), (rows * weights).sum()]) / weights.sum()


@pytest.fixture
def view():
    return middle_view("retina")


def test_a_clip_is_sixteen_colour_frames_of_64_pixels_and_the_same_each_time(view):
    scene = Scene("car", "retina", "moves left", "slowly")
    frames = draw_clip(scene, view)
    assert frames.shape == (16, 64, 64, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, draw_clip(scene, view))


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("way", DIRECTIONS)
def test_an_object_moves_where_its_caption_says_at_its_speed(view, way, speed):
    scene = Scene("car", "retina", way, speed)
    frames = draw_clip(scene, view)
    path = centre_of_object(scene, view, frames[10]) - centre_of_object(scene, view, frames[0])
    assert path == pytest.approx(np.array(DIRECTIONS[way]) * 10 * SPEEDS[speed], abs=1.2)


def test_an_object_that_turns_stays_and_two_that_turn_apart_meet_only_at_first(view):
    left, right = (Scene("pizza", "retina", f"turns {way}", "quickly") for way in ("left", "right"))
    frames, others = draw_clip(left, view), draw_clip(right, view)
    assert np.array_equal(frames[0], others[0])
    assert not np.array_equal(frames[4], others[4])
    # A quarter of a turn to the left is one of three quarters to the right.
    quarter = 90 / 8
    ends = (draw_clip(left, view, quarter)[-1], draw_clip(right, view, 3 * quarter)[-1])
    assert np.abs(ends[0].astype(int) - ends[1]).max() <= 2
    drift = centre_of_object(left, view, frames[8]) - centre_of_object(left, view, frames[0])
    assert np.abs(drift).max() < 3


def test_an_object_that_bounces_goes_up_and_comes_down(view):
    scene = Scene("ball", "retina", "bounces", "quickly")
    heights = [-centre_of_object(scene, view, frame)[1] for frame in draw_clip(scene, view)]
    assert max(heights) - heights[0] == pytest.approx(14, abs=1)
    assert max(heights[7:9]) - heights[0] < 4  # between two bounces
    assert min(heights[3], heights[11]) - heights[0] > 10


def test_the_camera_goes_where_its_caption_says():
    view = middle_view("china.jpg")
    clips = {way: draw_clip(Scene(None, "china.jpg", way, "quickly"), view) for way in CAMERA_WAYS}
    assert all(np.array_equal(clip[0], clips["pans left"][0]) for clip in clips.values())
    moved = round(1.5 * 15)  # pixels: what was at the right border is seen so much further left
    first, last = clips["pans right"][0].astype(int), clips["pans right"][-1].astype(int)
    assert np.abs(first[:, moved:] - last[:, :-moved]).mean() < 0.3 * np.abs(first - last).mean()
    inner = clips["zooms out"][-1][11:53, 11:53].astype(int)  # 0.64 of the frame
    small = clips["zooms out"][0][::3, ::3].astype(int).mean()
    assert inner.mean() == pytest.approx(small, abs=8)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), way=st.sampled_from(CAMERA_WAYS), speed=st.sampled_from(list(SPEEDS)))
def test_the_camera_stays_inside_the_photograph_from_any_view(seed, way, speed):
    rng = np.random.default_rng(seed)
    place = str(rng.choice(PHOTOS))
    for view in (draw_varied_view(rng, place), draw_view(rng, place)):
        draw_clip(Scene(None, place, way, speed), view)  # Pillow refuses a box that leaves the picture


def test_no_first_frame_tells_way_or_speed():
    """The generator draws the view after the scene, from a distribution that depends on the place only."""
    for thing, ways in HIDDEN_WAYS.items():
        view = middle_view("coffee")
        firsts = [draw_clip(Scene(thing, "coffee", way, speed), view)[0] for way in ways for speed in SPEEDS]
        assert all(np.array_equal(first, firsts[0]) for first in firsts)
    drawn = [draw_scene(np.random.default_rng(i), HIDDEN_WAYS) for i in range(300)]
    assert {(scene.object, scene.way) for scene in drawn} == {
        (thing, way) for thing, ways in HIDDEN_WAYS.items() for way in ways
    }


def test_captions_to_train_on_are_never_those_that_are_held_out():
    rng = np.random.default_rng(0)
    drawn = {draw_captioned(rng)[0] for _ in range(600)}
    held_out = {draw_captioned(rng, held_out=True)[0] for _ in range(200)}
    assert not drawn & held_out
    assert drawn | held_out <= set(all_captioned_scenes())
    assert {(scene.object, scene.place) for scene in held_out} == set(zip(OBJECTS, PLACES, strict=True))


def test_first_frames_to_train_on_are_never_those_that_are_held_out():
    def starts(held_out):
        rng = np.random.default_rng(0)
        drawn = [draw_hidden(rng, held_out) for _ in range(1500)]
        return {(scene.object, scene.place, view.x, view.y) for scene, view in drawn if scene.object is not None}

    to_train_on, held_out = starts(False), starts(True)
    assert not to_train_on & held_out
    pairs = {(thing, place) for thing in OBJECTS for place in PLACES}
    assert {start[:2] for start in held_out} == pairs and len(held_out) == len(pairs)
    assert pairs < {start[:2] for start in to_train_on}  # with photographs that no fixed view shows
    assert {start[2:] for start in held_out} == {(x, y) for x in STARTS for y in STARTS}


def test_objects_start_on_the_grid_of_the_latents():
    rng = np.random.default_rng(0)
    starts = {(view.x, view.y) for view in (draw_view(rng, "coffee") for _ in range(200))}
    assert starts == {(x, y) for x in STARTS for y in STARTS}


def test_captions_are_sentences_and_no_two_scenes_share_one():
    scenes = all_captioned_scenes()
    assert len(scenes) == len({scene.caption for scene in scenes}) == 8 * 8 * 7 * 2 + 8 * 4 * 2
    assert Scene("octopus", "coffee", "moves up", "slowly").caption == (
        "an octopus moves up slowly in front of a cup of coffee"
    )
    assert Scene(None, "chelsea", "zooms in", "quickly").caption == "the camera zooms in quickly on a cat"


def test_the_sheet_holds_one_square_for_each_object():
    assert list(load_objects()) == list(OBJECTS)
    assert all(sprite.size == (64, 64) for sprite in load_objects().values())
    assert all(sprite.getchannel("A").getextrema() == (0, 255) for sprite in load_objects().values())
    assert set(OBJECT_WAYS) >= {way for thing, ways in HIDDEN_WAYS.items() if thing for way in ways}


def test_recolouring_gives_other_colours_in_every_view():
    scene = Scene(None, "grass", "pans left", "slowly")
    rng = np.random.default_rng(0)
    means = [draw_clip(scene, draw_varied_view(rng, "grass")).mean(axis=(0, 1, 2)) for _ in range(6)]
    assert np.ptp(np.stack(means), axis=0).min() > 15
