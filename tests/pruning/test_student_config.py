"""Which plans fit which teachers: the paper's forced choices, and any plan against teachers cut by hand."""

import pytest
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention_processor import Attention
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from tiny import cut_by_hand

from vdmini_diffusers import VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.pruning import VDMINI_UNET, PruningPlanError, UNetPruningPlan


SVD_CONFIG = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 3 + ("DownBlockSpatioTemporal",),
    "up_block_types": ("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 3,
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "transformer_layers_per_block": 1,
    "num_attention_heads": (5, 10, 20, 20),
}


def vdmini_with(**change):
    down, up = dict(VDMINI_UNET.down), dict(VDMINI_UNET.up)
    down |= change.get("down", {})
    up |= change.get("up", {})
    return UNetPruningPlan("variant", down, change.get("keep_mid", False), up)


def test_the_paper_s_student_as_a_config():
    assert VDMINI_UNET.student_config(SVD_CONFIG) == {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 3,
        "up_block_types": ("CrossAttnUpBlockSpatioTemporal",) * 3,
        "layers_per_block": (1, 1, 2),
        "cross_attention_dim": 1024,
        "transformer_layers_per_block": 1,
        "num_attention_heads": (5, 10, 20),
        "mid_block_type": None,
    }


def test_keeping_everything_gives_the_teacher_s_config():
    config = UNetPruningPlan.keep_everything(SVD_CONFIG).student_config(SVD_CONFIG)
    assert config == {**SVD_CONFIG, "layers_per_block": (2,) * 4, "mid_block_type": "UNetMidBlockSpatioTemporal"}


def test_a_student_of_a_student():
    first = vdmini_with(down={0: (0, 1)}, up={3: (0, 1, 2)}).student_config(SVD_CONFIG)
    plan = UNetPruningPlan("again", {0: (0,), 1: (0,), 2: (0, 1)}, False, {0: (0, 1, 2), 1: (0, 1), 2: (0, 2)})
    assert plan.student_config(first) == VDMINI_UNET.student_config(SVD_CONFIG)


class TestForcedChoices:
    """The widths decide mostly which of SVD's layers may go (paper, Table A4)."""

    @pytest.mark.parametrize("stage", [0, 1])
    def test_down_0_keeps_any_of_its_layers_and_down_1_only_the_first(self, stage):
        vdmini_with(down={stage: (0,)}).student_config(SVD_CONFIG)
        if stage == 0:
            vdmini_with(down={0: (1,)}).student_config(SVD_CONFIG)  # 320 channels all through
        else:
            with pytest.raises(PruningPlanError, match=r"D\.1\.R\.1 takes hidden features of 640 .* gives it 320"):
                vdmini_with(down={1: (1,)}).student_config(SVD_CONFIG)

    def test_up_2_keeps_only_its_first_and_last_layer(self):
        vdmini_with(up={2: (0, 2)}).student_config(SVD_CONFIG)
        with pytest.raises(PruningPlanError, match=r"U\.2\.R\.1 takes skip features of 640 .* gives it 320"):
            vdmini_with(up={2: (0, 1)}).student_config(SVD_CONFIG)
        with pytest.raises(PruningPlanError, match=r"U\.2\.R\.1 takes hidden features of 640 .* gives it 1280"):
            vdmini_with(up={2: (1, 2)}).student_config(SVD_CONFIG)

    def test_up_3_keeps_its_first_layer_and_either_of_the_others(self):
        vdmini_with(up={3: (0, 1)}).student_config(SVD_CONFIG)
        vdmini_with(up={3: (0, 2)}).student_config(SVD_CONFIG)
        with pytest.raises(PruningPlanError, match=r"U\.3\.R\.1 takes hidden features of 320 .* gives it 640"):
            vdmini_with(up={3: (1, 2)}).student_config(SVD_CONFIG)


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        (vdmini_with(down={4: (0,)}), r"D\.4 is not a stage of the teacher, which has 4"),
        (vdmini_with(up={7: (0,)}), r"U\.7 is not a stage of the teacher, which has 4"),
        (vdmini_with(down={2: (0, 2)}), r"D\.2\.R\.2 is not a layer of the teacher, whose D\.2 has 2"),
        (vdmini_with(up={1: (0, 1, 3)}), r"U\.1\.R\.3 is not a layer of the teacher, whose U\.1 has 3"),
        (UNetPruningPlan("gap", {0: (0,), 2: (0,)}, False, {1: (0, 2), 3: (0, 2)}), r"\[0, 2\] leave a gap"),
        (UNetPruningPlan("no D.0", {1: (0,)}, False, {2: (0, 2)}), r"\[1\] leave a gap"),
        (vdmini_with(up={0: (0, 1, 2)}), r"the up stages \[1, 2, 3\] are, not \[0, 1, 2, 3\]"),
        (UNetPruningPlan("no U.1", VDMINI_UNET.down, False, {2: (0, 2), 3: (0, 2)}), r"are, not \[2, 3\]"),
        (vdmini_with(up={1: (0, 1)}), r"U\.1 keeps 2 layers; it needs 3, one more than D\.2"),
        (vdmini_with(down={0: (0, 1)}), r"U\.3 keeps 2 layers; it needs 3, one more than D\.0"),
    ],
)
def test_a_plan_that_does_not_fit_svd_is_refused_with_the_part_that_does_not(plan, complaint):
    with pytest.raises(PruningPlanError, match=complaint):
        plan.student_config(SVD_CONFIG)


