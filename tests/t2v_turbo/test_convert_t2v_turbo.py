"""Original files become component folders that compute the same, or a refusal says what they are."""

from pathlib import Path

import forked_scripts
import original_text_encoder
import original_unet
import original_vae
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler
from drawn_weights import DrawnWeights
from transformers import CLIPTextModel

from vdmini_diffusers import VDMiniUNet3DConditionModel
from vdmini_diffusers.convert_t2v_turbo import convert_t2v_turbo
from vdmini_diffusers.t2v_turbo.checkpoint import SCHEDULE
from vdmini_diffusers.t2v_turbo.tensors import OriginalCheckpointError


SCRIPT = Path(__file__).parents[2] / "conversion" / "convert_t2v_turbo_to_diffusers.py"


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


UNET_INPUTS = {
    "latents": normal(1, 4, 2, 8, 8),
    "timesteps": torch.tensor([459]),
    "context": normal(1, 5, 24),
    "fps": torch.tensor([8]),
}
TOLD = {"guidance": normal(1, 12), "motion": normal(1, 10)}
PIXELS = normal(1, 3, 16, 16)
TOKENS = torch.arange(original_text_encoder.TOKENS)[None]


@pytest.fixture(scope="module")
def originals():
    """Weights with the original's 32 groups, and what they compute: the U-Nets of two files, VAE, text encoder."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(original_unet, "GROUPS", 32)
        patch.setattr(original_unet, "WIDTHS", (32, 32, 64, 64))
        patch.setattr(original_vae, "GROUPS", 32)
        patch.setattr(original_vae, "WIDTHS", (32, 32, 64, 64))
        weights = {name: DrawnWeights(seed=i) for i, name in enumerate(("unet", "unet_mg", "vae", "text_encoder"))}
        outputs = {
            "unet": original_unet.unet(weights["unet"], **UNET_INPUTS),
            "unet_mg": original_unet.unet(weights["unet_mg"], **UNET_INPUTS, **TOLD),
            "vae": original_vae.encode(weights["vae"], PIXELS)[:, :4],
            "text_encoder": original_text_encoder.text_encoder(weights["text_encoder"], TOKENS),
        }
        original_vae.decode(weights["vae"], normal(1, 4, 2, 2))
    return {name: dict(tensors) for name, tensors in weights.items()}, outputs


@pytest.fixture
def whole(originals):
    """As VideoCrafter2's `model.ckpt`."""
    weights, _ = originals
    prefixes = {
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "cond_stage_model.model.",
    }
    tensors = {f"{prefix}{key}": t for name, prefix in prefixes.items() for key, t in weights[name].items()}
    return tensors | {name: torch.ones(3) for name in SCHEDULE}


def saved(state, file):
    torch.save(state, file)
    return file


@torch.no_grad()
def test_a_whole_checkpoint_becomes_folders_that_compute_what_it_computes(whole, originals, tmp_path):
    file = saved({"state_dict": whole, "global_step": 3}, tmp_path / "model.ckpt")
    folder = convert_t2v_turbo(file, tmp_path / "out")
    _, expected = originals
    double = {"torch_dtype": torch.float64}
    unet = VDMiniUNet3DConditionModel.from_pretrained(folder, subfolder="unet", **double)
    inputs = [UNET_INPUTS[name] for name in ("latents", "timesteps", "context")]
    output = unet(*inputs, fps=UNET_INPUTS["fps"]).sample
    torch.testing.assert_close(output, expected["unet"], rtol=0, atol=1e-10)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", **double)
    assert vae.config.scaling_factor == 0.18215
    torch.testing.assert_close(vae.encode(PIXELS).latent_dist.mean, expected["vae"], rtol=0, atol=1e-10)
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float64)
    output = text_encoder(TOKENS).last_hidden_state
    torch.testing.assert_close(output, expected["text_encoder"], rtol=0, atol=1e-10)
    assert DDIMScheduler.from_pretrained(folder, subfolder="scheduler").config.prediction_type == "epsilon"


