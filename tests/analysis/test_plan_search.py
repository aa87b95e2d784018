"""The best plan under a budget, against all plans that there are."""

import functools
import itertools
import json
import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import student_of, tiny_teacher_unet, tiny_unet_inputs
from tiny_video_transformers import tiny_transformer

from vdmini_diffusers.analysis.cost_table import CostError, CostTable, PartCost, costed_parts, count_costs
from vdmini_diffusers.analysis.importance import ImportanceError, ImportanceTable
from vdmini_diffusers.analysis.plan_search import (
    Budget,
    PlanSearchError,
    cost_of_plan,
    importance_of_plan,
    plan_from_scores,
    plans_from_scores,
)
from vdmini_diffusers.families.block_lists import BLOCK_LISTS
from vdmini_diffusers.pruning import (
    VDMINI_UNET,
    DepthConstraints,
    PruningPlanError,
    TransformerPruningPlan,
    UNetPruningPlan,
)
from vdmini_diffusers.pruning.plans.block_rules import block_counts, places


DEPTHS = (2, 1, 2)


def unet_config(widths, heads=(1, 1, 1)):
    return {
        "block_out_channels": widths,
        "layers_per_block": DEPTHS,
        "num_attention_heads": heads,
        "down_block_types": ("DownBlockSpatioTemporal",) * 3,
        "up_block_types": ("UpBlockSpatioTemporal",) * 3,
    }


def subsets(count):
    return [kept for n in range(1, count + 1) for kept in itertools.combinations(range(count), n)]


@functools.cache
def unet_plans(widths, heads):
    """All that fit, tried one after the other."""
    found = []
    for k in (1, 2, 3):
        choices = [subsets(DEPTHS[d]) for d in range(k)] + [subsets(DEPTHS[2 - u] + 1) for u in range(3 - k, 3)]
        for keep_mid, *kept in itertools.product((False, True), *choices):
            plan = UNetPruningPlan(
                "x", dict(enumerate(kept[:k])), keep_mid, dict(zip(range(3 - k, 3), kept[k:], strict=True))
            )
            try:
                plan.student_config(unet_config(widths, heads))
            except PruningPlanError:
                continue
            found.append(plan)
    return found


def unet_parts():
    layers = [f"D.{d}.R.{i}" for d in range(3) for i in range(DEPTHS[d])]
    layers += [f"U.{u}.R.{i}" for u in range(3) for i in range(DEPTHS[2 - u] + 1)]
    return [*layers, "M"], ["D.0.downsamplers", "D.1.downsamplers", "U.0.upsamplers", "U.1.upsamplers"]


def kept_parts(plan):
    """Written out anew: names of layers and samplers that a student has."""
    if isinstance(plan, TransformerPruningPlan):
        return {f"{name}.{i}" for name, kept in plan.blocks.items() for i in kept}
    parts = {f"D.{d}.R.{i}" for d, kept in plan.down.items() for i in kept}
    parts |= {f"U.{u}.R.{i}" for u, kept in plan.up.items() for i in kept}
    parts |= {f"D.{d}.downsamplers" for d in plan.down if d + 1 in plan.down}
    return parts | {f"U.{u}.upsamplers" for u in plan.up} | ({"M"} if plan.keep_mid else set())


def random_tables(class_name, config, scored, others, seed):
    rng = random.Random(seed)
    costs = {
        name: PartCost(rng.randint(1, 50), rng.randint(1, 50), rng.randint(1, 400), rng.random())
        for name in (*scored, *others)
    }
    rest = PartCost(7, 7, rng.randint(1, 400), 0.5)
    everything = [*costs.values(), rest]
    whole = PartCost(
        sum(c.num_parameters for c in everything),
        sum(c.num_macs for c in everything),
        max(c.peak_bytes for c in everything),
        sum(c.milliseconds for c in everything),
    )
    kinds = dict.fromkeys(scored, "block") | dict.fromkeys(others, "sampler")
    table = CostTable(class_name, config, (1, 8, 8), 4, whole, costs | {"rest": rest}, kinds)
    scores = {name: {"a": rng.uniform(-1, 5), "b": rng.uniform(0, 1)} for name in scored}
    directions, unpruned = {"a": False, "b": True}, {"a": 1.0, "b": 0.5}
    return table, ImportanceTable(class_name, config, {}, directions, unpruned, scores, kinds)


