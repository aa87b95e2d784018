"""Our conversions against the authors' own networks, LoRA, samplers and pipeline, narrow, with every tensor random.

Their code has no licence, so that none of it is here: `T2V_TURBO_SOURCE` points to a checkout of it.

    git clone https://github.com/Ji4chenLi/t2v-turbo checkout && pip install einops
    T2V_TURBO_SOURCE=checkout python -m pytest tests/official/test_t2v_turbo_source.py -m slow
"""

import importlib
import os
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from vdmini_diffusers import VDMiniT2VPipeline
from vdmini_diffusers.t2v_turbo.convert import convert_unet, convert_vae, scheduler
from vdmini_diffusers.t2v_turbo.lora import merge_lora
from vdmini_diffusers.t2v_turbo.unet import unet_config


if "T2V_TURBO_SOURCE" not in os.environ:
    pytest.skip("set T2V_TURBO_SOURCE to a checkout of Ji4chenLi/t2v-turbo", allow_module_level=True)

pytestmark = pytest.mark.slow

SETTINGS = {  # inference_t2v_512_v2.0.yaml, but for the widths
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_head_channels": 8,
    "context_dim": 48,
    "use_linear": True,
    "temporal_conv": True,
    "use_relative_position": False,
    "temporal_length": 5,
    "addition_attention": True,
    "fps_cond": True,
}
GUIDED = {"time_cond_proj_dim": 256}
MOTION_GUIDED = {**GUIDED, "motion_cond_proj_dim": 256}


@pytest.fixture(scope="module")
def theirs():
    """Their modules. Of what they import, the packages that these networks do not use are left out."""
    pytest.importorskip("einops")
    unused = ("cv2", "torchvision", "torchvision.utils", "pytorch_lightning", "lvdm.models.ddpm3d")
    with pytest.MonkeyPatch.context() as patch:
        for name in unused:
            patch.setitem(sys.modules, name, ModuleType(name))
        patch.setattr(sys.modules["pytorch_lightning"], "LightningModule", nn.Module, raising=False)
        patch.setattr(sys.modules["lvdm.models.ddpm3d"], "LatentDiffusion", nn.Module, raising=False)
        patch.syspath_prepend(os.environ["T2V_TURBO_SOURCE"])
        yield SimpleNamespace(
            unet=importlib.import_module("lvdm.modules.networks.openaimodel3d").UNetModel,
            vae=importlib.import_module("lvdm.models.autoencoder").AutoencoderKL,
            scheduler=importlib.import_module("scheduler.t2v_turbo_scheduler").T2VTurboScheduler,
            pipeline=importlib.import_module("pipeline.t2v_turbo_vc2_pipeline").T2VTurboVC2Pipeline,
            sampler=importlib.import_module("lvdm.models.samplers.ddim").DDIMSampler,
            lora=importlib.import_module("utils.lora"),
            lora_handler=importlib.import_module("utils.lora_handler").LoraHandler,
        )


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.06, generator=generator)
    return model.eval()


def their_unet(theirs, **dims) -> nn.Module:
    unet = randomised(theirs.unet(**SETTINGS, **dims)).double()
    unet.dtype = torch.float64
    return unet


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def inputs(**dims) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    latents, text = torch.randn(2, 4, 5, 16, 24).double(), torch.randn(2, 7, 48).double()
    names = {"time_cond_proj_dim": "timestep_cond", "motion_cond_proj_dim": "motion_cond"}
    return (latents, torch.tensor([459, 19]), text), {names[n]: torch.randn(2, d).double() for n, d in dims.items()}


