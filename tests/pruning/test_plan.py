"""A plan is data: it survives JSON, cannot be changed, and says why it refuses what is not a plan."""

import copy
import dataclasses
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_teacher_unet

from vdmini_diffusers.pruning import (
    PLANS,
    VDMINI_UNET,
    PruningPlan,
    PruningPlanError,
    TransformerPruningPlan,
    UNetPruningPlan,
    find_plan,
)


names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)  # printable
indices = st.sets(st.integers(0, 60), min_size=1, max_size=5).map(lambda kept: tuple(sorted(kept)))
stages = st.dictionaries(st.integers(0, 12), indices, min_size=1, max_size=4)
unet_plans = st.builds(UNetPruningPlan, names, stages, st.booleans(), stages)
hunyuan_blocks = st.fixed_dictionaries({"transformer_blocks": indices, "single_transformer_blocks": indices})
transformer_plans = st.builds(TransformerPruningPlan, names, st.just("HunyuanVideoTransformer3DModel"), hunyuan_blocks)


@given(unet_plans | transformer_plans)
def test_json_gives_an_equal_plan_back_with_the_same_hash(plan):
    again = PruningPlan.from_json_string(plan.to_json_string())
    assert again == plan and hash(again) == hash(plan) and type(again) is type(plan)
    assert again.to_json_string() == plan.to_json_string()


@given(unet_plans | transformer_plans, unet_plans | transformer_plans)
def test_plans_are_equal_exactly_when_their_json_is(one, other):
    assert (one == other) == (one.to_json_string() == other.to_json_string())


def test_the_json_reads_as_the_plan_does():
    assert VDMINI_UNET.to_json_string() == (
        "{\n"
        '  "kind": "unet",\n'
        '  "name": "vdmini",\n'
        '  "down": {"0": [0], "1": [0], "2": [0, 1]},\n'
        '  "keep_mid": false,\n'
        '  "up": {"1": [0, 1, 2], "2": [0, 2], "3": [0, 2]}\n'
        "}\n"
    )


def test_stages_may_be_given_in_any_order_and_as_lists():
    assert UNetPruningPlan("vdmini", {2: [0, 1], 1: [0], 0: [0]}, False, {3: [0, 2], 1: [0, 1, 2], 2: [0, 2]}) == (
        VDMINI_UNET
    )


def test_plans_that_differ_in_one_field_are_different():
    others = [
        dataclasses.replace(VDMINI_UNET, **change)
        for change in (
            {"name": "other"},
            {"keep_mid": True},
            {"down": {0: (0,), 1: (0,), 2: (0,)}},
            {"up": {1: (0, 1, 2), 2: (0, 2), 3: (0, 1)}},
        )
    ]
    assert len({VDMINI_UNET, *others}) == 5


def test_a_plan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        VDMINI_UNET.name = "other"
    with pytest.raises(TypeError):
        VDMINI_UNET.down[0] = (1,)
    kept = {0: [0]}
    plan = UNetPruningPlan("copied", kept, True, {3: [0, 1]})
    kept[0].append(1)
    kept[1] = [0]
    assert dict(plan.down) == {0: (0,)}


def test_a_plan_can_be_copied_and_sent_to_another_process():
    assert copy.deepcopy(VDMINI_UNET) == pickle.loads(pickle.dumps(VDMINI_UNET)) == VDMINI_UNET


def test_the_paper_s_plan_is_found_by_its_name():
    assert PLANS["vdmini"] is VDMINI_UNET
    assert all(name == plan.name for name, plan in PLANS.items())


def test_a_command_line_names_a_plan_of_the_paper_or_a_file(tmp_path):
    plan = UNetPruningPlan("other", {0: (0,)}, False, {3: (0, 2)})
    (tmp_path / "plan.json").write_text(plan.to_json_string())
    assert find_plan("vdmini", PLANS) is VDMINI_UNET
    assert find_plan(str(tmp_path / "plan.json"), PLANS) == plan
    for name in ("vdmimi", str(tmp_path)):
        with pytest.raises(
            PruningPlanError, match=r"is no plan: neither one of vdmini, .* nor a JSON file with a plan"
        ):
            find_plan(name, PLANS)


