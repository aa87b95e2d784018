import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from tiny import TWO_STAGES, tiny_svd_pipeline

from vdmini_diffusers import VDMiniI2VPipeline
from vdmini_diffusers.data.stored_videos import find_videos
from vdmini_diffusers.evaluation.first_frame_generation import check_generation_folder, generate_from_first_frames
from vdmini_diffusers.evaluation.fvd_protocol import FVDProtocol


PROTOCOL = FVDProtocol(num_clips=2, num_frames=2, height=12, width=16)
CALL = {"height": 16, "width": 16}


@pytest.fixture(scope="module")
def pipe():
    pipe = VDMiniI2VPipeline(**tiny_svd_pipeline(**TWO_STAGES).components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def videos(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a/v0", "a/v1", "b/v0"):
        (tmp_path / "real" / name).mkdir(parents=True)
        for frame in range(3):
            picture = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "real" / name / f"{frame}.png")
    return find_videos(tmp_path / "real")[0]


def generate(pipe, videos, folder, protocol=PROTOCOL, some=None, **call):
    names = [video.name for video in videos]
    generate_from_first_frames(pipe, videos if some is None else some, names, folder, protocol, **CALL | call)


def pixels(folder):
    return {
        video.name: video.read(PROTOCOL.num_frames, PROTOCOL.height, PROTOCOL.width).frames
        for video in find_videos(folder)[0]
    }


def test_each_clip_is_of_its_own_first_frame_and_noise_whichever_others_there_are(pipe, videos, tmp_path):
    generate(pipe, videos, tmp_path / "all")
    generate(pipe, videos, tmp_path / "one", some=videos[1:2])
    whole = pixels(tmp_path / "all")
    assert list(whole) == ["a/v0", "a/v1", "b/v0"]
    np.testing.assert_array_equal(pixels(tmp_path / "one")["a/v1"], whole["a/v1"])
    generate(pipe, videos, tmp_path / "seed", dataclasses.replace(PROTOCOL, seed=1), some=videos[:1])
    assert (pixels(tmp_path / "seed")["a/v0"] != whole["a/v0"]).any()
    assert all(video.read(2, 12, 16).is_jpeg for video in find_videos(tmp_path / "all")[0])
    manifest = json.loads((tmp_path / "all" / "generation.json").read_text())
    assert manifest["call"] == CALL and manifest["num_frames"] == 2 and len(manifest["weights_sha256"]["unet"]) == 64


def test_it_goes_on_where_it_was_stopped(pipe, videos, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(type(pipe), "__call__", counting(type(pipe).__call__, made, stop_at=2))
    with pytest.raises(KeyboardInterrupt):
        generate(pipe, videos, tmp_path / "clips")
    assert list(pixels(tmp_path / "clips")) == ["a/v0"]  # whole, and nothing of the next one
    first = (tmp_path / "clips" / "a" / "v0" / "000.jpg").stat().st_mtime_ns
    generate(pipe, videos, tmp_path / "clips")
    assert len(made) == 2 + 2 and list(pixels(tmp_path / "clips")) == ["a/v0", "a/v1", "b/v0"]
    assert (tmp_path / "clips" / "a" / "v0" / "000.jpg").stat().st_mtime_ns == first


def counting(call, made, stop_at):
    def counted(*args, **kwargs):
        made.append(1)
        if len(made) == stop_at:
            raise KeyboardInterrupt
        return call(*args, **kwargs)

    return counted


class TestBadFolders:
    @pytest.fixture
    def folder(self, pipe, videos, tmp_path):
        generate(pipe, videos, tmp_path / "clips", some=videos[:1])
        return tmp_path / "clips"

    def test_of_something_else(self, pipe, videos, tmp_path):
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "thesis.txt").write_text("x")
        with pytest.raises(ValueError, match=r"is not empty and has no generation\.json"):
            generate(pipe, videos, tmp_path / "x")
        assert [path.name for path in (tmp_path / "x").iterdir()] == ["thesis.txt"]

    def test_made_with_other_settings(self, pipe, videos, folder):
        with pytest.raises(ValueError, match=r"were made with call .*; seed 0 and not 1"):
            generate(pipe, videos, folder, dataclasses.replace(PROTOCOL, seed=1), motion_bucket_id=1)

    @pytest.mark.parametrize("name", ["a/v9/000.jpg", "notes.txt", "a/more.txt"])
    def test_foreign_files(self, pipe, videos, folder, name):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=f"1 files or folders that are no clips of these videos, such as {name}"):
            generate(pipe, videos, folder)

    def test_damaged_clips(self, videos, folder):
        names = [video.name for video in videos]
        frame = folder / "a" / "v0" / "001.jpg"
        content = frame.read_bytes()
        frame.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=r"a/v0 is damaged: .*001\.jpg.*cannot be read.*Remove that folder"):
            check_generation_folder(folder, names, PROTOCOL)
        Image.new("RGB", (8, 8)).save(frame)
        with pytest.raises(ValueError, match=r"damaged: 001\.jpg has 8 x 8 pixels, not 16 x 12"):
            check_generation_folder(folder, names, PROTOCOL)
        frame.unlink()
        with pytest.raises(ValueError, match="damaged: it should have 2 frames"):
            check_generation_folder(folder, names, PROTOCOL)
        for record in ("{", "[1]"):
            (folder / "generation.json").write_text(record)
            with pytest.raises(ValueError, match=r"generation\.json is damaged"):
                check_generation_folder(folder, names, PROTOCOL)

    def test_a_protocol_without_jpeg(self, pipe, videos, tmp_path):
        with pytest.raises(ValueError, match="stored as JPEG"):
            generate(pipe, videos, tmp_path / "x", dataclasses.replace(PROTOCOL, jpeg_quality=None))
