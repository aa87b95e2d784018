import numpy as np
import pytest

from vdmini_diffusers.evaluation.continuation import gradients, motion_cosine, motion_ratio, psnr, sharpness_ratio


@pytest.fixture
def clip():
    """A bright square that walks to the right over a dark, noisy ground."""
    frames = np.random.default_rng(0).integers(0, 40, (1, 16, 16, 3)).repeat(6, axis=0).astype(np.uint8)
    for k, frame in enumerate(frames):
        frame[6:9, 2 * k : 2 * k + 3] = 250
    return frames


def test_psnr_of_a_known_error_and_of_none(clip):
    dim = clip // 2
    assert psnr(dim + 10, dim) == pytest.approx(20 * np.log10(255 / 10))
    assert psnr(clip, clip) == float("inf")


def test_the_real_clip_has_all_of_its_own_motion(clip):
    assert motion_cosine(clip, clip) == pytest.approx(1)
    assert motion_ratio(clip, clip) == 1


def test_a_still_picture_has_no_motion_and_no_direction_of_it(clip):
    still = clip[:1].repeat(6, axis=0)
    assert motion_ratio(still, clip) == 0
    with pytest.raises(ValueError, match="still"):
        motion_cosine(still, clip)


def test_motion_to_the_other_side_is_told_apart(clip):
    mirrored = clip.copy()
    mirrored[:] = clip[:1]
    for k, frame in enumerate(mirrored):
        frame[6:9, 0:3] = 20
        frame[6 - k : 9 - k, 0:3] = 250  # upwards instead
    assert motion_cosine(mirrored, clip) < 0.6


def test_a_constant_error_of_reconstruction_is_not_motion(clip):
    darker = (clip * 0.8).astype(np.uint8)
    assert motion_cosine(darker, clip) > 0.999


def test_flicker_counts_as_too_much_motion(clip):
    noise = np.random.default_rng(1).integers(0, 30, clip.shape)
    assert motion_ratio(np.clip(clip.astype(int) + noise, 0, 255), clip) > 1.5


def test_sharpness_is_the_mean_step_between_pixels(clip):
    edge = np.zeros((2, 3, 4, 4, 3), np.uint8)
    edge[1, :, :, 2:] = 30  # of three steps across, one
    assert gradients(edge) == pytest.approx([0, 10])
    assert sharpness_ratio(clip // 2, clip) == pytest.approx(0.5, abs=0.02)