def test_keep_everything_names_every_layer_of_the_teacher():
    plan = UNetPruningPlan.keep_everything(tiny_teacher_unet().config)
    assert dict(plan.down) == dict.fromkeys(range(4), (0, 1))
    assert dict(plan.up) == dict.fromkeys(range(4), (0, 1, 2))
    assert plan.keep_mid


def test_keep_everything_of_a_student_keeps_no_mid_block():
    config = {"layers_per_block": (1, 3), "block_out_channels": (32, 64), "mid_block_type": None}
    plan = UNetPruningPlan.keep_everything(config)
    assert dict(plan.down) == {0: (0,), 1: (0, 1, 2)}
    assert dict(plan.up) == {0: (0, 1, 2, 3), 1: (0, 1)}
    assert not plan.keep_mid


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": ""}, "`name` of a plan is a non-empty string"),
        ({"name": 1}, "`name` of a plan is a non-empty string"),
        ({"keep_mid": 1}, "`keep_mid` is true or false, not 1"),
        ({"down": {}}, "`down` maps each kept part .* is not empty"),
        ({"down": [0]}, "`down` maps each kept part"),
        ({"down": {-1: (0,)}}, "`down` has the key -1"),
        ({"down": {"zero": (0,)}}, "`down` has the key 'zero'"),
        ({"down": {True: (0,)}}, "`down` has the key True"),
        ({"up": {1: ()}}, r"`up\[1\]` is empty: leave out what is removed as a whole"),
        ({"up": {1: (0, 0)}}, r"`up\[1\]` rises and has no index twice"),
        ({"up": {1: (1, 0)}}, r"`up\[1\]` rises and has no index twice"),
        ({"up": {1: (-1,)}}, r"`up\[1\]` lists kept indices counted from 0"),
        ({"up": {1: (0.0,)}}, r"`up\[1\]` lists kept indices counted from 0"),
        ({"up": {1: (True,)}}, r"`up\[1\]` lists kept indices counted from 0"),
        ({"up": {1: 0}}, r"`up\[1\]` lists kept indices counted from 0"),
    ],
)
def test_a_malformed_plan_is_refused_in_python_and_in_json(change, complaint):
    with pytest.raises(PruningPlanError, match=complaint):
        dataclasses.replace(VDMINI_UNET, **change)
    if True in change.get("down", {}):
        return  # JSON has no such key
    fields = {**json.loads(VDMINI_UNET.to_json_string()), **change}
    with pytest.raises(PruningPlanError, match=complaint.replace("key -1", "key '-1'")):
        PruningPlan.from_json_string(json.dumps(fields))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "this is not"),
        ("{", "this is not"),
        ("[]", "a JSON object, not list"),
        ("null", "a JSON object, not NoneType"),
        ("{}", "`kind` of a pruning plan is one of .* not None"),
        (
            '{"kind": "vae"}',
            r"`kind` of a pruning plan is one of \['transformer', 'unet', 'unet_channels', 'vae_decoder'\], not 'vae'",
        ),
        ('{"kind": "unet", "name": "x"}', r"missing: \['down', 'keep_mid', 'up'\], unknown: \[\]"),
        ('{"kind": "transformer", "name": "x", "blocks": {"a": [0]}, "heads": 1}', r"unknown: \['heads'\]"),
    ],
)
def test_text_that_is_not_a_plan_is_refused(text, complaint):
    with pytest.raises(PruningPlanError, match=complaint):
        PruningPlan.from_json_string(text)


def test_a_refusal_is_a_value_error():
    assert issubclass(PruningPlanError, ValueError)
