"""Small moving clips, and a tiny VideoMAE with random weights."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import randomise
from transformers import VideoMAEConfig, VideoMAEModel
from written_videos import indices, write_video

from vdmini_diffusers.data.skipped_videos import SkippedVideo
from vdmini_diffusers.data.stored_videos import find_videos
from vdmini_diffusers.evaluation import fvd_protocol
from vdmini_diffusers.evaluation.detectors import VideoMAEDetector, clip_features
from vdmini_diffusers.evaluation.frechet_video_distance import kernel_distance
from vdmini_diffusers.evaluation.fvd_protocol import FVDProtocol, check_set, compare_sets, measure_set


SIZE = (24, 32)
PROTOCOL = FVDProtocol(num_clips=10, num_frames=4, height=24, width=32)


@pytest.fixture(scope="module")
def detector():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = VideoMAEConfig(image_size=16, patch_size=8, num_frames=4, tubelet_size=2, **sizes)
    return VideoMAEDetector(randomise(VideoMAEModel(config)))


def write_clips(folder, num, seed, num_frames=4):
    rng = np.random.default_rng(seed)
    for index in range(num):
        (folder / f"v{index:02d}").mkdir(parents=True)
        for frame in range(num_frames):
            coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC)
            picture.save(folder / f"v{index:02d}" / f"{frame:03d}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return write_clips(folder / "real", 14, 0), write_clips(folder / "generated", 12, 1)


def test_the_result_is_that_of_the_clips_and_says_all_it_depends_on(folders, detector, tmp_path):
    real, generated = (measure_set(folder, PROTOCOL, detector, tmp_path) for folder in folders)
    result = json.loads(json.dumps(compare_sets(generated, real, PROTOCOL, detector, num_resamples=20)))
    read = []
    for folder, measured in zip(folders, (real, generated), strict=True):
        by_name = {video.name: video for video in find_videos(folder)[0]}
        clips = np.stack([by_name[name].read(4, *SIZE).frames for name in measured.names])
        jpeg = np.empty_like(clips)
        for at in np.ndindex(clips.shape[:2]):
            file = io.BytesIO()
            Image.fromarray(clips[at]).save(file, "JPEG", quality=95)
            jpeg[at] = np.asarray(Image.open(file))
        assert (jpeg != clips).any()
        read.append(clip_features(jpeg, detector))
    a, b = read
    moments = [(x.mean(0), np.cov(x, rowvar=False, ddof=0)) for x in (b, a)]
    eigenvalues = np.linalg.eigvals(moments[0][1] @ moments[1][1]).real.clip(min=0)
    expected = np.square(moments[0][0] - moments[1][0]).sum() - 2 * np.sqrt(eigenvalues).sum()
    expected += sum(np.trace(covariance) for _, covariance in moments)
    assert result["fvd"] == pytest.approx(expected, rel=1e-5)
    assert result["kvd"] == pytest.approx(kernel_distance(b, a), rel=1e-5)
    for name in ("fvd", "kvd"):
        assert result[f"{name}_interval"][0] < result[name] < result[f"{name}_interval"][1]
    assert result["protocol"] == dataclasses.asdict(PROTOCOL) | {
        "covariance_divisor": "num_clips",
        "resize": "bicubic, antialiased, centre of the picture",
    }
    assert result["detector"] == {"name": "videomae_mean_token", "sha256": detector.sha256, "dimension": 8}
    assert (result["real"]["num_videos"], result["real"]["num_clips"]) == (14, 10)
    assert result["versions"]["torch"] == torch.__version__
    assert result["warnings"] == []


def test_clips_of_the_same_names_are_pairs_whatever_their_order(folders, detector, tmp_path):
    real = measure_set(folders[0], PROTOCOL, detector, tmp_path)
    remade = write_clips(tmp_path / "remade", 14, 2)
    generated = measure_set(remade, PROTOCOL, detector, tmp_path, only=set(real.names))
    assert generated.names != real.names and set(generated.names) == set(real.names)
    result = compare_sets(generated, real, PROTOCOL, detector, num_resamples=0)
    a = generated.statistics.features[[generated.names.index(name) for name in real.names]]
    assert result["paired"] and result["kvd"] == kernel_distance(a, real.statistics.features, paired=True)
    others = measure_set(folders[1], PROTOCOL, detector, tmp_path)
    assert not compare_sets(others, real, PROTOCOL, detector, num_resamples=0)["paired"]


def test_jpeg_files_of_the_right_size_are_not_encoded_again(tmp_path):
    (folder,) = [write_clips(tmp_path / "png", 1, 0)]
    (video,), _ = find_videos(folder)
    once = PROTOCOL.read(video, "first")
    (tmp_path / "jpeg" / "v").mkdir(parents=True)
    for index, frame in enumerate(video.read(4, *SIZE).frames):
        (tmp_path / "jpeg" / "v" / f"{index:03d}.jpg").write_bytes(PROTOCOL.encode_frame(frame))
    (stored,), _ = find_videos(tmp_path / "jpeg")
    np.testing.assert_array_equal(PROTOCOL.read(stored, "first"), once)


class TestDraw:
    def test_the_seed_decides_which_videos_and_not_how_they_are_batched(self, folders, detector, tmp_path):
        one, other = (
            measure_set(folders[0], PROTOCOL, detector, tmp_path / f"{size}", batch_size=size) for size in (1, 8)
        )
        assert one.names == other.names and len(set(one.names)) == 10
        np.testing.assert_allclose(one.statistics.features, other.statistics.features, atol=1e-5)
        reseeded = dataclasses.replace(PROTOCOL, seed=1)
        assert measure_set(folders[0], reseeded, detector, tmp_path).names != one.names

    def test_random_starts_depend_on_seed_and_name_and_are_all_possible(self, tmp_path):
        write_video(tmp_path / "v.mp4", 7, size=SIZE)
        (video,), _ = find_videos(tmp_path)
        clips = [
            indices(torch.from_numpy(dataclasses.replace(PROTOCOL, seed=seed).read(video, "random")).movedim(-1, 1))
            for seed in range(40)
        ]
        assert all(clip == list(range(clip[0], clip[0] + 4)) for clip in clips)
        assert {clip[0] for clip in clips} == {0, 1, 2, 3}
        assert {PROTOCOL.first_frame(video, "random") for _ in range(3)} == {PROTOCOL.first_frame(video, "random")}
        assert PROTOCOL.first_frame(video, "first") == 0

    def test_only_some_of_the_videos(self, folders, detector, tmp_path):
        names = {f"v{index:02d}" for index in range(2, 12)}
        assert set(measure_set(folders[0], PROTOCOL, detector, tmp_path, only=names).names) == names


class TestCache:
    @pytest.fixture
    def counted(self, detector):
        class Counted(VideoMAEDetector):
            seen = 0

            def __call__(self, clips):
                Counted.seen += len(clips)
                return super().__call__(clips)

        return Counted(detector.model)

    def test_a_run_that_was_stopped_goes_on(self, folders, counted, tmp_path, monkeypatch):
        monkeypatch.setattr(fvd_protocol, "CLIPS_PER_FILE", 4)
        whole = measure_set(folders[0], PROTOCOL, counted, tmp_path / "whole")
        assert type(counted).seen == 12  # three files of four

        (cache,) = (tmp_path / "whole").iterdir()
        (cache / "statistics.safetensors").unlink()
        (cache / "clips-00001.safetensors").write_bytes(b"damaged")
        (cache / "clips-00002.safetensors").unlink()
        again = measure_set(folders[0], PROTOCOL, counted, tmp_path / "whole")
        assert type(counted).seen == 12 + 8
        np.testing.assert_array_equal(again.statistics.features, whole.statistics.features)
        assert again.names == whole.names

        measure_set(folders[0], PROTOCOL, counted, tmp_path / "whole")
        assert type(counted).seen == 12 + 8

    def test_other_settings_and_other_files_are_measured_anew(self, detector, tmp_path):
        folder = write_clips(tmp_path / "set", 10, 0)
        measure_set(folder, PROTOCOL, detector, tmp_path / "cache")
        measure_set(folder, dataclasses.replace(PROTOCOL, jpeg_quality=50), detector, tmp_path / "cache")
        Image.new("RGB", SIZE[::-1]).save(folder / "v00" / "000.png")
        measure_set(folder, PROTOCOL, detector, tmp_path / "cache")
        assert len(list((tmp_path / "cache").iterdir())) == 3

    def test_statistics_stand_for_their_folder(self, folders, detector, tmp_path):
        measured = measure_set(folders[0], PROTOCOL, detector, tmp_path)
        (file,) = tmp_path.glob("*/statistics.safetensors")
        stored = measure_set(file, PROTOCOL, detector, tmp_path)
        np.testing.assert_array_equal(stored.statistics.scatter, measured.statistics.scatter)
        assert stored.summary() | {"source": 0} == measured.summary() | {"source": 0}
        with pytest.raises(ValueError, match="measured with height 24 and not 48, jpeg_quality 95 and not None"):
            measure_set(file, dataclasses.replace(PROTOCOL, height=48, jpeg_quality=None), detector, tmp_path)


class TestBadInput:
    def test_short_and_damaged_videos_are_discarded_and_counted(self, detector, tmp_path):
        folder = write_clips(tmp_path / "set", 10, 0)
        write_clips(folder / "short", 2, 1, num_frames=3)
        (folder / "damaged.avi").write_bytes(b"RIFF")
        (folder / "list.txt").write_text("v00")
        found = measure_set(folder, PROTOCOL, detector, tmp_path / "cache")
        assert found.names and not [name for name in found.names if "short" in name or "damaged" in name]
        everything = dataclasses.replace(PROTOCOL, num_clips=11)
        message = r"10 videos for clips of 4 frames, and 11 are needed\. 3 skipped: 2 too short .*--num_clips 10"
        with pytest.raises(ValueError, match=message):
            measure_set(folder, everything, detector, tmp_path / "cache")
        summary = dataclasses.replace(found, skipped=[SkippedVideo("a", "too short", "3 frames")]).summary()
        assert summary["num_discarded"] == {"too short": 1} and summary["num_other_files"] == 1
        warnings = compare_sets(found, found, PROTOCOL, detector, 0)["warnings"]
        assert f"1 files in {folder} belong to no video: list.txt." in warnings

    def test_videos_that_others_replace_are_said_in_the_result(self, folders, detector, tmp_path):
        folder = write_clips(tmp_path / "set", 3, 0)
        write_clips(folder / "short", 2, 1, num_frames=3)
        (folder / "damaged.avi").write_bytes(b"RIFF")
        three = dataclasses.replace(PROTOCOL, num_clips=3)
        generated, real = (measure_set(each, three, detector, tmp_path / "cache") for each in (folder, folders[1]))
        _, warning = compare_sets(generated, real, three, detector, 0)["warnings"]
        assert warning == (
            "3 of the generated videos could not be used (1 broken, 2 too short), such as"
            f" {generated.skipped[0].name}: others were taken in their place."
        )
        _, warning = compare_sets(real, generated, three, detector, 0)["warnings"]
        assert warning.startswith("3 of the real videos could not be used")

    def test_what_is_wrong_with_a_set_is_known_before_any_clip_is_read(self, folders, detector, tmp_path):
        measure_set(folders[0], PROTOCOL, detector, tmp_path)
        (statistics,) = tmp_path.glob("*/statistics.safetensors")
        check_set(folders[0], PROTOCOL, detector)
        check_set(statistics, PROTOCOL, detector)
        for source, settings, message in (
            (folders[0], {"num_clips": 15}, "has 14 videos .* 15 are needed"),
            (folders[0], {"num_frames": 3}, "exactly 4 frames, not of 3"),
            (folders[0] / "v00", {}, "holds pictures itself"),
            (statistics, {"height": 48}, "measured with height 24 and not 48"),
            (folders[0] / "v00" / "000.png", {}, "holds no statistics"),
        ):
            with pytest.raises(ValueError, match=message):
                check_set(source, dataclasses.replace(PROTOCOL, **settings), detector)

    def test_too_few_videos_are_known_before_any_is_read(self, folders, detector, tmp_path):
        with pytest.raises(ValueError, match=r"has 14 videos .* 2048 are needed"):
            measure_set(folders[0], dataclasses.replace(PROTOCOL, num_clips=2048), detector, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_clips_that_do_not_suit_the_detector(self, folders, detector, tmp_path):
        with pytest.raises(ValueError, match="exactly 4 frames, not of 3"):
            measure_set(folders[0], dataclasses.replace(PROTOCOL, num_frames=3), detector, tmp_path)

    def test_too_few_clips_for_the_dimension_are_said_in_the_result(self, folders, detector, tmp_path):
        few = dataclasses.replace(PROTOCOL, num_clips=8)
        sets = [measure_set(folder, few, detector, tmp_path) for folder in folders]
        (warning,) = compare_sets(*sets, few, detector, 0)["warnings"]
        assert warning.startswith("8 clips are too few for features of 8 dimensions: covariances are singular")

    @pytest.mark.parametrize(
        ("setting", "message"),
        [({"num_clips": 1}, "2 or more"), ({"width": 0}, "`width`"), ({"jpeg_quality": 0}, "1 to 100, or None")],
    )
    def test_settings_out_of_range(self, setting, message):
        with pytest.raises(ValueError, match=message):
            FVDProtocol(**setting)
