"""What every run of a comparison shares, and the order of runs. Training itself is tested by its scripts."""

import json
import threading

import pytest

from vdmini_diffusers.demo.training_runs import ComparisonArguments, as_trained, complete_run, recipe_flags


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": []}, "one or more different numbers, not \\[\\]"),
        ({"seeds": [1, 1]}, "one or more different numbers"),
        ({"num_clips": 8, "num_decoded_clips": 9}, "between 1 and the 8 of `--num_clips`, not 9"),
        ({"max_train_steps": 0}, "`--max_train_steps` is 1 at least, not 0"),
        ({"num_parallel": 0}, "`--num_parallel` is 1 at least, not 0"),
    ],
)
def test_bad_numbers_are_refused_before_anything_runs(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ComparisonArguments(output_dir=tmp_path, **wrong)


def test_more_seeds_are_welcome_in_a_folder_and_other_settings_are_not(tmp_path):
    folder = tmp_path / "new"
    ComparisonArguments(output_dir=folder, seeds=[0]).keep_settings(free=("num_clips",), more={"tables": "a"})
    again = ComparisonArguments(output_dir=folder, seeds=[0, 1], num_parallel=2, num_clips=100)
    again.keep_settings(free=("num_clips",), more={"tables": "a"})
    kept = json.loads((folder / "settings.json").read_text())
    assert kept["teacher"] == "i2v_teacher" and kept["tables"] == "a"
    assert not kept.keys() & {"seeds", "num_parallel", "output_dir", "num_clips"}
    with pytest.raises(ValueError, match="has other settings"):
        again.keep_settings(free=("num_clips",), more={"tables": "b"})
    with pytest.raises(ValueError, match="has other settings"):
        ComparisonArguments(output_dir=folder, train_batch_size=4).keep_settings(("num_clips",), {"tables": "a"})


def test_runs_of_a_comparison_differ_in_what_is_compared_alone(tmp_path):
    args = ComparisonArguments(output_dir=tmp_path, max_train_steps=50)
    given = {"student": tmp_path / "a", "latents": tmp_path / "l", "learning_rate": 1e-3}
    one = recipe_flags(args, **given, output_dir=tmp_path / "0", seed=0)
    other = recipe_flags(args, **given, output_dir=tmp_path / "1", seed=1)
    assert {name for name in one if one[name] != other[name]} == {"seed", "output_dir"}
    assert (one["mca_start_step"], one["max_train_steps"], "task" in one) == (15, 50, False)
    text = recipe_flags(args, **given, output_dir=tmp_path / "2", seed=0, ode_teacher=tmp_path / "base")
    assert text["task"] == "t2v" and text["ode_teacher_model_name_or_path"] == tmp_path / "base"


def test_runs_are_given_back_as_they_are_done():
    first_is_measured = threading.Event()

    def train(job: str) -> None:
        assert job == "short" or first_is_measured.wait(60)

    done = []
    for job in as_trained(["long", "short"], train, num_parallel=2):
        done.append(job)
        first_is_measured.set()
    assert done == ["short", "long"]


def test_after_an_error_no_further_run_begins_while_another_is_measured():
    begun, failed = [], threading.Event()

    def train(job: int) -> None:
        begun.append(job)
        if job == 1:
            failed.set()
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        for _ in as_trained(range(50), train, num_parallel=1):
            assert failed.wait(60)  # this one's videos take longer than it takes others to fail
    assert begun == [0, 1]


def test_the_error_is_the_run_s_own_also_if_it_comes_before_all_are_handed_out():
    def train(job: int) -> None:
        raise OSError("at once")

    with pytest.raises(OSError, match="at once"):
        list(as_trained(range(50), train, num_parallel=2))


def test_a_run_that_was_killed_over_its_checkpoints_loses_them_at_the_next_start(tmp_path):
    (tmp_path / "checkpoint-100").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    complete_run(tmp_path / "no_script.py", {}, tmp_path)  # which would fail if it were run
    assert [file.name for file in tmp_path.iterdir()] == ["model_index.json"]