def cost_by_hand(plan, table, metric):
    kept = [name for name in table.parts if name == "rest" or name in kept_parts(plan)]
    if metric == "memory_bytes":
        weights = 4 * sum(table.parts[name].num_parameters for name in kept)
        return weights + max(table.parts[name].peak_bytes for name in kept)
    return sum(getattr(table.parts[name], metric) for name in kept)


def value_by_hand(plan, scores, weights):
    total = 0.0
    for score, weight in weights.items():
        importance = scores.importance(score)
        norm = sum(map(abs, importance.values()))
        total += sum(weight * importance[name] / norm for name in kept_parts(plan) if name in importance)
    return total


def check_best(plans, table, scores, metric, limit, constraints=None):
    """The found plan fits and is as good as the best of all that do; or there is none, and the error says so."""
    weights = {"a": 1.0, "b": 0.5}
    fitting = [plan for plan in plans if cost_by_hand(plan, table, metric) <= limit]
    if not fitting:
        with pytest.raises(PlanSearchError, match="No plan has") as told:
            plan_from_scores(scores, table, budget=Budget(**{metric: limit}), weights=weights, constraints=constraints)
        nearest = min((cost_by_hand(plan, table, metric) for plan in plans), default=None)
        assert nearest is None or str(told.value).endswith(f"that any plan comes to is {nearest:,.6g} {metric}.")
        return None
    plan = plan_from_scores(
        scores, table, budget=Budget(**{metric: limit}), weights=weights, constraints=constraints, name="x"
    )
    assert plan in plans
    assert cost_by_hand(plan, table, metric) <= limit
    best = max(value_by_hand(other, scores, weights) for other in fitting)
    assert value_by_hand(plan, scores, weights) == pytest.approx(best, abs=1e-7)
    assert cost_of_plan(plan, table)[metric] == pytest.approx(cost_by_hand(plan, table, metric))
    every = [scores.importance(score) for score in weights]
    shares = [sum(one.values()) / sum(map(abs, one.values())) for one in every]
    whole = sum(weight * share for weight, share in zip(weights.values(), shares, strict=True))
    share = value_by_hand(plan, scores, weights) / whole
    assert importance_of_plan(plan, scores, table, weights) == pytest.approx(share, rel=1e-4)
    return plan


WIDTHS = [(32, 32, 64), (32, 64, 64), (32, 64, 96), (32, 32, 32)]
METRICS = ["num_parameters", "num_macs", "milliseconds", "memory_bytes"]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.sampled_from(WIDTHS),
    st.sampled_from([(1, 1, 1), (1, 2, 2)]),
    st.sampled_from(METRICS),
    st.floats(0.1, 1.0),
    st.integers(0, 10**6),
)
def test_a_unet_s_plan_is_the_best_of_all(widths, heads, metric, share, seed):
    table, scores = random_tables("AUNet", unet_config(widths, heads), *unet_parts(), seed)
    plans = unet_plans(widths, heads)
    assert len(plans) > 10
    most = cost_by_hand(UNetPruningPlan.keep_everything(table.config), table, metric)
    check_best(plans, table, scores, metric, share * most)


def transformer_plans(name, config, constraints):
    counts = block_counts(name, config)
    lists = {blocks.name: blocks for blocks in BLOCK_LISTS[name] if blocks.name in counts}
    hosts = [list_name for list_name, blocks in lists.items() if blocks.attached_to is None]
    plans = []
    for kept in itertools.product(*(subsets(counts[host]) for host in hosts)):
        blocks = dict(zip(hosts, kept, strict=True))
        for list_name, other in lists.items():
            if other.attached_to:
                at = places(other, config, counts[list_name])
                blocks[list_name] = tuple(i for i, place in enumerate(at) if place in blocks[other.attached_to])
        try:
            plan = TransformerPruningPlan("x", name, blocks)
            plan.student_config(config)
            constraints.check(plan, config)
        except PruningPlanError:
            continue
        plans.append(plan)
    return plans