def test_a_mid_block_that_the_teacher_lacks_cannot_be_kept():
    student = VDMINI_UNET.student_config(SVD_CONFIG)
    plan = UNetPruningPlan("mid", {0: (0,), 1: (0,), 2: (0, 1)}, True, {0: (0, 1, 2), 1: (0, 1), 2: (0, 1)})
    with pytest.raises(PruningPlanError, match="keeps M, which the teacher does not have"):
        plan.student_config(student)


def test_a_mid_block_kept_after_fewer_stages_needs_their_width():
    thinner = {**SVD_CONFIG, "block_out_channels": (320, 640, 640, 1280)}
    vdmini_with(keep_mid=True).student_config(SVD_CONFIG)
    with pytest.raises(PruningPlanError, match=r"M\.R\.0 takes hidden features of 1280 .* gives it 640"):
        vdmini_with(keep_mid=True).student_config(thinner)


@st.composite
def teachers(draw):
    """Configs with widths that do not fall towards the middle, as in every published U-Net.

    Where they fall, two wrong widths can add up to the right one, and shapes alone no longer tell what fits.
    """
    num_stages = draw(st.integers(1, 4))
    per_stage = {"min_size": num_stages, "max_size": num_stages}
    plain = draw(st.lists(st.booleans(), **per_stage))
    return {
        "block_out_channels": tuple(sorted(draw(st.lists(st.sampled_from((32, 64, 96)), **per_stage)))),
        "down_block_types": tuple(
            "DownBlockSpatioTemporal" if p else "CrossAttnDownBlockSpatioTemporal" for p in plain
        ),
        "up_block_types": tuple(
            "UpBlockSpatioTemporal" if p else "CrossAttnUpBlockSpatioTemporal" for p in reversed(plain)
        ),
        "layers_per_block": tuple(draw(st.lists(st.integers(1, 3), **per_stage))),
        "cross_attention_dim": 16,
        "transformer_layers_per_block": 1,
        "num_attention_heads": 2,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24,
    }


def some(draw, count, total):
    return tuple(sorted(draw(st.permutations(range(total)))[:count]))


@st.composite
def well_formed_plans(draw, teacher):
    """Plans that keep the outer stages, mirrored, with one layer more in the up stage; the layers are free."""
    depths = teacher["layers_per_block"]
    num_stages, num_kept = len(depths), draw(st.integers(1, len(depths)))
    counts = [draw(st.integers(1, depths[stage])) for stage in range(num_kept)]
    down = {stage: some(draw, count, depths[stage]) for stage, count in enumerate(counts)}
    up = {num_stages - 1 - stage: some(draw, count + 1, depths[stage] + 1) for stage, count in enumerate(counts)}
    return UNetPruningPlan("drawn", down, draw(st.booleans()), up)


