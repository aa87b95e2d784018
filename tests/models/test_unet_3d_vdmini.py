"""The T2V U-Net is the paper's network and its teachers', and a student computes what the cut teacher computes."""

import copy
import inspect
import pickle

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import UNet3DConditionModel
from tiny import cut_by_hand, randomise, student_of
from tiny_text_to_video import (
    MODELSCOPE,
    STOCK_CONFIG,
    T2V_TURBO,
    T2V_TURBO_V2,
    TEACHER_CONFIG,
    VIDEOCRAFTER2,
    tiny_t2v_inputs,
    tiny_t2v_teacher,
)

from vdmini_diffusers import VDMiniUNet3DConditionModel, VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.models import unet_3d_vdmini, unet_spatio_temporal_vdmini
from vdmini_diffusers.pruning import VDMINI_UNET, UNetPruningPlan


FULL_SIZE_TEACHER = {
    "down_block_types": ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
    "up_block_types": ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "mid_block_type": "UNetMidBlock3DCrossAttn",
}
PLANS = {
    "paper": VDMINI_UNET,
    "keep everything": UNetPruningPlan.keep_everything(TEACHER_CONFIG),
    "only without mid block": UNetPruningPlan(
        "no-mid", dict.fromkeys(range(4), (0, 1)), False, dict.fromkeys(range(4), (0, 1, 2))
    ),
    "only fewer layers": UNetPruningPlan(
        "thin", {0: (0,), 1: (0,), 2: (0,), 3: (0,)}, True, {0: (0, 1), 1: (0, 2), 2: (0, 2), 3: (0, 2)}
    ),
    "mid block after three stages": UNetPruningPlan(
        "short", {0: (0,), 1: (0, 1), 2: (0,)}, True, {1: (0, 2), 2: (0, 1, 2), 3: (0, 2)}
    ),
    "one stage": UNetPruningPlan("stub", {0: (1,)}, False, {3: (1, 2)}),
}


@pytest.fixture(scope="module")
def drawn():
    return tiny_t2v_teacher()


@pytest.fixture
def teacher(drawn):
    return copy.deepcopy(drawn)


@pytest.mark.parametrize(
    ("config", "num_teacher", "num_student"),
    [
        (T2V_TURBO_V2, 1_413_653_060, 817_019_780),  # Table A3: 1413.65 M and 817.02 M
        (T2V_TURBO, 1_413_366_340, 816_733_060),
        (VIDEOCRAFTER2, 1_413_284_420, 816_651_140),
        (MODELSCOPE, 1_411_233_860, 814_600_580),
    ],
    ids=["T2V-Turbo-v2", "T2V-Turbo", "VideoCrafter2", "ModelScope"],
)
def test_parameters_of_each_teacher_and_of_what_the_paper_s_plan_makes_of_it(config, num_teacher, num_student):
    with init_empty_weights():
        teacher = VDMiniUNet3DConditionModel(**{**FULL_SIZE_TEACHER, **config})
        student = VDMiniUNet3DConditionModel.from_config(VDMINI_UNET.student_config(teacher.config))
    assert teacher.num_parameters() == num_teacher
    assert student.num_parameters() == num_student


def test_built_without_arguments_it_is_the_paper_s_student():
    with init_empty_weights():
        student = VDMiniUNet3DConditionModel()
        teacher = VDMiniUNet3DConditionModel(**FULL_SIZE_TEACHER)
    assert student.num_parameters() == 817_019_780
    ours = {key: value for key, value in student.config.items() if not key.startswith("_")}
    assert ours == VDMINI_UNET.student_config(teacher.config)


def test_all_927_tensors_come_from_different_teacher_tensors_of_the_same_shape():
    with init_empty_weights():
        student = VDMiniUNet3DConditionModel().state_dict()
        teacher = VDMiniUNet3DConditionModel(**FULL_SIZE_TEACHER).state_dict()
    assert len(teacher) == 1487
    keys = VDMINI_UNET.weight_map(student)
    assert len(keys) == len(set(keys.values())) == 927
    assert all(student[key].shape == teacher[source].shape for key, source in keys.items())


def test_the_stock_teacher_has_the_parameters_of_modelscope_s():
    with init_empty_weights():
        assert UNet3DConditionModel(cross_attention_dim=1024).num_parameters() == 1_411_233_860


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@torch.no_grad()
def test_without_conditions_it_is_bit_equal_to_the_stock_class(dtype):
    stock = randomise(UNet3DConditionModel(**STOCK_CONFIG)).eval().to(dtype)
    ours = student_of(stock, UNetPruningPlan.keep_everything(stock.config))
    inputs = tiny_t2v_inputs(ours, dtype=dtype, height=9, width=12)
    expected = stock(**inputs).sample
    assert expected.isfinite().all() and expected.std() > 0.01
    assert torch.equal(ours(**inputs).sample, expected)


