"""Clips of the demo's held-out scenes, as files."""

import av
import numpy as np
import pytest
from checkout import as_module

from vdmini_diffusers.demo.measures import HeldOutPrompts


@pytest.fixture(scope="module")
def script():
    with as_module("benchmarks/write_demo_clips.py") as module:
        yield module


@pytest.mark.parametrize("task", ["i2v", "t2v"])
def test_each_clip_is_a_video_and_each_caption_a_line(script, tmp_path, task):
    pytest.importorskip("skimage")  # whose photographs are the places
    script.main(script.Arguments(output_dir=tmp_path, task=task, num_clips=2, seed=7))
    assert [path.name for path in sorted((tmp_path / "videos").iterdir())] == ["0000.mp4", "0001.mp4"]
    captions = (tmp_path / "prompts.txt").read_text().splitlines()
    assert len(captions) == 2
    if task == "t2v":
        scenes = HeldOutPrompts(2, seed=7)
        assert captions == scenes.captions
        with av.open(tmp_path / "videos" / "0001.mp4") as file:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
        difference = frames.astype(float) - scenes.real.frames[1]
        assert np.abs(difference).mean() < 10
    with pytest.raises(ValueError, match="`--num_clips` is 1 at least"):
        script.Arguments(num_clips=0)
