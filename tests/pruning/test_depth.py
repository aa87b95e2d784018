"""Constraints on plans of transformers, and the rule that removes runs from the middle."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdmini_diffusers.pruning import (
    MIDDLE,
    PAPER_LITERAL,
    PLANS,
    VDMINI_HY,
    DepthConstraints,
    MiddleRule,
    PruningPlanError,
    TransformerPruningPlan,
    find_plan,
)
from vdmini_diffusers.pruning.depth import keep_ends


HUNYUAN_VIDEO = {"num_layers": 20, "num_single_layers": 40}
WAN = {"num_layers": 30}


def wan_plan(*kept):
    return TransformerPruningPlan("mine", "WanTransformer3DModel", {"blocks": kept})


class TestConstraints:
    @pytest.mark.parametrize(
        ("constraints", "message"),
        [
            (DepthConstraints(never_remove={"blocks": (0, 12)}), r"'mine' removes blocks\.12, which must stay"),
            (DepthConstraints(never_remove={"blocks": (-10,)}), r"'mine' removes blocks\.20, which must stay"),
            (DepthConstraints(never_remove={"blocks": (30,)}), "names block 30 of blocks, which has 30"),
            (DepthConstraints(never_remove={"layers": (0,)}), "names 'layers'; the teacher has blocks"),
            (DepthConstraints(contiguous=True), r"removes \[12, 13, 20\] of blocks, which do not follow one"),
            (
                DepthConstraints(max_run=1),
                r"removes blocks\.12 to blocks\.13 without a break: 2 blocks, and at most 1",
            ),
        ],
    )
    def test_what_they_forbid(self, constraints, message):
        plan = wan_plan(*range(12), *range(14, 20), *range(21, 30))
        with pytest.raises(PruningPlanError, match=message):
            constraints.check(plan, WAN)

    def test_what_they_allow(self):
        constraints = DepthConstraints(never_remove={"blocks": (0, 1, -1)}, contiguous=True, max_run=4)
        constraints.check(wan_plan(*range(12), *range(16, 30)), WAN)
        DepthConstraints().check(wan_plan(5), WAN)

    def test_a_run_is_counted_in_running_order_over_the_end_of_a_list(self):
        blocks = {"transformer_blocks": (0, 1), "single_transformer_blocks": (2,)}
        plan = TransformerPruningPlan("tail", "HunyuanVideoTransformer3DModel", blocks)
        config = {"num_layers": 4, "num_single_layers": 3}
        assert plan.removed_runs(config) == (
            (
                *("transformer_blocks.2", "transformer_blocks.3"),
                *("single_transformer_blocks.0", "single_transformer_blocks.1"),
            ),
        )
        DepthConstraints(contiguous=True, max_run=4).check(plan, config)
        with pytest.raises(PruningPlanError, match=r"transformer_blocks\.2 to single_transformer_blocks\.1"):
            DepthConstraints(max_run=3).check(plan, config)

    def test_a_plan_that_does_not_fit_is_refused_first(self):
        with pytest.raises(PruningPlanError, match=r"keeps blocks\.30"):
            DepthConstraints().check(wan_plan(0, 30), WAN)


class TestHunyuanVideo:
    def test_the_default_keeps_the_ends_and_removes_runs_of_four_from_the_middle(self):
        ends = {"transformer_blocks": (0, 1, 2, -2, -1), "single_transformer_blocks": (0, 1, -2, -1)}
        DepthConstraints(never_remove=ends, max_run=4).check(VDMINI_HY, HUNYUAN_VIDEO)
        assert [len(run) for run in VDMINI_HY.removed_runs(HUNYUAN_VIDEO)] == [4, 4, 4, 4, 4]
        assert VDMINI_HY.blocks["transformer_blocks"] == keep_ends(20, 8, 4)
        assert VDMINI_HY.blocks["single_transformer_blocks"] == keep_ends(40, 12, 4)

    def test_the_literal_plan_removes_what_is_shallow(self):
        removed = PAPER_LITERAL.removed_runs(HUNYUAN_VIDEO)
        assert [(run[0], len(run)) for run in removed] == [
            ("transformer_blocks.0", 8),
            ("single_transformer_blocks.0", 12),
        ]
        with pytest.raises(PruningPlanError, match=r"removes transformer_blocks\.0, which must stay"):
            DepthConstraints(never_remove={"transformer_blocks": (0,)}).check(PAPER_LITERAL, HUNYUAN_VIDEO)


@given(st.integers(1, 80), st.integers(0, 60), st.integers(1, 8))
def test_as_many_go_as_were_asked_in_runs_that_are_no_longer(count, num_removed, max_run):
    num_removed = min(num_removed, count // 2)
    kept = keep_ends(count, num_removed, max_run)
    assert len(kept) == count - num_removed and sorted(set(kept)) == list(kept) and set(kept) <= set(range(count))
    gaps = [b - a - 1 for a, b in zip((-1, *kept), (*kept, count), strict=True)]
    # Runs meet where nothing is left to stand between them.
    assert max(gaps) <= max_run or len(kept) < num_removed / max_run + 1
    assert not num_removed or (kept[0], kept[-1]) == (0, count - 1) or len(kept) < num_removed / max_run + 1


class TestRule:
    def test_the_kept_runs_at_the_ends_are_longer_than_those_between(self):
        assert MIDDLE.for_teacher("WanTransformer3DModel", {"num_layers": 40}).blocks["blocks"] == (
            *range(7), *range(10, 14), *range(18, 23), *range(26, 30), *range(33, 40),
        )  # fmt: skip

    def test_blocks_with_modules_beside_them_go_with_these_in_whole_groups(self):
        plan = MIDDLE.for_teacher("WanAnimateTransformer3DModel", {"num_layers": 40, "inject_face_latents_blocks": 5})
        assert plan.blocks["face_adapter"] == (0, 1, 2, 4, 6, 7)
        assert plan.blocks["blocks"] == (*range(15), *range(20, 25), *range(30, 40))
        vace = {"num_layers": 40, "vace_layers": [0, 5, 10, 15, 20, 25, 30, 35]}
        plan = MIDDLE.for_teacher("WanVACETransformer3DModel", vace)
        kept = plan.student_config(vace)
        assert kept["num_layers"] == 5 * len(kept["vace_layers"]) and kept["vace_layers"][:2] == [0, 5]

    def test_text_blocks_and_a_decoder_stay_whole(self):
        plan = MIDDLE.for_teacher("Kandinsky5Transformer3DModel", {"num_text_blocks": 4, "num_visual_blocks": 30})
        assert len(plan.blocks["text_transformer_blocks"]) == 4 and len(plan.blocks["visual_transformer_blocks"]) == 20
        motif = {"num_layers": 12, "num_single_layers": 24, "num_decoder_layers": 8}
        assert (
            MIDDLE.for_teacher("MotifVideoTransformer3DModel", motif).student_config(motif)["num_decoder_layers"] == 8
        )

    def test_a_transformer_without_one_of_its_lists(self):
        plan = MIDDLE.for_teacher("HunyuanVideoTransformer3DModel", {"num_layers": 12, "num_single_layers": 0})
        assert plan.blocks == {"transformer_blocks": (0, 1, 2, 3, 8, 9, 10, 11)}

    def test_it_has_a_name_among_the_plans(self):
        assert find_plan("middle") is MIDDLE is PLANS["middle"]
        rule = MiddleRule("milder", keep=0.9)
        assert find_plan(rule) is rule

    @pytest.mark.parametrize(("keep", "max_run"), [(0, 4), (1.5, 4), (0.5, 0)])
    def test_numbers_that_make_no_rule(self, keep, max_run):
        with pytest.raises(PruningPlanError, match="`keep` is a fraction up to 1 and `max_run` at least 1"):
            MiddleRule("wrong", keep=keep, max_run=max_run)