@torch.no_grad()
def test_with_guidance_only_and_other_settings_it_is_bit_equal_to_the_stock_class():
    settings = {"time_cond_proj_dim": 12, "act_fn": "gelu", "norm_eps": 1e-2, "mid_block_scale_factor": 1.5}
    stock = randomise(UNet3DConditionModel(**STOCK_CONFIG, **settings)).eval()
    ours = student_of(stock, UNetPruningPlan.keep_everything(stock.config))
    inputs = tiny_t2v_inputs(ours)
    assert "timestep_cond" in inputs
    assert torch.equal(ours(**inputs).sample, stock(**inputs).sample)


@pytest.mark.parametrize(
    ("plan", "dtype"),
    [*((plan, torch.float32) for plan in PLANS.values()), (VDMINI_UNET, torch.bfloat16)],
    ids=[*PLANS.keys(), "paper in bf16"],
)
@torch.no_grad()
def test_the_student_is_bit_equal_to_the_teacher_cut_by_hand(plan, dtype, teacher):
    teacher = teacher.to(dtype)
    student = student_of(teacher, plan)
    by_hand = cut_by_hand(copy.deepcopy(teacher), plan)
    for shape in ({"batch": 1}, {"batch": 1, "height": 9, "width": 12}):  # the stages halve it evenly, or do not
        inputs = tiny_t2v_inputs(dtype=dtype, **shape)
        expected = by_hand(**inputs).sample
        assert expected.isfinite().all() and expected.std() > 0.01
        assert torch.equal(student(**inputs).sample, expected), shape


@torch.no_grad()
def test_another_plan_gives_another_output(teacher):
    # A control: the equalities above are not those of a network whose blocks do not matter.
    outputs = [student_of(teacher, plan)(**tiny_t2v_inputs(batch=1)).sample for plan in PLANS.values()]
    assert all((outputs[0] - other).abs().max() > 0.01 for other in outputs[1:])


def test_every_tensor_of_teacher_and_student_has_its_part_in_the_output(teacher):
    # A control: one that had none could hold anything in the tests above.
    for model in (teacher, student_of(teacher, VDMINI_UNET)):
        model(**tiny_t2v_inputs(height=16, width=16)).sample.square().sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


