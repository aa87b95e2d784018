"""What a student's pipeline can be combined with: the rows of the table in `pipelines/README.md`."""

import copy
import re

import pytest
import torch
from checkout import ROOT
from diffusers import AutoModel, DiffusionPipeline, StableVideoDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny import tiny_image, tiny_unet_inputs
from tiny_text_to_video import tiny_t2v_inputs, tiny_t2v_pipeline

from vdmini_diffusers import VDMiniI2VPipeline


CPU = torch.device("cpu")


@pytest.fixture(params=["i2v", "t2v"])
def pipe(request, student_pipe):
    # A copy, as other tests share its VAE and image encoder.
    return copy.deepcopy(student_pipe) if request.param == "i2v" else tiny_t2v_pipeline()


def is_i2v(pipe) -> bool:
    return isinstance(pipe, VDMiniI2VPipeline)


def video(pipe) -> torch.Tensor:
    arguments = {"num_frames": 2, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    if is_i2v(pipe):
        return pipe(tiny_image(), height=16, width=16, **arguments).frames
    return pipe("a cat", num_inference_steps=1, **arguments).frames


def inputs_of(pipe) -> dict:
    if is_i2v(pipe):
        names = "sample", "timestep", "encoder_hidden_states", "added_time_ids"
        return dict(zip(names, tiny_unet_inputs(), strict=True))
    return tiny_t2v_inputs(pipe.unet, 1, 2, 8, 8, torch.float32)


class Decoding(torch.nn.Module):
    def __init__(self, vae, **more):
        super().__init__()
        self.vae, self.more = vae, more

    def forward(self, latents):
        return self.vae.decode(latents, **self.more).sample


def offload(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def group_offload(pipe):
    pipe.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def group_offload_of_the_denoiser(pipe):
    pipe.unet.enable_group_offload(CPU, CPU, offload_type="block_level", num_blocks_per_group=1)


WORKS_EXACTLY = {
    "`enable_model_cpu_offload`": offload,
    "`enable_group_offload` of the pipeline": group_offload,
    "`enable_group_offload` of the denoiser": group_offload_of_the_denoiser,
}
WORKS = [
    *WORKS_EXACTLY,
    "LoRA: `hotswap=True`",
    "`from_pipe` between our pipelines",
    "`enable_layerwise_casting` of the denoiser",
    "`torch.export` of denoiser and decoder",
    "ONNX, by `torch.onnx.export(dynamo=True)`",
]
REFUSED = ["`StableVideoDiffusionPipeline.from_pipe`", "`AutoModel`, with `subfolder`"]
ELSEWHERE = {  # rows whose tests are in other files
    "LoRA: load, scale, fuse, unload, save": "test_pipeline_lora.py",
    "torchao's int8 and fp8 weights": "test_opt_ins.py",
    "`DiffusionPipeline`, with `trust_remote_code=True`": "test_vdmini_i2v_loading.py",
}
UNTESTED = ["`enable_sequential_cpu_offload`", "bitsandbytes, GGUF, quanto"]


@pytest.mark.parametrize("row", WORKS_EXACTLY)
def test_the_video_is_the_same(row, pipe):
    expected = video(pipe)
    WORKS_EXACTLY[row](pipe)
    assert torch.equal(video(pipe), expected)


def test_from_pipe_shares_the_networks(pipe):
    other = type(pipe).from_pipe(pipe)
    assert other.unet is pipe.unet and other.vae is pipe.vae
    assert torch.equal(video(other), video(pipe))


def test_a_lora_takes_the_place_of_another(pipe):
    def lora(seed: int) -> dict[str, torch.Tensor]:
        unet = copy.deepcopy(pipe.unet)
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
        return {f"unet.{name}": weight for name, weight in get_peft_model_state_dict(unet).items()}

    first, second = lora(1), lora(2)
    other = copy.deepcopy(pipe)
    other.load_lora_weights(second, adapter_name="style")
    expected = video(other)
    pipe.load_lora_weights(first, adapter_name="style")
    assert not torch.allclose(video(pipe), expected)
    pipe.load_lora_weights(second, adapter_name="style", hotswap=True)
    assert torch.allclose(video(pipe), expected, rtol=0, atol=1e-5)  # weights in other memory may round otherwise


def test_layerwise_casting_stores_float8_and_computes_in_float32(pipe):
    expected = video(pipe)
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert torch.float8_e4m3fn in {parameter.dtype for parameter in pipe.unet.parameters()}
    assert 0 < (video(pipe) - expected).abs().max() < 0.05


@pytest.mark.slow
@torch.no_grad()
def test_denoiser_and_decoder_are_exported(pipe):
    inputs, unet = inputs_of(pipe), pipe.unet.eval()
    exported = torch.export.export(unet, (), inputs).module()
    assert torch.equal(exported(**inputs).sample, unet(**inputs).sample)
    decoding = Decoding(pipe.vae, **({"num_frames": 2} if is_i2v(pipe) else {})).eval()
    latents = torch.randn(2, 4, 4, 4)
    assert torch.equal(torch.export.export(decoding, (latents,)).module()(latents), decoding(latents))


@pytest.mark.slow
@torch.no_grad()
def test_onnx_computes_the_same(pipe, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="pip install onnx onnxscript onnxruntime")
    pytest.importorskip("onnxscript")

    def run(module, kwargs) -> torch.Tensor:
        torch.onnx.export(module, (), kwargs=kwargs, dynamo=True, verbose=False).save(str(tmp_path / "model.onnx"))
        session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
        given = {name: torch.as_tensor(kwargs[name]).numpy() for name in (x.name for x in session.get_inputs())}
        return torch.from_numpy(session.run(None, given)[0])

    inputs, unet = inputs_of(pipe), pipe.unet.eval()
    expected = unet(**inputs).sample
    torch.testing.assert_close(run(unet, {**inputs, "return_dict": False}), expected, rtol=1e-4, atol=1e-5)
    decoding = Decoding(pipe.vae, **({"num_frames": 2} if is_i2v(pipe) else {})).eval()
    latents = torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(run(decoding, {"latents": latents}), decoding(latents), rtol=1e-4, atol=1e-5)


def test_the_stock_pipeline_does_not_take_a_student_over(student_pipe):
    with pytest.raises(ValueError, match=r"expected .*'unet'"):
        StableVideoDiffusionPipeline.from_pipe(student_pipe)
    taken = StableVideoDiffusionPipeline.from_pipe(student_pipe, unet=student_pipe.unet)
    assert taken.unet is student_pipe.unet


def test_auto_model_does_not_find_a_student_in_a_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    # The second is what diffusers 0.42.0 says.
    with pytest.raises((ValueError, ModuleNotFoundError), match=r"is not one of the libraries|No module named"):
        AutoModel.from_pretrained(tmp_path, subfolder="unet")
    with pytest.raises(ValueError, match="custom code"):
        AutoModel.from_pretrained(tmp_path, subfolder="unet", trust_remote_code=True)
    opened = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True).unet  # what the table says instead
    assert opened.num_parameters() == pipe.unet.num_parameters()


def test_the_table_has_these_rows():
    text = (ROOT / "pipelines/README.md").read_text().partition("## What it can be combined with")[2]
    rows = re.findall(r"^\| (.+?) \| (works|refused|untested)\b", text, flags=re.MULTILINE)
    expected = dict.fromkeys((*WORKS, *ELSEWHERE), "works")
    expected |= dict.fromkeys(REFUSED, "refused") | dict.fromkeys(UNTESTED, "untested")
    assert dict(rows) == expected
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(ELSEWHERE.values()) <= tests
