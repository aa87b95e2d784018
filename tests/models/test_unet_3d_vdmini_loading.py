"""Saving and loading the T2V U-Net, and the refusal of weights that are another network's."""

import copy
import json

import pytest
import torch
from diffusers import UNet3DConditionModel
from safetensors.torch import load_file, save_file
from tiny import randomise, student_of
from tiny_text_to_video import MODELSCOPE, STOCK_CONFIG, tiny_t2v_inputs, tiny_t2v_teacher

from vdmini_diffusers import VDMiniUNet3DConditionModel
from vdmini_diffusers.pruning import VDMINI_UNET, UNetPruningPlan


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def original():
    return student_of(tiny_t2v_teacher(), VDMINI_UNET)


@pytest.fixture
def student(original):
    return copy.deepcopy(original)


def architecture(model):
    """The config as JSON knows it: lists for tuples, and nothing about where it came from."""
    return json.loads(json.dumps({key: value for key, value in model.config.items() if not key.startswith("_")}))


def assert_same_model(loaded, expected):
    tensors = expected.state_dict()
    assert loaded.state_dict().keys() == tensors.keys()
    assert all(torch.equal(value, tensors[key]) for key, value in loaded.state_dict().items())
    # Close, not equal: tensors in a mapped file lie at other alignments, for which CPU kernels sum in another order.
    with torch.no_grad():
        outputs = [model(**tiny_t2v_inputs(expected, batch=1)).sample for model in (loaded, expected)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "save",
    [{}, {"max_shard_size": "200KB"}, {"variant": "fp16"}, {"safe_serialization": False}],
    ids=["one file", "shards", "variant", "bin"],
)
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_what_is_saved_loads_as_the_same_model(save, low_cpu_mem_usage, student, tmp_path):
    student.save_pretrained(tmp_path, **save)
    loaded, info = VDMiniUNet3DConditionModel.from_pretrained(
        tmp_path,
        variant=save.get("variant"),
        use_safetensors=save.get("safe_serialization", True),
        low_cpu_mem_usage=low_cpu_mem_usage,
        output_loading_info=True,
    )
    assert not any(info.values()), info
    assert not loaded.training
    assert architecture(loaded) == architecture(student)
    assert_same_model(loaded, student)


def test_teachers_are_saved_and_loaded_as_well(tmp_path):
    teacher = tiny_t2v_teacher()
    teacher.save_pretrained(tmp_path / "unet")
    loaded = VDMiniUNet3DConditionModel.from_pretrained(tmp_path, subfolder="unet", torch_dtype=torch.float32)
    assert architecture(loaded) == architecture(teacher)
    assert_same_model(loaded, teacher)


def test_a_second_save_writes_the_same_bytes(student, tmp_path):
    student.save_pretrained(tmp_path / "first")
    VDMiniUNet3DConditionModel.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert (tmp_path / "first" / WEIGHTS).read_bytes() == (tmp_path / "second" / WEIGHTS).read_bytes()


def without_a_tensor(tensors):
    del tensors["up_blocks.2.temp_convs.1.conv3.3.weight"]


def with_an_unknown_tensor(tensors):
    tensors["mid_block.resnets.0.conv1.bias"] = torch.zeros(64)


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (without_a_tensor, r"1 missing tensors \(up_blocks\.2\.temp_convs\.1\.conv3\.3\.weight"),
        (with_an_unknown_tensor, r"1 unexpected tensors \(mid_block\.resnets\.0\.conv1\.bias"),
    ],
)
def test_a_checkpoint_with_a_tensor_too_few_or_too_many_is_refused(
    damage, complaint, low_cpu_mem_usage, student, tmp_path
):
    student.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    damage(tensors)
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=complaint):
        VDMiniUNet3DConditionModel.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)


class TestStockFolders:
    """As of ModelScope: their configs say nothing of what a stock U-Net does not have."""

    @pytest.fixture
    def folder(self, tmp_path):
        randomise(UNet3DConditionModel(**STOCK_CONFIG)).save_pretrained(tmp_path)
        return tmp_path

    def test_opened_as_if_it_were_t2v_turbo_it_is_refused_with_what_to_do(self, folder):
        with pytest.raises(ValueError, match="The U-Net of VideoCrafter2 has neither"):
            VDMiniUNet3DConditionModel.from_pretrained(folder)
        with pytest.raises(ValueError, match=r"7 missing tensors .*unexpected tensors .*`mid_block_type`: pass them"):
            VDMiniUNet3DConditionModel.from_pretrained(folder, time_cond_proj_dim=12)

    def test_opened_with_what_it_has_it_is_the_stock_u_net(self, folder):
        ours = VDMiniUNet3DConditionModel.from_pretrained(
            folder, mid_block_type="UNetMidBlock3DCrossAttn", **MODELSCOPE
        )
        assert_same_model(ours, UNet3DConditionModel.from_pretrained(folder))

    def test_a_student_that_keeps_everything_opens_with_the_stock_class(self, folder, tmp_path_factory):
        again = tmp_path_factory.mktemp("again")
        stock = UNet3DConditionModel.from_pretrained(folder)
        student = student_of(stock, UNetPruningPlan.keep_everything(stock.config))
        student.register_to_config(layers_per_block=2)  # the stock class takes one number
        student.save_pretrained(again)
        loaded, info = UNet3DConditionModel.from_pretrained(again, output_loading_info=True)
        assert not any(info.values())
        assert_same_model(loaded, stock)
