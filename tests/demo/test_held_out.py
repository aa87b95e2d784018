"""What is measured of videos of held-out scenes; the figures of the demo teachers are in their own tests."""

import numpy as np
import pytest

from vdmini_diffusers.demo.held_out import HeldOutPrompts, VideoMeasure, Videos, mean_cosine
from vdmini_diffusers.evaluation.frechet_video_distance import frechet_distance, kernel_distance


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def prompts():
    return HeldOutPrompts(4)


@pytest.fixture
def measure():
    """It measures noise, with features as if I3D had been there."""
    measure = VideoMeasure(noise(0, 3, 4, 8, 8, 3), noise(1, 3, 4, 8, 8, 3), detector=None)
    measure.real, measure.reference = (
        Videos(videos.frames, np.random.default_rng(seed).normal(size=(3, 5)))
        for seed, videos in enumerate((measure.real, measure.reference))
    )
    return measure


def test_real_clips_show_what_their_captions_say_and_those_of_others_or_backwards_do_not(prompts):
    assert all(scene.is_held_out for scene in prompts.scenes)
    right = prompts(prompts.real)
    assert [right[f"{what}_accuracy"] for what in ("object", "background", "direction")] == [1, 1, 1]
    backwards = prompts(Videos(prompts.real.frames[:, ::-1].copy(), None))
    assert [backwards[f"{what}_accuracy"] for what in ("object", "background", "direction")] == [1, 1, 0]
    swapped = prompts(Videos(np.roll(prompts.real.frames, 1, axis=0), None))
    pairs = list(zip(prompts.scenes, [prompts.scenes[-1], *prompts.scenes[:-1]], strict=True))
    for what in ("object", "background"):
        share = np.mean([getattr(said, what) == getattr(shown, what) for said, shown in pairs])
        assert swapped[f"{what}_accuracy"] == share < 1
    assert not {"fvd", "psnr_to_teacher"} & set(right)


def test_the_same_seed_gives_the_same_scenes_and_the_reference_is_of_others(prompts):
    again = HeldOutPrompts(2)
    assert again.captions == prompts.captions[:2]
    assert np.array_equal(again.real.frames, prompts.real.frames[:2])
    assert not any(np.array_equal(a, b) for a in prompts.real.frames for b in prompts.reference.frames)


def test_distances_are_to_the_reference_and_the_floor_is_that_of_real_clips(measure):
    videos = Videos(noise(2, 3, 4, 8, 8, 3), np.random.default_rng(2).normal(size=(3, 5)))
    found, of = measure.common(videos, None, given_frames=0), measure.reference.features
    assert found["fvd"] == frechet_distance(videos.features, of)
    assert found["kvd"] == kernel_distance(videos.features, of)
    assert found["fvd_floor"] == frechet_distance(measure.real.features, of) != found["fvd"]
    assert found["kvd_floor"] == kernel_distance(measure.real.features, of)
    with pytest.raises(ValueError, match="`detector`"):
        measure.distances(Videos(videos.frames, None))


def test_given_frames_are_not_compared_with_the_teachers(measure):
    other_start = measure.real.frames.copy()
    other_start[:, 0] ^= 255
    videos = Videos(other_start, measure.real.features)
    assert measure.common(videos, measure.real, given_frames=1)["psnr_to_teacher"] == float("inf")
    assert measure.common(videos, measure.real, given_frames=0)["psnr_to_teacher"] < 20
    assert measure.common(videos, measure.real, given_frames=0)["i3d_cosine_to_teacher"] == pytest.approx(1)


def test_the_mean_cosine_is_that_of_rows_around_the_second_sets_mean():
    b = np.array([[11.0, 10.0], [9.0, 10.0]])  # (1, 0) and (-1, 0) around (10, 10)
    assert mean_cosine(b, b) == 1
    assert mean_cosine(b[::-1], b) == -1
    assert mean_cosine(np.array([[10.0, 17.0], [5.0, 10.0]]), b) == pytest.approx(0.5)  # at right angles; the same