CONSTRAINTS = {
    "none": DepthConstraints(),
    "max_run": DepthConstraints(max_run=1),
    "contiguous": DepthConstraints(contiguous=True),
}


@pytest.mark.parametrize("constraints", CONSTRAINTS.values(), ids=CONSTRAINTS)
@pytest.mark.parametrize(
    "name",
    # Two lists in one chain, lists of one length, a block that must stay, every n-th block that differs, adapters.
    ["HunyuanVideo", "Kandinsky6", "Mochi", "SanaWM", "WanAnimate"],
)
def test_a_transformer_s_plan_is_the_best_of_all(name, constraints):
    name = f"{name}Transformer3DModel"
    network = tiny_transformer(name)
    parts = [part for part in costed_parts(network) if part.count(".") == 1]
    config = {key: value for key, value in network.config.items() if not key.startswith("_")}
    plans = transformer_plans(name, config, constraints)
    num_found = 0
    for seed in range(6):
        table, scores = random_tables(name, config, parts, [], seed)
        most = table.whole.num_parameters
        num_found += (
            check_best(plans, table, scores, "num_parameters", most * (0.4 + 0.1 * seed), constraints) is not None
        )
    assert num_found >= 2


def test_blocks_that_must_stay_do():
    name = "WanTransformer3DModel"
    network = tiny_transformer(name)
    config = {key: value for key, value in network.config.items() if not key.startswith("_")}
    table, scores = random_tables(name, config, list(costed_parts(network)), [], 0)
    constraints = DepthConstraints(never_remove={"blocks": (0, -1)})
    least = min(cost_by_hand(plan, table, "num_macs") for plan in transformer_plans(name, config, constraints))
    plan = plan_from_scores(
        scores, table, budget=Budget(num_macs=least), weights={"a": 1}, constraints=constraints, name="ends"
    )
    assert plan.blocks["blocks"] == (0, len(network.blocks) - 1) and plan.name == "ends"
    with pytest.raises(PlanSearchError, match=rf"No plan has {least - 1} num_macs or less.* is {least} num_macs"):
        plan_from_scores(scores, table, budget=Budget(num_macs=least - 1), weights={"a": 1}, constraints=constraints)


@functools.cache
@torch.no_grad()
def unet_tables():
    unet = tiny_teacher_unet()
    inputs = tiny_unet_inputs()
    table = count_costs(unet, lambda: unet(*inputs), costed_parts(unet), (2, 64, 64), inputs)
    rng = random.Random(3)
    scores = {name: {"content_mse": rng.random(), "motion_mse": rng.random()} for name in table.parts}
    zeros = {"content_mse": 0.0, "motion_mse": 0.0}
    return (
        unet,
        table,
        ImportanceTable(table.class_name, table.config, {}, dict.fromkeys(zeros, False), zeros, scores, table.kinds),
    )


