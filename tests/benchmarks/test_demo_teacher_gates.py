"""What the gates of a demo teacher are computed from, and what they say."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from checkout import as_module

from vdmini_diffusers.demo.measures import HeldOutImages, HeldOutPrompts
from vdmini_diffusers.demo.recognition import STANDS_STILL, Motion
from vdmini_diffusers.demo.scenes import HIDDEN_WAYS, Scene
from vdmini_diffusers.demo.teachers import I2V_TEACHER, T2V_TEACHER


@pytest.fixture(scope="module")
def gates():
    with as_module("benchmarks/demo_teacher_gates.py") as module:
        yield module


def test_shuffled_clips_keep_their_first_frame_and_have_the_others_in_orders_of_their_own(gates):
    frames = np.arange(5 * 16, dtype=np.uint8).reshape(5, 16, 1, 1, 1) * np.ones((2, 2, 3), np.uint8)
    numbers = gates.shuffled(frames, seed=0)[..., 0, 0, 0]
    assert gates.shuffled(frames, seed=0).shape == frames.shape
    assert np.array_equal(numbers[:, 0], frames[:, 0, 0, 0, 0])
    assert np.array_equal(np.sort(numbers, axis=1), frames[..., 0, 0, 0])
    orders = {tuple(clip - clip[0]) for clip in numbers.astype(int)} | {tuple(range(16))}
    assert len(orders) == 6  # five, of which none is the clips' own
    assert np.array_equal(gates.shuffled(frames, seed=0)[..., 0, 0, 0], numbers)
    assert not np.array_equal(gates.shuffled(frames, seed=1)[..., 0, 0, 0], numbers)


def test_both_ways_count_where_the_object_leaves_more_than_one_open(gates):
    seen = {  # of each object, in eight videos
        "car": ["moves left"] * 7 + ["moves right"],
        "penguin": ["moves right"] * 8,
        "ghost": ["moves up", "moves left", "turns left", "bounces"] * 2,  # one of its ways, and others
        "star": ["turns left"] * 4 + [STANDS_STILL.way] * 4,
        "octopus": ["moves down", "moves up"] * 4,
        "ball": ["bounces"] * 8,  # leaves one way open
        "frog": ["bounces", "moves up"] * 4,
    }
    scenes = [Scene(thing, "coffee", HIDDEN_WAYS[thing][0], "slowly") for thing in seen]
    noises = []

    def generate(noise_seed):
        noises.append(noise_seed)
        return SimpleNamespace(motions=[Motion(ways[len(noises) - 1], 11.25) for ways in seen.values()])

    share = gates.share_of_images_with_both_ways(SimpleNamespace(seed=40, scenes=scenes), generate)
    assert share == 2 / 5
    assert len(set(noises)) == 8 and 40 not in noises  # the seed's own noise made the videos of the table


def test_without_an_image_that_leaves_two_ways_open_there_is_no_such_share(gates):
    scenes = [Scene("ball", "coffee", "bounces", "slowly")]
    assert gates.share_of_images_with_both_ways(SimpleNamespace(seed=0, scenes=scenes), None) is None


def lines_of(gates, folder, **settings) -> list[str]:
    """The lines about gates that a start writes."""
    gates.main(gates.Arguments(output_dir=folder, **settings))
    return [line for line in (folder / "gates.md").read_text().splitlines() if line.startswith("- ")]


def with_less_contrast(videos, contrast: float, motions):
    """The real clips, of which the sharpness is that share."""
    return replace(videos, frames=(contrast * videos.frames).astype(np.uint8), motions=motions)


@pytest.mark.parametrize(
    ("contrast", "sharp", "share", "both"),
    [(0.85, "passed", 0.5, "FAILED"), (0.75, "FAILED", 1.0, "passed")],
    ids=["sharp, and one way in half of the images", "blurred, and both ways in all"],
)
def test_a_gate_of_images_is_passed_by_its_threshold(gates, monkeypatch, tmp_path, contrast, sharp, share, both):
    def generate(self, *_, noise_seed=0, **__):
        first, second = (HIDDEN_WAYS[scene.object] for scene in self.scenes)  # of a ghost and a star
        ways = first[noise_seed % 2], second[noise_seed % 2 if share == 1 else 0]
        return with_less_contrast(self.real, contrast, [Motion(way, 11.25) for way in ways])

    monkeypatch.setattr(HeldOutImages, "generate", generate)
    monkeypatch.setattr(gates, "prune_pipeline", lambda *_, **__: None)
    assert lines_of(gates, tmp_path, teacher=I2V_TEACHER, num_clips=2, seed=3) == [
        f"- {sharp}: sharpness at least 0.8 of real",
        f"- {both}: two ways over 8 noises in most images ({share:.2f})",
        "- not measured: FVD and KVD, which `--fvd` adds",
    ]


@pytest.mark.parametrize(
    ("contrast", "sharp", "num_right", "right"),
    [(0.85, "passed", 1, "FAILED"), (0.75, "FAILED", 2, "passed")],
    ids=["sharp, and the caption's way in half of the clips", "blurred, and the caption's way in all"],
)
def test_a_gate_of_captions_is_passed_by_its_threshold(
    gates, monkeypatch, tmp_path, contrast, sharp, num_right, right
):
    def generate(self, *_, **__):
        motions = [*self.real.motions[:num_right], *(2 - num_right) * [STANDS_STILL]]
        return with_less_contrast(self.real, contrast, motions)

    monkeypatch.setattr(HeldOutPrompts, "generate", generate)
    monkeypatch.setattr(gates, "prune_pipeline", lambda *_, **__: None)
    assert lines_of(gates, tmp_path, teacher=T2V_TEACHER, task="t2v", num_clips=2) == [
        f"- {sharp}: sharpness at least 0.8 of real",
        f"- {right}: the caption's way in at least 0.6 of the clips",
        "- not measured: FVD and KVD, which `--fvd` adds",
    ]


@pytest.mark.slow  # six seconds: four videos
def test_the_demo_teachers_gates_say_what_its_table_says(gates, monkeypatch, tmp_path):
    monkeypatch.setattr(gates, "NUM_NOISES", 2)
    sharpness, ways, _ = lines_of(gates, tmp_path, teacher=I2V_TEACHER, num_clips=1, seed=2)  # of a ghost
    lines = (tmp_path / "gates.md").read_text().splitlines()
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|"))
    names = ["real", "teacher", "first frame repeated", "teacher, frames shuffled", "pruned, not trained"]
    assert [row[0] for row in rows] == names
    figures = dict(zip(header, rows[1], strict=True))
    verdict = "passed" if float(figures["sharpness"]) >= 0.8 else "FAILED"
    assert sharpness == f"- {verdict}: sharpness at least 0.8 of real"
    assert ways in (
        "- passed: two ways over 2 noises in most images (1.00)",
        "- FAILED: two ways over 2 noises in most images (0.00)",
    )
    assert (tmp_path / "contact_sheet.png").is_file()
