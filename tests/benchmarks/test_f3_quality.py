"""The choices of layers that `f3_quality.py` compares, and its report. Its videos take an hour."""

import json

import pytest
from checkout import as_module


@pytest.fixture(scope="module")
def f3_quality():
    with as_module("benchmarks/f3_quality.py") as module:
        yield module


LAYERS = {
    name: {"attention to other frames": score, "PSNR without its attention": left, "PSNR without its block": left}
    for name, score, left in (("a", 0.1, 50.0), ("b", 0.3, 40.0), ("c", 0.2, 45.0))
}


def results_of(f3_quality, args, gain):
    """Made up: each choice but the lowest scores is better by `gain`."""
    rows = {"nothing": {seed: {"right_way": 0.9, "speed": 1.0} for seed in (0, 1)}}
    for variant in f3_quality.variants_of(args):
        way = 0.5 + (0 if variant.order == "lowest" else gain)
        rows[str(variant)] = {s: {"right_way": way, "speed": 1.0, "psnr_to_teacher": 30.0 + s} for s in (0, 1)}
    return rows


def test_other_choices_are_compared_with_the_lowest_scores_of_as_many_layers(f3_quality):
    variants = f3_quality.variants_of(f3_quality.Arguments(alphas=[0.5, 1.0]))
    assert len(set(map(str, variants))) == len(variants) == 2 * (3 + 1)
    against = f3_quality.compared_rows(variants)
    assert len(against) == 2 * 2 and against["block, highest 0.5"] == "block, lowest 0.5"
    assert set(against.values()) < set(map(str, variants))


@pytest.mark.parametrize("wrong", [{"alphas": [2.0]}, {"alphas": [0.0]}, {"seeds": []}, {"num_clips": 0}])
def test_bad_numbers_are_refused_before_anything_runs(f3_quality, wrong):
    with pytest.raises(ValueError, match="`--"):
        f3_quality.Arguments(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alphas": [0.5, 0.05]}, r"`--alphas` has 0\.05, which is less than one of the 16 layers"),
        ({"unit": "step"}, "takes one step, which cannot be ranked"),
    ],
)
def test_what_the_teacher_does_not_have_is_refused_before_anything_is_written(
    f3_quality, tmp_path, monkeypatch, wrong, message
):
    monkeypatch.setattr(f3_quality, "import_figure", lambda: None)
    with pytest.raises(ValueError, match=message):
        f3_quality.main(f3_quality.Arguments(output_dir=tmp_path / "out", **wrong))
    assert not (tmp_path / "out").exists()


def test_ranks_correlate_as_the_layers_worth_does(f3_quality):
    assert set(f3_quality.rank_correlations(LAYERS).values()) == {-1.0}  # the lower the score, the more is left
    turned = {
        name: row | {"attention to other frames": 1 - row["attention to other frames"]} for name, row in LAYERS.items()
    }
    assert set(f3_quality.rank_correlations(turned).values()) == {1.0}


def test_the_report_is_whole_and_goes_on_from_its_results(f3_quality, tmp_path):
    args = f3_quality.Arguments(output_dir=tmp_path, alphas=[0.5, 1.0])
    results = results_of(f3_quality, args, 0.1)
    text = f3_quality.write_report(args, results, LAYERS)
    assert (tmp_path / "table.md").read_text() == text
    assert "| attention, highest 0.5, less attention, lowest 0.5 | 2 | +0.100 [+0.100, +0.100] |" in text
    assert text.index("| a | 0.1 |") < text.index("| c | 0.2 |") < text.index("| b | 0.3 |")
    kept = json.loads((tmp_path / "results.json").read_text())
    assert list(kept) == list(results) and kept["block, all"]["1"]["psnr_to_teacher"] == 31


def test_lines_run_over_alpha_and_meet_where_all_layers_go(f3_quality, tmp_path):
    pytest.importorskip("matplotlib")
    args = f3_quality.Arguments(output_dir=tmp_path, alphas=[0.5, 1.0])
    figure = f3_quality.plot(args, results_of(f3_quality, args, 0.1))
    assert len(figure.axes) == 2 * 3
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert lines["lowest"] == pytest.approx([0.5, 0.5]) and lines["highest"] == pytest.approx([0.6, 0.5])
