"""The report of Table 3's rows on made-up results. `baselines.py` itself runs for hours."""

import csv
import json
from itertools import pairwise

import numpy as np
import pytest
from checkout import as_module


@pytest.fixture(scope="module")
def baselines():
    with as_module("benchmarks/baselines.py") as module:
        yield module


def numbers(fvd):
    shown = {"right_way": 0.5, "speed": 0.8, "sharpness": 0.9}
    return {"fvd": fvd, "kvd": fvd / 10, "psnr_to_teacher": 20.0, **shown}


RESULTS = {
    "teacher": {0: {"fvd": 100.0, "kvd": 10.0}},
    "VDMini, not trained": {0: numbers(900.0)},
    "VDMini, ICMD": {0: numbers(200.0), 1: numbers(220.0), 2: numbers(240.0)},
    "VDMini, without ICD": {0: numbers(300.0)},
    "DepGraph (L2), ICMD": {2: numbers(260.0), 0: numbers(210.0), 1: numbers(235.0)},
    "DepGraph (L2), without ICD": {0: numbers(310.0)},
}


def cost(method, ms, *shares):
    stages = {f"time at 1/{2**level}": share for level, share in enumerate(shares)}
    return {"method": method, "parameters": 1000, "GMACs": 0.5, "ms": ms, "times the teacher's": ms / 200, **stages}


COSTS = [
    cost("teacher", 200.0, 0.5, 0.2, 0.1),
    cost("VDMini", 100.0, 0.6, 0.3),
    cost("DepGraph (L2)", 150.0, 0.5, 0.3, 0.1),
]


def test_methods_are_compared_with_the_paper_s_by_recipe(baselines):
    assert baselines.compared_rows(RESULTS) == {
        "DepGraph (L2), ICMD": "VDMini, ICMD",
        "DepGraph (L2), without ICD": "VDMini, without ICD",
    }


def test_each_method_has_a_colour_and_times_add_up_to_the_whole(baselines):
    pytest.importorskip("matplotlib")
    left, right = baselines.plot(RESULTS, COSTS).axes
    shown = {line.get_color(): line.get_xdata()[0] for line in left.lines if len(line.get_xdata())}
    assert sorted(shown.values()) == [100, 150, 200] and len(shown) == 3
    assert sum(len(line.get_xdata()) for line in left.lines) == sum(map(len, RESULTS.values()))
    names = [text.get_text() for text in left.get_legend().get_texts()]
    assert len(set(names)) == len(names) == 3 + 3
    tops = np.array([[bar.get_y() + bar.get_height() for bar in bars] for bars in right.containers])
    assert tops[-1] == pytest.approx([200, 100, 150])
    assert all((after >= before).all() for before, after in pairwise(tops))
    assert right.get_ylim()[1] > 200


def test_the_report_is_whole(baselines, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "plot", lambda results, costs: Picture())
    args = baselines.Arguments(output_dir=tmp_path, num_clips=16, num_decoded_clips=4)
    text = baselines.write_results(args, RESULTS, COSTS, {"fvd": 50.0, "kvd": -1.0}, ["A note."])
    assert (tmp_path / "table.md").read_text() == text
    assert (
        "seeds 0, 1, 2; 16 held-out clips, of which 4 are decoded" in text
        and "FVD 50.00, KVD -1.00" in text
        and "A note." in text
    )
    assert text.count("\n| VDMini, ICMD |") == 1 and "| DepGraph (L2), ICMD, less VDMini, ICMD | 3 |" in text
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [(row["row"], row["seed"], row["ms"]) for row in rows[2:5]] == [
        ("VDMini, ICMD", str(seed), "100.0") for seed in range(3)
    ]
    assert json.loads((tmp_path / "results.json").read_text())["teacher"]["0"]["fvd"] == 100
    assert (tmp_path / "plot.png").read_bytes() == b"picture"
    assert "| VDMini | 0.6 | 0.3 |" in (tmp_path / "stages.md").read_text()


class Picture:
    """In the place of a figure of matplotlib, which need not be there."""

    def savefig(self, file, **kwargs):
        file.write(b"picture")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_decoded_clips": 1}, "`--num_decoded_clips` is 2 at least"),
        ({"num_train_clips": 8, "num_calibration_clips": 9}, "between 1 and the 8"),
        ({"latency_rounds": 0}, "`--latency_rounds` is 1 at least, not 0"),
        ({"only": ["VDMini, ICMD", "VDMini"]}, "`--only` has 'VDMini', and the rows are 'VDMini, ICMD', "),
    ],
)
def test_bad_numbers_are_refused_before_anything_runs(baselines, wrong, message):
    with pytest.raises(ValueError, match=message):
        baselines.Arguments(**wrong)


def test_a_folder_of_other_settings_is_refused(baselines, tmp_path):
    baselines.check_settings(baselines.Arguments(output_dir=tmp_path, seeds=[0]))
    baselines.check_settings(baselines.Arguments(output_dir=tmp_path, seeds=[0, 1, 2], num_parallel=2))
    with pytest.raises(ValueError, match="has other settings"):
        baselines.check_settings(baselines.Arguments(output_dir=tmp_path, max_train_steps=2))


def test_the_sheet_shows_the_rows_that_have_videos_those_of_a_method_beside_each_other(baselines, tmp_path):
    args = baselines.Arguments(output_dir=tmp_path, seeds=[0, 2])
    students = {method: tmp_path / method for method in ("VDMini", "DepGraph (Taylor)")}
    made = ("teacher", "measured/VDMini", "runs/vdmini_icmd_0", "runs/vdmini_icmd_2", "measured/DepGraph (Taylor)")
    for folder in made:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "first_videos.npz").touch()
    assert list(baselines.folders_of(args, students)) == [
        *("teacher", "VDMini, not trained", "VDMini, ICMD", "DepGraph (Taylor), not trained")
    ]
