"""What runs of several seeds give: kept, summed up, and compared in pairs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from vdmini_diffusers.demo.run_results import differences, earlier_results, keep_settings, levels, means
from vdmini_diffusers.demo.teachers import I2V_TEACHER


RESULTS = {
    "teacher": {0: {"way": 0.9}},
    "a": {0: {"way": 0.1, "fvd": 200.0}, 1: {"way": 0.5, "fvd": 220.0}, 2: {"way": 0.9, "fvd": 240.0}},
    "b": {2: {"way": 1.0, "fvd": 260.0}, 0: {"way": 0.2, "fvd": 210.0}, 1: {"way": 0.6, "fvd": 235.0}},
    "c": {0: {"way": 0.3}},
}


def test_levels_are_means_and_deviations_over_seeds_and_all_rows_have_the_same_columns():
    lines = {line["row"]: line for line in levels(RESULTS, ("fvd", "way", "never measured"))}
    assert list(lines) == list(RESULTS)
    assert lines["a"] == {"row": "a", "seeds": 3, "fvd": "220.000 ± 20.000", "way": "0.500 ± 0.400"}
    assert lines["c"] == {"row": "c", "seeds": 1, "fvd": "", "way": "0.300"}


def test_differences_are_paired_by_seed_and_one_seed_is_no_pair():
    (line,) = differences(RESULTS, {"a": None, "b": "a", "c": "a", "gone": "a", "teacher": "gone"}, ("fvd", "way"))
    half = 4.302653 * np.std([10, 15, 20], ddof=1) / 3**0.5  # Student's t of two degrees of freedom
    assert line == {
        "row": "b, less a",
        "seeds": 3,
        "fvd": f"+15.000 [{15 - half:+.3f}, {15 + half:+.3f}]",
        "way": "+0.100 [+0.100, +0.100]",
    }


def test_a_measure_that_one_of_the_seeds_lacks_is_not_compared():
    runs = {"a": {0: {"way": 0.1, "fvd": 1.0}, 1: {"way": 0.2}}, "b": {0: {"way": 0.2, "fvd": 2.0}, 1: {"way": 0.4}}}
    (line,) = differences(runs, {"b": "a"}, ("way", "fvd"))
    assert "fvd" not in line and line["way"].startswith("+0.150")


def test_results_go_on_from_those_of_earlier_starts(tmp_path):
    file = tmp_path / "results.json"
    assert earlier_results(file) == {}
    file.write_text(json.dumps(RESULTS))
    assert earlier_results(file) == RESULTS


def test_a_folder_of_other_settings_is_refused_and_paths_count_by_their_last_part(tmp_path):
    keep_settings(tmp_path, {"steps": 1, "teacher": Path("here/teacher")})
    keep_settings(tmp_path, {"teacher": Path("there/teacher"), "steps": 1})
    before = (tmp_path / "settings.json").read_text()
    with pytest.raises(ValueError, match="has other settings"):
        keep_settings(tmp_path, {"steps": 2, "teacher": Path("here/teacher")})
    assert (tmp_path / "settings.json").read_text() == before


def test_a_setting_that_grows_takes_further_entries_and_keeps_those_it_has(tmp_path):
    def keep(**rows: int) -> None:
        keep_settings(tmp_path, {"steps": 1, "rows": rows}, growing=("rows",))

    keep(a=1)
    keep(b=2, a=1)
    assert json.loads((tmp_path / "settings.json").read_text()) == {"steps": 1, "rows": {"a": 1, "b": 2}}
    for fewer_or_other in ({"a": 1}, {"a": 1, "b": 3}):
        with pytest.raises(ValueError, match="has other settings"):
            keep(**fewer_or_other)
    with pytest.raises(ValueError, match="has other settings"):
        keep_settings(tmp_path, {"steps": 1, "rows": {"a": 1, "b": 2, "c": 3}})


def test_results_by_nobody_knows_which_settings_are_refused(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    with pytest.raises(ValueError, match=r"results.json without settings.json: copy both"):
        keep_settings(tmp_path, {"steps": 1})
    assert not (tmp_path / "settings.json").exists()


def test_another_teacher_of_the_same_name_is_told_apart(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    teachers = [tmp_path / name / I2V_TEACHER.name for name in ("here", "there")]
    for teacher in teachers:
        (teacher / "unet").mkdir(parents=True)
        shutil.copy(I2V_TEACHER / "model_index.json", teacher)
        (teacher / "unet" / "diffusion_pytorch_model.safetensors").write_text(str(teacher))
    keep_settings(folder, {"teacher": teachers[0]}, teachers[0])
    keep_settings(folder, {"teacher": teachers[0]}, teachers[0])
    with pytest.raises(ValueError, match="has other settings"):
        keep_settings(folder, {"teacher": teachers[1]}, teachers[1])


def test_means_are_over_clips():
    assert means({"way": [0.0, 1.0], "fvd": [3.0]}) == {"way": 0.5, "fvd": 3.0}
