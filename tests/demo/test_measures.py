"""What is measured of videos of held-out scenes."""

import numpy as np
import pytest

from vdmini_diffusers.demo.measures import HeldOutImages, HeldOutPrompts, change_cosine, jerks
from vdmini_diffusers.evaluation.continuation import MAX_PSNR


@pytest.fixture(scope="module", params=[HeldOutImages, HeldOutPrompts], ids=["images", "prompts"])
def measure(request):
    return request.param(3)


def means(measure, frames: np.ndarray, teacher=None) -> dict[str, float]:
    numbers = measure.per_clip(measure.look_at(frames), teacher)
    assert all(values.shape == (len(frames),) for values in numbers.values())
    return {name: values.mean() for name, values in numbers.items()}


def test_real_clips_are_right_in_every_respect(measure):
    found = means(measure, measure.real.frames, measure.real)
    assert found["right_way"] == found["moves"] == found["teachers_way"] == 1
    assert found["speed"] == pytest.approx(1, abs=0.2)
    assert (found["sharpness"], found["flicker"]) == pytest.approx((1, 1))
    assert found["psnr_to_teacher"] == MAX_PSNR
    assert found["motion_cosine"] == pytest.approx(1)
    assert found.get("object", 1) == found.get("place", 1) == 1


def test_still_clips_do_not_move_and_shuffled_ones_flicker(measure):
    real = measure.real.frames
    still = means(measure, np.repeat(real[:, :1], 16, axis=1), measure.real)
    assert still["moves"] == still["right_way"] == still["speed"] == still["flicker"] == still["motion_cosine"] == 0
    rng = np.random.default_rng(0)
    shuffled = np.stack([clip[[0, *(1 + rng.permutation(15))]] for clip in real])
    assert means(measure, shuffled)["flicker"] > 1.2


def test_clips_of_other_scenes_are_not_what_the_captions_say():
    measure = HeldOutPrompts(3)
    found = means(measure, np.roll(measure.real.frames, 1, axis=0))
    pairs = list(zip(measure.scenes, [measure.scenes[-1], *measure.scenes[:-1]], strict=True))
    for what in ("object", "place"):
        assert found[what] == np.mean([getattr(said, what) == getattr(shown, what) for said, shown in pairs]) < 1


def test_clips_played_backwards_go_the_wrong_way_from_captions():
    measure = HeldOutPrompts(3)
    forth_and_back = [scene.way.startswith(("bounces", "turns")) for scene in measure.scenes]
    backwards = measure.per_clip(measure.look_at(measure.real.frames[:, ::-1].copy()))["right_way"]
    assert not backwards[~np.array(forth_and_back)].any()


def test_the_same_seed_gives_the_same_scenes_and_another_seed_others():
    first, again = HeldOutImages(2), HeldOutImages(1)
    assert again.captions == first.captions[:1]
    assert np.array_equal(again.real.frames, first.real.frames[:1])
    assert HeldOutImages(1, seed=1).captions != again.captions
    with pytest.raises(ValueError, match="`detector`"):
        first.distances(first.real)


def test_flicker_and_changes_of_known_clips():
    clip = np.zeros((1, 3, 4, 4, 3), np.uint8)
    clip[0, 1] = 10  # on and off again: second difference -20
    assert jerks(clip) == [20]
    a = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    assert change_cosine(a, a) == pytest.approx(1)
    assert change_cosine(a, np.repeat(a[:1], 3, axis=0)) == 0
