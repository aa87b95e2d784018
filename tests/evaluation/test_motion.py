import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdmini_diffusers.evaluation.motion import MotionDistance, change_by_lag, motion_distance


def walking_squares(seed: int, n: int = 24) -> np.ndarray:
    """Clips of a bright square that walks to the right over a dark ground, `(n, 8, 24, 32, 3)`."""
    rng = np.random.default_rng(seed)
    clips = rng.integers(0, 60, (n, 1, 24, 32, 3)).repeat(8, axis=1).astype(np.uint8)
    for clip in clips:
        top, left, speed = rng.integers(0, 18), rng.integers(0, 4), rng.uniform(1.5, 3)
        for k, frame in enumerate(clip):
            start = left + round(speed * k)
            frame[top : top + 6, start : start + 6] = 200
    return clips


@pytest.fixture(scope="module")
def real():
    return walking_squares(0)


@pytest.fixture(scope="module")
def other():
    return walking_squares(1)


def test_changes_by_hand():
    clip = np.zeros((1, 4, 1, 1, 3), dtype=np.uint8)
    clip[0, :, 0, 0, 0] = [0, 3, 9, 3]
    # one of three colours changes; unsigned differences would wrap around
    np.testing.assert_allclose(change_by_lag(clip) * 3, [[(3 + 6 + 6) / 3, (9 + 0) / 2, 3]])


def test_a_set_with_itself_in_any_order_is_at_no_distance(real):
    assert motion_distance(real, real[::-1]) == MotionDistance(amount=0, course=0)


def test_still_clips_are_at_distance_one(real):
    distance = motion_distance(real[:, :1].repeat(8, axis=1), real)
    assert (distance.amount, distance.course) == pytest.approx((1, 1))


def test_other_real_clips_are_the_nearest_in_course(real, other):
    rng = np.random.default_rng(0)
    floor = motion_distance(other, real).course
    shuffled = np.stack([clip[rng.permutation(8)] for clip in other])
    noisy = np.clip(other + rng.normal(0, 10, other.shape), 0, 255)
    for name, clips in {
        "shuffled": shuffled,
        "neighbours swapped": other[:, [0, 2, 1, 4, 3, 6, 5, 7]],
        "every other frame twice": other[:, [0, 0, 2, 2, 4, 4, 6, 6]],
        "to and fro": other[:, [0, 1, 0, 1, 0, 1, 0, 1]],
        "noise on each frame": noisy,
    }.items():
        assert motion_distance(clips, real).course > 2 * floor, name


def test_half_the_change_is_seen_in_the_amount_only(real):
    halved = (real.astype(float) + real[:, :1]) / 2
    distance = motion_distance(halved, real)
    assert distance.amount == pytest.approx(0.5) and distance.course == pytest.approx(0, abs=1e-9)


@settings(max_examples=20)
@given(st.floats(0.1, 3), st.floats(0, 50))
def test_the_measure_has_no_unit_and_no_brightness(scale, offset):
    a, b = walking_squares(0, 4).astype(float), walking_squares(1, 4).astype(float)
    expected = motion_distance(a, b)
    found = motion_distance(a * scale + offset, b * scale + offset)
    assert (found.amount, found.course) == pytest.approx((expected.amount, expected.course))


def test_what_cannot_be_measured_is_refused(real):
    with pytest.raises(ValueError, match="equal shapes"):
        motion_distance(real[:3], real)
    with pytest.raises(ValueError, match="do not change"):
        motion_distance(real, real[:, :1].repeat(8, axis=1))
    with pytest.raises(ValueError, match="three frames"):
        motion_distance(real[:, :2], real[:, :2])
    with pytest.raises(ValueError, match="three frames"):
        change_by_lag(real[0])
