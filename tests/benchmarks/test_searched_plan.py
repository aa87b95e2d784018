"""The search of `searched_plan.py` and its report. Its trainings run for an hour."""

import random
from itertools import chain

import pytest
import torch
from checkout import ROOT, as_module
from tiny import tiny_teacher_unet, tiny_unet_inputs

from vdmini_diffusers.analysis.cost_table import costed_parts, count_costs
from vdmini_diffusers.analysis.importance import ImportanceTable
from vdmini_diffusers.analysis.plan_search import cost_of_plan, importance_of_plan
from vdmini_diffusers.demo.teachers import I2V_TEACHER, T2V_TEACHER
from vdmini_diffusers.pruning.presets import BK_SDM_BASE, VDMINI_UNET


@pytest.fixture(scope="module")
def searched_plan():
    with as_module("benchmarks/searched_plan.py") as module:
        yield module


@pytest.fixture(scope="module")
def tables():
    unet, inputs = tiny_teacher_unet(), tiny_unet_inputs()
    with torch.no_grad():
        costs = count_costs(unet, lambda: unet(*inputs), costed_parts(unet), (2, 64, 64), inputs)
    rng = random.Random(0)
    scores = {name: {"content_mse": rng.random(), "motion_mse": rng.random()} for name in costs.parts}
    zeros = {"content_mse": 0.0, "motion_mse": 0.0}
    return ImportanceTable(
        costs.class_name, costs.config, {}, dict.fromkeys(zeros, False), zeros, scores, costs.kinds
    ), costs


def test_the_searched_student_costs_no_more_than_the_paper_s_and_keeps_more_of_what_was_scored(searched_plan, tables):
    scores, costs = tables
    found, second = searched_plan.search(scores, costs, 2)
    paper, own = cost_of_plan(VDMINI_UNET, costs), cost_of_plan(found, costs)
    assert all(own[name] <= paper[name] for name in ("num_parameters", "num_macs"))
    assert importance_of_plan(second, scores, costs) <= importance_of_plan(found, scores, costs)
    first, second = searched_plan.describe({"paper": VDMINI_UNET, "searched": found}, scores, costs)
    assert float(second["importance"]) > float(first["importance"])
    assert first["parameters"] == f"{paper['num_parameters']:,.0f}"
    assert first["mid block"] == "goes" and first["layers that stay, down"] == "0: 0; 1: 0; 2: 0, 1"


def test_the_table_compares_the_trained_plans_by_seed(searched_plan):
    args = searched_plan.Arguments(importance=None, cost=None)
    trained = {0: {"right_way": 0.5}, 1: {"right_way": 0.7}}
    results = {
        "the paper's plan, ICMD": trained,
        "the searched plan, ICMD": {seed: {"right_way": run["right_way"] + 0.1} for seed, run in trained.items()},
    }
    text = searched_plan.table_of(args, [{"plan": "a"}], [{"candidate": "b"}], results)
    assert "| the searched plan, ICMD, less the paper's plan, ICMD | 2 | +0.100 [+0.100, +0.100] |" in text


RESULTS = ROOT / "benchmarks" / "results" / "importance"


def test_tables_of_another_denoiser_are_refused_before_anything_is_written(searched_plan, tmp_path):
    def arguments(teacher, importance, cost):
        tables = {"importance": RESULTS / f"{importance}_importance.json", "cost": RESULTS / f"{cost}_cost.json"}
        return searched_plan.Arguments(**tables, teacher=teacher, output_dir=tmp_path / "out")

    for teacher, name in ((I2V_TEACHER, "i2v"), (T2V_TEACHER, "t2v")):
        scores, costs = searched_plan.read_tables(arguments(teacher, name, name))
        assert scores.parts and costs.parts
    for tables in (("t2v", "t2v"), ("i2v", "t2v"), ("t2v", "i2v")):
        with pytest.raises(ValueError, match=r"t2v_.*\.json is of another denoiser than .*i2v_teacher's"):
            searched_plan.main(arguments(I2V_TEACHER, *tables))
    assert not (tmp_path / "out").exists()