def config_by_hand(plan, teacher):
    stages = list(plan.down)
    return {
        **teacher,
        "block_out_channels": tuple(teacher["block_out_channels"][stage] for stage in stages),
        "down_block_types": tuple(teacher["down_block_types"][stage] for stage in stages),
        "up_block_types": tuple(teacher["up_block_types"][stage] for stage in plan.up),
        "layers_per_block": tuple(len(plan.down[stage]) for stage in stages),
        "mid_block_type": "UNetMidBlockSpatioTemporal" if plan.keep_mid else None,
    }


def shapes(model):
    tensors = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    heads = {f"{name}.heads": m.heads for name, m in model.named_modules() if isinstance(m, Attention)}
    return tensors | heads


@settings(max_examples=30)
@given(st.data())
def test_a_well_formed_plan_fits_exactly_when_the_teacher_cut_by_hand_has_the_student_s_shapes(data):
    teacher_config = data.draw(teachers())
    plan = data.draw(well_formed_plans(teacher_config))
    teacher = UNetSpatioTemporalConditionModel(**teacher_config)
    student = VDMiniUNetSpatioTemporalConditionModel(**config_by_hand(plan, teacher_config))
    teacher_shapes = shapes(teacher)
    fits = shapes(cut_by_hand(teacher, plan)) == shapes(student)
    event("fits" if fits else "does not fit")
    if not fits:
        with pytest.raises(PruningPlanError):
            plan.student_config(teacher_config)
        return
    assert plan.student_config(teacher_config) == config_by_hand(plan, teacher_config)
    keys = plan.weight_map(student.state_dict())
    assert len(set(keys.values())) == len(keys)
    assert all(tuple(tensor.shape) == teacher_shapes[keys[key]] for key, tensor in student.state_dict().items())


free_stages = st.dictionaries(
    st.integers(0, 4),
    st.sets(st.integers(0, 3), min_size=1, max_size=4).map(lambda kept: tuple(sorted(kept))),
    min_size=1,
    max_size=4,
)


@settings(max_examples=200)
@given(teachers(), free_stages, st.booleans(), free_stages)
def test_a_plan_that_is_not_well_formed_is_always_refused_and_never_breaks(teacher_config, down, keep_mid, up):
    depths = teacher_config["layers_per_block"]
    num_stages = len(depths)
    assume(
        list(down) != list(range(len(down)))
        or set(up) != {num_stages - 1 - stage for stage in down}
        or any(len(up[num_stages - 1 - stage]) != len(layers) + 1 for stage, layers in down.items())
    )
    with pytest.raises(PruningPlanError):
        UNetPruningPlan("free", down, keep_mid, up).student_config(teacher_config)


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": (5, 10, 20, 40)},
        {"transformer_layers_per_block": (1, 1, 1, 2)},
        {"cross_attention_dim": (1024, 1024, 1024, 768)},
    ],
    ids=str,
)
def test_a_mid_block_that_the_kept_stages_do_not_describe_is_refused(change):
    # The mid block has no fields of its own: diffusers builds it like the innermost stage.
    with pytest.raises(PruningPlanError, match="M"):
        vdmini_with(keep_mid=True).student_config({**SVD_CONFIG, **change})


def test_a_stock_text_to_video_teacher_s_student_says_which_conditions_it_lacks():
    stock = {
        "down_block_types": ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
        "up_block_types": ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "attention_head_dim": 64,
    }
    conditions = {"fps_cond": False, "motion_cond_proj_dim": None}
    assert VDMINI_UNET.student_config(stock) == {
        "down_block_types": ("CrossAttnDownBlock3D",) * 3,
        "up_block_types": ("CrossAttnUpBlock3D",) * 3,
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": (1, 1, 2),
        "attention_head_dim": 64,
        "mid_block_type": None,
        **conditions,
    }
    mid = {"mid_block_type": "UNetMidBlock3DCrossAttn"}
    whole = UNetPruningPlan.keep_everything(stock).student_config(stock)
    assert whole == {**stock, "layers_per_block": (2,) * 4, **conditions, **mid}
    # What a teacher does say is taken over.
    turbo = {**stock, "fps_cond": True, "motion_cond_proj_dim": 256}
    assert VDMINI_UNET.student_config(turbo).items() >= {"fps_cond": True, "motion_cond_proj_dim": 256}.items()