class TestConditions:
    @torch.no_grad()
    def test_each_of_them_changes_the_output_of_its_sample_alone(self, teacher):
        inputs = tiny_t2v_inputs(frames=1)
        expected = teacher(**inputs).sample
        for name in ("timestep", "timestep_cond", "motion_cond", "fps"):
            other = inputs[name].clone()
            other[1] += 1
            output = teacher(**{**inputs, name: other}).sample
            torch.testing.assert_close(output[0], expected[0], rtol=0, atol=0)
            assert (output[1] - expected[1]).abs().max() > 1e-3, name

    @torch.no_grad()
    def test_the_embedding_is_that_of_the_description(self, teacher):
        # Written out once more, from T2V-Turbo's description: guidance and motion before the layers, frame rate after.
        inputs = tiny_t2v_inputs()
        found = []
        teacher.time_embedding.register_forward_hook(lambda module, args, output: found.append(output))
        teacher(**inputs)

        weights = teacher.time_embedding.state_dict()
        frequencies = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(8) / 8)

        def sinusoid(numbers):
            angles = numbers[:, None] * frequencies
            return torch.cat([angles.cos(), angles.sin()], dim=-1)

        def layers(x, prefix=""):
            x = x @ weights[f"{prefix}linear_1.weight"].T + weights[f"{prefix}linear_1.bias"]
            x = x * x.sigmoid()
            return x @ weights[f"{prefix}linear_2.weight"].T + weights[f"{prefix}linear_2.bias"]

        guidance = inputs["timestep_cond"] @ weights["cond_proj.weight"].T
        motion = inputs["motion_cond"] @ weights["motion_cond_proj.weight"].T
        both = torch.cat([guidance, motion], dim=-1) @ weights["combine_proj.weight"].T
        expected = layers(sinusoid(inputs["timestep"]) + both) + layers(sinusoid(inputs["fps"]), "fps_embedding.")
        torch.testing.assert_close(found[0], expected)

    @torch.no_grad()
    def test_one_frame_rate_is_that_of_all_samples(self, teacher):
        inputs = tiny_t2v_inputs()
        expected = teacher(**{**inputs, "fps": torch.tensor([8, 8])}).sample
        for fps in (8, torch.tensor(8.0)):
            assert torch.equal(teacher(**{**inputs, "fps": fps}).sample, expected)

    @torch.no_grad()
    def test_without_motion_the_guidance_alone_is_added(self, teacher):
        # As in the original: it is another input than the embedding of a strength of zero.
        inputs = tiny_t2v_inputs()
        del inputs["motion_cond"]
        omitted = teacher(**inputs).sample
        zero = teacher(**inputs, motion_cond=torch.cat([torch.zeros(2, 5), torch.ones(2, 5)], dim=-1)).sample
        assert (omitted - zero).abs().max() > 1e-3
        tensors = {k: v for k, v in teacher.state_dict().items() if "motion_cond_proj" not in k and "combine" not in k}
        first_version = tiny_t2v_teacher(**T2V_TURBO)
        first_version.load_state_dict(tensors)
        assert torch.equal(first_version(**inputs).sample, omitted)

    @pytest.mark.parametrize(
        ("config", "change", "complaint"),
        [
            (VIDEOCRAFTER2, {"timestep_cond": torch.zeros(2, 12)}, "`timestep_cond` is given"),
            (T2V_TURBO, {"motion_cond": torch.zeros(2, 10)}, "`motion_cond` is given"),
            (MODELSCOPE, {"fps": 8}, "`fps` is given"),
            (T2V_TURBO_V2, {"fps": None}, "`fps` is required"),
            (T2V_TURBO_V2, {"timestep_cond": None}, "`motion_cond` needs `timestep_cond`"),
        ],
    )
    def test_a_condition_that_the_model_cannot_use_or_lacks_is_refused(self, config, change, complaint):
        model = tiny_t2v_teacher(**config)
        with pytest.raises(ValueError, match=complaint):
            model(**{**tiny_t2v_inputs(model), **change})

    @torch.no_grad()
    def test_conditions_in_float32_are_cast_to_the_model_s_dtype(self, teacher):
        teacher = teacher.to(torch.bfloat16)
        inputs = tiny_t2v_inputs(dtype=torch.bfloat16)
        cast = {name: inputs[name].float() for name in ("timestep_cond", "motion_cond")}
        assert torch.equal(teacher(**{**inputs, **cast}).sample, teacher(**inputs).sample)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"mid_block_type": "UNetMidBlock2D"}, "must be None or 'UNetMidBlock3DCrossAttn', not 'UNetMidBlock2D'"),
        ({"time_cond_proj_dim": None}, "`motion_cond_proj_dim` needs `time_cond_proj_dim`"),
        ({"layers_per_block": (1, 2)}, r"one or 3 counts from 1, not \(1, 2\)"),
        ({"layers_per_block": (1, 0, 1)}, r"one or 3 counts from 1, not \(1, 0, 1\)"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        VDMiniUNet3DConditionModel(**change)


def test_it_takes_the_parent_s_arguments_and_three_more():
    parent = inspect.signature(UNet3DConditionModel.__init__).parameters
    ours = inspect.signature(VDMiniUNet3DConditionModel.__init__).parameters
    assert list(ours) == [*parent, "mid_block_type", "fps_cond", "motion_cond_proj_dim"]
    parent = inspect.signature(UNet3DConditionModel.forward).parameters
    assert list(inspect.signature(VDMiniUNet3DConditionModel.forward).parameters) == [*parent, "fps", "motion_cond"]


@torch.no_grad()
def test_copies_and_pickles_are_the_same_model_and_independent(teacher):
    student = student_of(teacher, VDMINI_UNET)
    expected = student(**tiny_t2v_inputs()).sample
    for copied in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        assert torch.equal(copied(**tiny_t2v_inputs()).sample, expected)
        assert copied.config == student.config
        randomise(copied, seed=1)
        assert torch.equal(student(**tiny_t2v_inputs()).sample, expected)


@pytest.mark.parametrize(
    "name", ["set_default_attn_processor", "fuse_qkv_projections", "unfuse_qkv_projections", "_attention_modules"]
)
def test_what_it_shares_with_the_i2v_u_net_is_the_same_text(name):
    # Each file is published alone, so that neither can import it from the other.
    sources = [
        inspect.getsource(getattr(cls, name))
        for cls in (VDMiniUNet3DConditionModel, VDMiniUNetSpatioTemporalConditionModel)
    ]
    assert sources[0] == sources[1]
    processors = [
        inspect.getsource(module.VDMiniAttnProcessor) for module in (unet_3d_vdmini, unet_spatio_temporal_vdmini)
    ]
    assert processors[0] == processors[1]