def test_students_of_another_plan_are_not_mixed_in(searched_plan, tmp_path):
    file = tmp_path / "plan.json"
    searched_plan.keep_plan(VDMINI_UNET, file)
    searched_plan.keep_plan(VDMINI_UNET, file)
    with pytest.raises(ValueError, match="is another plan than the search now finds"):
        searched_plan.keep_plan(BK_SDM_BASE, file)
    assert file.read_text() == VDMINI_UNET.to_json_string()


def test_results_of_other_scores_are_refused_wherever_they_lie(searched_plan, tmp_path):
    for name in ("importance", "cost", "moved"):
        (tmp_path / f"{name}.json").write_text("{}")
    folder = tmp_path / "out"
    folder.mkdir()
    args = {"importance": tmp_path / "importance.json", "cost": tmp_path / "cost.json", "output_dir": folder}
    searched_plan.check_settings(searched_plan.Arguments(**args))
    searched_plan.check_settings(searched_plan.Arguments(**args | {"importance": tmp_path / "moved.json"}, seeds=[5]))
    (tmp_path / "importance.json").write_text("{} ")
    with pytest.raises(ValueError, match="has other settings"):
        searched_plan.check_settings(searched_plan.Arguments(**args))


def table_of_errors(errors):
    rows = {name: {"content_mse": content, "motion_mse": motion} for name, (content, motion) in errors.items()}
    zeros = {"content_mse": 0.0, "motion_mse": 0.0}
    return ImportanceTable("A", {}, {}, dict.fromkeys(zeros, False), zeros, rows, dict.fromkeys(rows, "plan"))


def layers(plan):
    kept = {(way, stage, i) for way in ("down", "up") for stage, own in getattr(plan, way).items() for i in own}
    return kept | ({"mid"} if plan.keep_mid else set())


def test_the_search_goes_on_about_the_best_student_until_none_near_it_is_better(searched_plan, tables):
    scores, costs = tables
    found = searched_plan.search(scores, costs, 2, min_difference=4)
    hidden = BK_SDM_BASE  # students are better the more they have in common with it, whatever their parts' scores
    turns = []

    def measure(plans, turn):
        turns.append([plan.name for plan in plans])
        return table_of_errors({plan.name: (1 + len(layers(plan) ^ layers(hidden)), 1.0) for plan in plans})

    plans, measured = searched_plan.search_on(scores, costs, found, 3, measure)
    assert turns[0] == ["vdmini", "searched", "searched-2"] and all(len(turn) <= 3 for turn in turns[1:])
    assert len(turns) > 2 and sorted(chain(*turns)) == sorted(plan.name for plan in plans) == sorted(measured.parts)
    distances = [len(layers(plan) ^ layers(hidden)) for plan in plans]
    assert distances == sorted(distances) and distances[0] < len(layers(VDMINI_UNET) ^ layers(hidden))
    paper = cost_of_plan(VDMINI_UNET, costs)
    assert all(cost_of_plan(plans[0], costs)[name] <= paper[name] for name in ("num_parameters", "num_macs"))
    assert len({str((plan.down, plan.keep_mid, plan.up)) for plan in plans}) == len(plans)  # none is measured twice


def test_the_candidate_with_the_least_error_as_a_student_comes_first(searched_plan, tables):
    scores, costs = tables
    plans = [VDMINI_UNET, *searched_plan.search(scores, costs, 2)]
    measured = table_of_errors({"vdmini": (4.0, 1.0), plans[1].name: (2.0, 4.0), plans[2].name: (1.0, 2.0)})
    lines = searched_plan.describe_candidates(searched_plan.ranked(plans, measured), measured, scores, costs)
    assert [line["candidate"] for line in lines] == [plan.name for plan in (plans[2], plans[0], plans[1])]
    assert lines[0]["both, over the sum of all"] == f"{1 / 7 + 2 / 7:.4f}"
