"""Small clips beside each other."""

import av
import numpy as np
import pytest

from vdmini_diffusers.demo.contact_sheet import CLIPS_IN_A_ROW, write_labelled_video


@pytest.mark.parametrize("number", [2, CLIPS_IN_A_ROW + 1])
def test_a_video_shows_every_clip_under_its_label_moment_by_moment(number, tmp_path):
    shades = np.linspace(0, 250, 4 * number).astype(np.uint8).reshape(number, 4, 1, 1, 1)
    clips = {f"clip {i}": np.broadcast_to(shades[i], (4, 64, 64, 3)) for i in range(number)}
    write_labelled_video(clips, tmp_path / "clips.mp4")
    with av.open(tmp_path / "clips.mp4") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 4
    for moment, frame in enumerate(frames):
        for i in range(number):
            top, left = 160 * (i // CLIPS_IN_A_ROW), 128 * (i % CLIPS_IN_A_ROW)
            label, clip = frame[top : top + 32, left : left + 128], frame[top + 33 : top + 159, left + 1 : left + 127]
            assert label.max() > 240 and label.min() < 100
            assert np.mean(clip) == pytest.approx(shades[i, moment].item(), abs=4)