@torch.no_grad()
def test_the_u_net_of_t2v_turbo_v2_takes_the_place_of_the_checkpoint_s(whole, originals, tmp_path):
    weights, expected = originals
    files = [saved(whole, tmp_path / "model.ckpt"), saved(weights["unet_mg"], tmp_path / "unet_mg.pt")]
    flags = ["--checkpoint_path", files[0], "--unet_checkpoint_path", files[1], "--max_shard_size", "2MB"]
    process = forked_scripts.start((SCRIPT, *flags, "--output_dir", tmp_path / "out"), log=tmp_path / "log")
    process.join()
    printed = (tmp_path / "log").read_text()
    assert process.exitcode == 0, printed
    for name in ("guidance", "motion", "fps"):
        assert f"the U-Net is told {name}: yes" in printed
    assert len(list((tmp_path / "out" / "unet").glob("*.safetensors"))) > 1
    unet = VDMiniUNet3DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet", torch_dtype=torch.float64)
    inputs = [UNET_INPUTS[name] for name in ("latents", "timesteps", "context")]
    told = {"timestep_cond": TOLD["guidance"], "motion_cond": TOLD["motion"], "fps": UNET_INPUTS["fps"]}
    torch.testing.assert_close(unet(*inputs, **told).sample, expected["unet_mg"], rtol=0, atol=1e-10)
    scheduler = LCMScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler")
    scheduler.set_timesteps(8)
    assert scheduler.timesteps.tolist() == [999, 874, 749, 624, 499, 374, 249, 124]


class Evil:
    """Would write a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


class TestRefusals:
    def refuse(self, state, tmp_path, match):
        file = saved(state, tmp_path / "model.ckpt")
        with pytest.raises(OriginalCheckpointError, match=match):
            convert_t2v_turbo(file, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]

    def test_nothing_in_a_file_is_executed(self, whole, tmp_path):
        self.refuse({**whole, "evil": Evil(tmp_path / "written")}, tmp_path, "cannot be read as pickled weights")

    def test_a_u_net_alone_needs_the_rest(self, originals, tmp_path):
        self.refuse(originals[0]["unet_mg"], tmp_path, "is a U-Net alone: give VideoCrafter2's `model.ckpt`")

    def test_a_lora_is_not_a_checkpoint(self, tmp_path):
        self.refuse([torch.zeros(4, 64), torch.zeros(64, 4)], tmp_path, "holds a list, as T2V-Turbo's LoRA files do")

    def test_unknown_tensors_are_listed(self, whole, tmp_path):
        more = {"model_ema.decay": torch.zeros(1), "image_proj_model.latents": torch.zeros(1)}
        self.refuse(whole | more, tmp_path, "2 unknown tensors: image_proj_model.latents, model_ema.decay")

    def test_missing_tensors_are_listed(self, whole, tmp_path):
        del whole["first_stage_model.decoder.up.3.block.2.conv1.bias"]
        self.refuse(whole, tmp_path, r"of the VAE. 1 missing: decoder\.up\.3\.block\.2\.conv1\.bias")

    def test_a_part_that_is_missing_is_named(self, whole, tmp_path):
        rest = {name: t for name, t in whole.items() if not name.startswith("cond_stage_model.")}
        self.refuse(rest, tmp_path, "no text_encoder")

    def test_infinity_is_named(self, whole, tmp_path):
        whole["model.diffusion_model.out.2.bias"] = torch.full((4,), float("inf"), dtype=torch.float64)
        self.refuse(whole, tmp_path, "NaN or infinity, in what becomes 'conv_out.bias'")

    def test_other_things_than_tensors(self, whole, tmp_path):
        self.refuse({**whole, "epoch": 3}, tmp_path, "other things than tensors")

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt is not a file"):
            convert_t2v_turbo(tmp_path / "nothing.ckpt", tmp_path / "out")