def test_parameters_of_a_plan_are_those_of_its_student(tmp_path):
    unet, table, scores = unet_tables()
    for text, kind, name in (
        (table.to_json_string(), CostTable, "c"),
        (scores.to_json_string(), ImportanceTable, "s"),
    ):
        (tmp_path / name).write_text(text)
        assert kind.read(tmp_path / name).to_json_string() == text
    table, scores = CostTable.read(tmp_path / "c"), ImportanceTable.read(tmp_path / "s")
    searched = plan_from_scores(scores, table, budget=Budget(num_parameters=table.whole.num_parameters // 2))
    for plan in (VDMINI_UNET, searched, UNetPruningPlan.keep_everything(unet.config)):
        student = student_of(unet, plan)
        assert cost_of_plan(plan, table)["num_parameters"] == sum(p.numel() for p in student.parameters())
    assert cost_of_plan(searched, table)["num_parameters"] <= table.whole.num_parameters // 2


@pytest.mark.parametrize("seed", range(4))
def test_the_least_memory_is_not_always_that_of_the_fewest_parameters(seed):
    widths, heads = WIDTHS[0], (1, 1, 1)
    table, scores = random_tables("AUNet", unet_config(widths, heads), *unet_parts(), seed)
    assert check_best(unet_plans(widths, heads), table, scores, "memory_bytes", 1) is None


def test_scores_are_weighed_apart():
    table, scores = random_tables("AUNet", unet_config((32, 32, 32)), *unet_parts(), 1)
    half = Budget(num_parameters=table.whole.num_parameters // 2)
    kept = {
        score: plan_from_scores(scores, table, budget=half, weights={score: 1}) for score in scores.higher_is_better
    }
    for score, other in (("a", "b"), ("b", "a")):
        values = {which: value_by_hand(plan, scores, {score: 1.0}) for which, plan in kept.items()}
        assert values[score] > values[other]


@pytest.mark.parametrize("metric", ["num_parameters", "num_macs", "memory_bytes"])
def test_the_nearest_budget_that_is_named_can_be_asked_for(metric):
    _, table, scores = unet_tables()
    with pytest.raises(PlanSearchError, match="The nearest") as told:
        plan_from_scores(scores, table, budget=Budget(**{metric: 1}))
    nearest = re.search(rf"comes to is ([\d,]+) {metric}", str(told.value))
    limit = int(nearest[1].replace(",", ""))
    assert cost_of_plan(plan_from_scores(scores, table, budget=Budget(**{metric: limit})), table)[metric] == limit
    with pytest.raises(PlanSearchError, match="The nearest"):
        plan_from_scores(scores, table, budget=Budget(**{metric: limit - 1}))


def test_the_next_best_plans_come_in_order_and_differ():
    _, table, scores = unet_tables()
    budget = Budget(num_parameters=table.whole.num_parameters // 2)
    plans = plans_from_scores(scores, table, 20, budget=budget)
    assert plans[0] == plan_from_scores(scores, table, budget=budget)
    values = [importance_of_plan(plan, scores, table) for plan in plans]
    assert values == sorted(values, reverse=True)
    assert len({(repr(plan.down), repr(plan.up), plan.keep_mid) for plan in plans}) == len(plans) > 3
    assert [plan.name for plan in plans[:3]] == ["searched", "searched-2", "searched-3"]
    assert all(cost_of_plan(plan, table)["num_parameters"] <= budget.limits["num_parameters"] for plan in plans)
    assert plans_from_scores(scores, table, 3, budget=budget) == plans[:3]


def layers(plan):
    kept = {(way, stage, i) for way in ("down", "up") for stage, own in getattr(plan, way).items() for i in own}
    return kept | ({"M"} if plan.keep_mid else set())


def test_plans_can_be_asked_to_differ():
    _, table, scores = unet_tables()
    plans = plans_from_scores(
        scores, table, 5, budget=Budget(num_parameters=table.whole.num_parameters // 2), min_difference=4
    )
    values = [importance_of_plan(plan, scores, table) for plan in plans]
    assert len(plans) > 1 and values == sorted(values, reverse=True)
    assert all(len(layers(one) ^ layers(other)) >= 4 for one, other in itertools.combinations(plans, 2))


def test_a_search_about_a_plan_stays_within_reach_of_it():
    _, table, scores = unet_tables()
    half = Budget(num_parameters=table.whole.num_parameters // 2)
    best = plans_from_scores(scores, table, 2, budget=half, min_difference=8)[1]
    plans = plans_from_scores(scores, table, 4, budget=half, near=best, max_difference=4)
    assert len(plans) > 1 and all(len(layers(plan) ^ layers(best)) <= 4 for plan in plans)
    with pytest.raises(PlanSearchError, match="Within 2 parts of the plan 'searched-2': No plan has 9 num"):
        plans_from_scores(scores, table, 4, budget=Budget(num_parameters=9), near=best, max_difference=2)
    with pytest.raises(PlanSearchError, match="`near` and `max_difference` together"):
        plans_from_scores(scores, table, 4, budget=half, near=best)


def test_a_layer_that_the_costs_lack_is_missed(tmp_path):
    _, table, scores = unet_tables()
    fewer = {name: cost for name, cost in table.parts.items() if name != "D.0.R-A.0"}
    lacking = CostTable(**{**vars(table), "parts": fewer})
    with pytest.raises(PlanSearchError, match=r"D\.0\.R-A\.0"):
        plan_from_scores(scores, lacking, budget=Budget(num_parameters=10**9))


def test_damaged_tables_are_refused(tmp_path):
    _, table, scores = unet_tables()
    file = tmp_path / "table.json"

    def changed(own, **fields):
        file.write_text(json.dumps(json.loads(own.to_json_string()) | fields))
        return file

    mid = {"content_mse": "x", "motion_mse": 0.0}
    for parts, message in (
        ({**scores.parts, "M": mid}, "the score content_mse of M is no number"),
        ({**scores.parts, "M": {"motion_mse": 1.0}}, "the score content_mse of M is no number"),
        ("x", "is no table of importance"),
    ):
        with pytest.raises(ImportanceError, match=message):
            ImportanceTable.read(changed(scores, parts=parts))
    with pytest.raises(ImportanceError, match=r"nowhere\.json is no table of importance: .* is missing"):
        ImportanceTable.read(tmp_path / "nowhere.json")
    whole = json.loads(table.to_json_string())["whole"]
    with pytest.raises(CostError, match="a cost of whole is no whole number from 0 on"):
        CostTable.read(changed(table, whole={**whole, "num_macs": None}))
    for config in (None, []):
        with pytest.raises(CostError, match="its config is none"):
            CostTable.read(changed(table, config=config))
        with pytest.raises(ImportanceError, match="its config is none"):
            ImportanceTable.read(changed(scores, config=config))
    for wrong in (-1, True):
        with pytest.raises(CostError, match="a cost of whole is no whole number"):
            CostTable.read(changed(table, whole={**whole, "num_parameters": wrong}))
    for wrong in (float("nan"), -5.0, "fast", True):
        with pytest.raises(CostError, match="the milliseconds of whole are"):
            CostTable.read(changed(table, whole={**whole, "milliseconds": wrong}))


def test_what_does_not_go_together_is_refused():
    _, table, scores = unet_tables()
    budget = Budget(num_parameters=10**9)
    other = ImportanceTable(**{**vars(scores), "config": {**scores.config, "num_frames": 3}})
    with pytest.raises(PlanSearchError, match="another config"):
        plan_from_scores(other, table, budget=budget)
    fewer = {name: value for name, value in scores.parts.items() if name != "U.3.R-A.1"}
    with pytest.raises(PlanSearchError, match=r"1 of 21 parts have no score, such as U\.3\.R-A\.1"):
        plan_from_scores(ImportanceTable(**{**vars(scores), "parts": fewer}), table, budget=budget)
    broken = {**scores.parts, "M": {"content_mse": float("nan"), "motion_mse": 0.0}}
    with pytest.raises(PlanSearchError, match="The importance of M by content_mse is nan"):
        plan_from_scores(ImportanceTable(**{**vars(scores), "parts": broken}), table, budget=budget)
    with pytest.raises(PlanSearchError, match="no milliseconds: measure time"):
        plan_from_scores(scores, table, budget=Budget(milliseconds=1.0))
    with pytest.raises(PlanSearchError, match="one limit or several, each above 0"):
        Budget()
    with pytest.raises(PlanSearchError, match=r"each above 0 and finite; got .*inf"):
        Budget(memory_bytes=float("inf"))
    for weights in ({}, {"content_mse": float("nan")}, {"content_mse": 0.0, "motion_mse": 0.0}, {"content_mse": -1.0}):
        with pytest.raises(PlanSearchError, match="Give finite weights from 0 on, one of them above 0"):
            plan_from_scores(scores, table, budget=budget, weights=weights)
    with pytest.raises(PlanSearchError, match="`constraints` are for transformers"):
        plan_from_scores(scores, table, budget=budget, constraints=DepthConstraints())