def assert_same(ours: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert expected.std() > 1e-3
    assert ((ours - expected).abs().max() / expected.std()).item() < tolerance


@torch.no_grad()
@pytest.mark.parametrize("dims", [{}, GUIDED, MOTION_GUIDED], ids=["VideoCrafter2", "v1", "v2"])
def test_the_converted_unet_computes_what_theirs_computes(theirs, dims):
    unet = their_unet(theirs, **dims)
    (latents, timesteps, text), conditions = inputs(**dims)
    expected = unet(latents, timesteps, context=text, fps=8, **conditions)
    assert_same(convert_unet(tensors_of(unet))(latents, timesteps, text, fps=8, **conditions).sample, expected, 1e-12)


@torch.no_grad()
def test_the_merged_lora_computes_what_theirs_computes(theirs, tmp_path):
    base = their_unet(theirs, **GUIDED)
    tensors = tensors_of(base)
    del tensors["time_cond_proj.weight"]  # VideoCrafter2 has none
    torch.manual_seed(5)  # as their programs draw it
    base.time_cond_proj = nn.Linear(256, SETTINGS["model_channels"], bias=False).double()
    handler = theirs.lora_handler(use_unet_lora=True, unet_replace_modules=["UNetModel"])
    handler.add_lora_to_model(True, base, handler.unet_replace_modules, r=4)
    generator = torch.Generator().manual_seed(2)
    for pair in theirs.lora.extract_lora_ups_down(base, ["UNetModel"]):
        for factor in pair:  # `up` starts at zero
            nn.init.normal_(factor.weight, std=0.1, generator=generator)
    theirs.lora.save_lora_weight(base, tmp_path / "unet_lora.pt", ["UNetModel"])
    (latents, timesteps, text), conditions = inputs(**GUIDED)
    base.double().eval()  # what was added was in training, with dropout
    expected = base(latents, timesteps, context=text, fps=8, **conditions)
    factors = [factor.double() for factor in torch.load(tmp_path / "unet_lora.pt", weights_only=True)]
    ours = convert_unet({name: t.double() for name, t in merge_lora(tensors, factors, time_cond_proj_seed=5).items()})
    assert_same(ours(latents, timesteps, text, fps=8, **conditions).sample, expected, 1e-6)


@torch.no_grad()
def test_the_converted_vae_computes_what_theirs_computes(theirs):
    settings = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32}
    settings |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    vae = randomised(theirs.vae(settings, {"target": "torch.nn.Identity"}, embed_dim=4)).double()
    ours = convert_vae(tensors_of(vae)).double()
    generator = torch.Generator().manual_seed(3)
    frames = torch.rand(2, 3, 64, 96, generator=generator).double() * 2 - 1
    assert_same(ours.encode(frames).latent_dist.mean, vae.encode(frames).mean, 1e-12)
    latents = torch.randn(2, 4, 8, 12, generator=generator).double()
    assert_same(ours.decode(latents).sample, vae.decode(latents), 1e-12)


@torch.no_grad()
def test_videocrafter2s_scheduler_gives_the_latents_that_their_sampler_gives(theirs):
    unet = their_unet(theirs)
    ours = scheduler(unet_config(tensors_of(unet)))
    ours.set_timesteps(10)
    (noise, _, text), _ = inputs()
    latents = noise
    for t in ours.timesteps:
        output = unet(latents, t.expand(2), context=text, fps=8)
        latents = ours.step(output, t, latents).prev_sample

    scales = torch.cat([torch.linspace(1.0, 0.7, 400), torch.full((1000,), 0.7)])
    model = SimpleNamespace(
        num_timesteps=1000,
        device="cpu",
        betas=ours.betas,
        alphas_cumprod=ours.alphas_cumprod,
        alphas_cumprod_prev=torch.cat([torch.ones(1), ours.alphas_cumprod[:-1]]),
        use_scale=True,
        scale_arr=scales,
        apply_model=lambda x, t, c, **_: unet(x, t, context=c, fps=8),
    )
    sampler = theirs.sampler(model)
    sampler.register_buffer = partial(setattr, sampler)  # theirs puts all on a GPU
    expected, _ = sampler.sample(10, 2, noise.shape[1:], conditioning=text, x_T=noise, verbose=False)
    assert_same(latents, expected, 1e-5)


@pytest.mark.parametrize("num_inference_steps", [4, 8, 16])
def test_the_pipeline_gives_the_latents_that_theirs_gives(theirs, num_inference_steps, monkeypatch):
    unet = randomised(theirs.unet(**SETTINGS, **MOTION_GUIDED))
    converted = convert_unet(tensors_of(unet))
    pipe = VDMiniT2VPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=converted, scheduler=scheduler(converted.config)
    )
    torch.manual_seed(4)
    common = {
        "prompt_embeds": torch.randn(2, 7, 48),
        "latents": torch.randn(2, 4, 5, 8, 16),
        "height": 64,
        "width": 128,
        "fps": 8,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": 7.5,
        "output_type": "latent",
    }
    ours = pipe(
        **common,
        num_frames=5,
        motion_guidance_scale=0.1,
        motion_guidance_percentage=0.3,
        generator=torch.Generator().manual_seed(3),
    ).frames

    # Their constructor wants a whole `LatentDiffusion`; what sampling needs of it is these.
    original = theirs.pipeline.__new__(theirs.pipeline)
    DiffusionPipeline.__init__(original)
    monkeypatch.setattr(theirs.pipeline, "_execution_device", torch.device("cpu"))
    monkeypatch.setattr(theirs.pipeline, "dtype", torch.float32)
    vars(original).update(
        unet=unet,
        scheduler=theirs.scheduler(),
        vae_scale_factor=8,
        model_config={"params": {"unet_config": {"params": {"in_channels": 4}}}},
    )
    expected = original(
        **common,
        frames=5,
        lcm_origin_steps=200,
        use_motion_cond=True,
        motion_gs=0.1,
        percentage=0.3,
        generator=torch.Generator().manual_seed(3),
    )
    assert_same(ours, expected, 1e-5)
