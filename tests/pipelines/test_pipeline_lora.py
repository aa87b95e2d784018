"""LoRA in the documented way: `load_lora_weights`, for both pipelines, with what `train_icmd.py --rank` saves."""

import pytest
import torch
from fresh_python import run_python
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from tiny import student_of, tiny_image
from tiny_text_to_video import tiny_t2v_pipeline

from vdmini_diffusers import VDMiniI2VPipeline, VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.distillation.arguments import TrainingArguments
from vdmini_diffusers.pruning import VDMINI_UNET
from vdmini_diffusers.trainers.trained_pipeline import save_trained_pipeline


@pytest.fixture(params=["i2v", "t2v"])
def make(request, teacher_pipe):
    """Makes equal student pipelines, each with a U-Net of its own."""

    def i2v():
        pipe = VDMiniI2VPipeline(**{**teacher_pipe.components, "unet": student_of(teacher_pipe.unet, VDMINI_UNET)})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return i2v if request.param == "i2v" else tiny_t2v_pipeline


def video(pipe) -> torch.Tensor:
    arguments = {"num_frames": 2, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    if isinstance(pipe, VDMiniI2VPipeline):
        return pipe(tiny_image(), height=16, width=16, **arguments).frames
    return pipe("a cat", num_inference_steps=1, **arguments).frames


def add_adapter(unet) -> None:
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    torch.manual_seed(0)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False))


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_saved_weights_load_scale_fuse_and_unload(make, tmp_path):
    pipe = make()
    plain = video(pipe)
    add_adapter(pipe.unet)
    adapted = video(pipe)
    assert (adapted - plain).abs().max() > 1e-2
    pipe.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    assert all(name.startswith("unet.") for name in load_file(tmp_path / "pytorch_lora_weights.safetensors"))

    again = make()
    again.load_lora_weights(tmp_path, adapter_name="style")
    assert again.get_list_adapters() == {"unet": ["style"]} and again.get_active_adapters() == ["style"]
    assert_close(video(again), adapted)
    again.set_adapters("style", 0.0)
    assert_close(video(again), plain)
    again.set_adapters("style", 1.0)
    again.fuse_lora()
    assert again.num_fused_loras == 1
    assert_close(video(again), adapted)
    again.unfuse_lora()
    assert again.num_fused_loras == 0
    again.unload_lora_weights()
    assert_close(video(again), plain)
    assert not again.get_list_adapters()


def test_what_training_saves_loads_onto_the_student_and_equals_the_fused_result(make, tmp_path):
    pipe = make()
    student = make().unet
    add_adapter(student)
    state_dict = {name: tensor.clone() for name, tensor in student.state_dict().items()}

    def pipeline_with(denoiser):
        return type(pipe)(**{**pipe.components, "unet": denoiser})

    args = TrainingArguments(output_dir=tmp_path / "out", rank=2)
    save_trained_pipeline(args, pipeline_with, student, state_dict, {}, "a card")
    plain = video(pipe)
    pipe.load_lora_weights(tmp_path / "out" / "lora")
    fused = type(pipe).from_pretrained(tmp_path / "out")
    fused.set_progress_bar_config(disable=True)
    assert_close(video(pipe), video(fused))
    assert (video(pipe) - plain).abs().max() > 1e-2


WRONG = {
    "no prefix": (lambda name, tensor: (name.removeprefix("unet."), tensor), "Nothing was loaded"),
    "another model": (lambda name, tensor: (name.replace("unet", "transformer"), tensor), "Nothing was loaded"),
    "other names": (lambda name, tensor: (name.replace("blocks", "layers"), tensor), "does not load into VDMiniUNet"),
    "other widths": (lambda name, tensor: (name, torch.cat([tensor, tensor], 1)), "does not load into VDMiniUNet"),
}


def test_a_lora_that_is_not_the_unets_is_refused_and_changes_nothing(make, tmp_path):
    pipe = make()
    plain = video(pipe)
    add_adapter(pipe.unet)
    pipe.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    pipe.unload_lora_weights()
    tensors = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    for change, message in WRONG.values():
        with pytest.raises(ValueError, match=message) as caught:
            pipe.load_lora_weights(dict(change(name, tensor) for name, tensor in tensors.items()))
        assert "\n" not in str(caught.value)
        assert not any(pipe.get_list_adapters().values())
    assert_close(video(pipe), plain)


def test_a_folder_that_is_not_there_and_a_file_that_is_not_a_lora_are_refused_by_name(make, tmp_path):
    with pytest.raises((OSError, ValueError), match="nowhere"):
        make().load_lora_weights(tmp_path / "nowhere")
    make().unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match="LoRA"):
        make().load_lora_weights(tmp_path / "unet")


def test_the_stock_unet_takes_no_lora_and_a_vdmini_unet_of_the_same_shape_does(teacher_pipe, tmp_path):
    stock = VDMiniI2VPipeline(**teacher_pipe.components)
    with pytest.raises(ValueError, match="UNetSpatioTemporalConditionModel takes no LoRA"):
        stock.load_lora_weights({})
    teacher_pipe.unet.save_pretrained(tmp_path)
    unet = VDMiniUNetSpatioTemporalConditionModel.from_pretrained(
        tmp_path, mid_block_type="UNetMidBlockSpatioTemporal"
    )
    add_adapter(unet)
    tensors = {f"unet.{name}": tensor for name, tensor in get_peft_model_state_dict(unet).items()}
    unet.delete_adapters("default")
    pipe = VDMiniI2VPipeline(**{**teacher_pipe.components, "unet": unet})
    pipe.load_lora_weights(tensors)
    assert pipe.get_list_adapters() == {"unet": ["default_0"]}


WITHOUT_PEFT = """
import importlib.metadata, importlib.util, json, sys

class NoPeft:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "peft":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoPeft())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "peft" else find_spec(name, package)
from vdmini_diffusers import VDMiniI2VPipeline
pipe = VDMiniI2VPipeline.from_pretrained(sys.argv[1])
try:
    pipe.load_lora_weights({})
except (RuntimeError, ValueError) as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.slow
def test_without_peft_pipelines_load_and_lora_says_what_is_missing(student_folder, tmp_path):
    assert "PEFT" in run_python(WITHOUT_PEFT, student_folder, home=tmp_path)
