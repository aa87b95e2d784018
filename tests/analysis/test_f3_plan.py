"""Which units a plan takes, and what is refused as a plan."""

import json

import pytest

from vdmini_diffusers.analysis.f3 import F3Error, F3Plan


WAN = "WanTransformer3DModel"
SCORES = {"blocks.0": 0.5, "blocks.1": 0.1, "blocks.2": 0.1, "blocks.3": 0.9}
PLAN = F3Plan.from_scores(WAN, SCORES, 0.5)


@pytest.mark.parametrize(
    ("alpha", "order", "pruned"),
    [
        (0.0, "lowest", ()),
        (0.49, "lowest", ("blocks.1",)),  # rounded down; of equal scores the first
        (0.75, "lowest", ("blocks.0", "blocks.1", "blocks.2")),
        (1.0, "lowest", ("blocks.0", "blocks.1", "blocks.2", "blocks.3")),
        (0.5, "highest", ("blocks.0", "blocks.3")),
    ],
)
def test_the_share_alpha_with_the_lowest_scores_is_pruned(alpha, order, pruned):
    plan = F3Plan.from_scores(WAN, SCORES, alpha, order=order)
    assert plan.pruned == pruned and F3Plan.from_json_string(plan.to_json_string()).order == order


def test_a_share_of_whole_units_is_not_lost_to_rounding():
    scores = {f"blocks.{i}": i / 100 for i in range(100)}
    assert [len(F3Plan.from_scores(WAN, scores, n / 100).pruned) for n in range(101)] == list(range(101))


def test_random_layers_follow_from_the_seed():
    plans = [F3Plan.from_scores(WAN, SCORES, 0.5, order="random", seed=seed) for seed in range(8)]
    assert plans[0] == F3Plan.from_scores(WAN, SCORES, 0.5, order="random", seed=0)
    assert len({plan.pruned for plan in plans}) > 2 and all(len(plan.pruned) == 2 for plan in plans)


def test_a_plan_of_steps_serves_other_numbers_of_steps():
    plan = F3Plan.from_scores(WAN, {"999.0": 0.6, "500.0": 0.4, "0.0": 0.2}, 0.4, unit="step")
    assert plan.pruned == ("0.0",)
    assert [plan.prunes_step(t) for t in (1200, 999, 251, 250, 249.9, 0)] == [False, False, False, False, True, True]


def test_one_step_cannot_be_ranked():
    with pytest.raises(F3Error, match=r"one step cannot be ranked: rank layers"):
        F3Plan.from_scores("UNetSpatioTemporalConditionModel", {"1.6378": 0.5}, 0.5, unit="step")


def test_plans_go_to_json_and_back():
    for plan in (PLAN, F3Plan.from_scores("UNet3DConditionModel", {"a": 0, "b": 1}, 1, part="block")):
        assert F3Plan.from_json_string(plan.to_json_string()) == plan
    fields = json.loads(PLAN.to_json_string())
    assert fields["kind"] == "f3" and fields["pruned"] == ["blocks.1", "blocks.2"] and fields["alpha"] == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "unet"}, "whose `kind` is 'f3'"),
        ({"speed": 2}, r"unknown: \['speed'\]"),
        ({"model_class": "UNet2DModel"}, "`model_class` is one of .*, not 'UNet2DModel'"),
        ({"unit": "head"}, "`unit` is one of layer, step"),
        ({"unit": ["layer"]}, "`unit` is one of layer, step"),
        ({"unit": "step"}, "named by its timestep, such as '961.0', not 'blocks.0'"),
        ({"part": "block"}, "no temporal blocks of their own"),
        ({"alpha": 1.5}, "`alpha` is a number from 0 to 1, not 1.5"),
        ({"alpha": float("nan")}, "`alpha` is a number"),
        ({"alpha": True}, "`alpha` is a number"),
        ({"scores": {}}, "is not empty"),
        ({"scores": SCORES | {"blocks.2": float("nan")}}, "score of 'blocks.2' is a number from 0 to 1, not nan"),
        ({"scores": SCORES | {"blocks.2": "0.5"}}, "score of 'blocks.2'"),
        ({"pruned": ["blocks.9", "blocks.1"]}, "'blocks.9', which is not among the scores"),
        ({"pruned": ["blocks.1", "blocks.1"]}, "is 2 different ones"),
        ({"pruned": ["blocks.1"]}, "`alpha` 0.5 of 4 units is 2"),
        ({"pruned": "blocks.1"}, "`pruned` lists names"),
    ],
)
def test_a_damaged_or_foreign_plan_is_refused(changes, message):
    text = json.dumps(json.loads(PLAN.to_json_string()) | changes)
    with pytest.raises(F3Error, match=message):
        F3Plan.from_json_string(text)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"kind": "f3"}', "null"])
def test_what_is_no_plan_at_all_is_refused(text):
    with pytest.raises(F3Error, match="plan of F3-Pruning"):
        F3Plan.from_json_string(text)
