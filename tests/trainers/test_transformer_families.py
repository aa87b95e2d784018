"""Wan and CogVideoX, trained as HunyuanVideo is: what their transformers predict, and a pruned student of each."""

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from safetensors.torch import load_file
from tiny import randomise
from tiny_video_transformers import TRANSFORMERS, tiny_transformer
from tiny_wan import tiny_wan_pipeline

from vdmini_diffusers import distill
from vdmini_diffusers.data.latents import LatentShards
from vdmini_diffusers.families import family_of, find_family
from vdmini_diffusers.pruning import TransformerPruningPlan
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
FEW = {
    "max_train_steps": 2,
    "lr_warmup_steps": 0,
    "learning_rate": 1e-2,
    "mixed_precision": "no",
    "discriminator_width": 32,
    "critic_block_stride": 2,
    "critic_warmup_steps": 0,
    "mca_start_step": 0,
}


def rotary_cogvideox() -> CogVideoXTransformer3DModel:
    """As the 5B model, whose places are rotated. Sixteen channels a head are the fewest."""
    config = TRANSFORMERS["CogVideoXTransformer3DModel"].config
    rotary = {"attention_head_dim": 16, "use_rotary_positional_embeddings": True}
    return randomise(CogVideoXTransformer3DModel(**{**config, **rotary})).eval()


def cogvideox_pipeline() -> CogVideoXPipeline:
    """Without encoders, which training on precomputed latents does not need."""
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0
    )
    parts = {"tokenizer": None, "text_encoder": None, "vae": None}
    return CogVideoXPipeline(**parts, transformer=rotary_cogvideox(), scheduler=scheduler)


def wan_pipeline():
    pipe = tiny_wan_pipeline(("transformer",))
    pipe.register_modules(text_encoder=None, tokenizer=None, vae=None)
    return pipe


KINDS = {
    "WanPipeline": (wan_pipeline, "blocks"),
    "CogVideoXPipeline": (cogvideox_pipeline, "transformer_blocks"),
}


@pytest.fixture(scope="module", params=KINDS)
def folders(request, tmp_path_factory):
    """Teacher, pruned student, precomputed latents."""
    make, blocks = KINDS[request.param]
    folder = tmp_path_factory.mktemp("family")
    pipe = make()
    pipe.save_pretrained(folder / "teacher")
    plan = TransformerPruningPlan("tiny", type(pipe.transformer).__name__, {blocks: (0, 1, 3)})
    student = prune_pipeline(folder / "teacher", folder / "student", plan)
    generator = torch.Generator().manual_seed(0)
    tensors = {"latents": (2, 4, 8, 8), "prompt_embeds": (5, 16)}
    samples = [
        {name: torch.randn(shape, generator=generator) for name, shape in tensors.items()}
        | {"fps": torch.tensor(16.0)}
        for _ in range(4)
    ]
    shards = LatentShards(folder / "latents", {})
    shards.write(0, samples, [{"name": str(i), "caption": ""} for i in range(4)])
    shards.finish([])
    return folder / "teacher", student, folder / "latents"


def test_a_pruned_student_is_trained_in_either_kind(folders, tmp_path):
    teacher, student, latents = folders
    settings = {**FEW, "precomputed_data_dir": str(latents), "lambda_data_critic": 1.0, "use_ema": True}
    out = distill(teacher, student, tmp_path / "out", **settings)
    before, after = load_file(student / WEIGHTS), load_file(out / WEIGHTS)
    assert set(before) == set(after) and any(not torch.equal(before[name], after[name]) for name in before)
    if find_family(str(teacher)).name == "CogVideoX":
        with pytest.raises(ValueError, match="predicts v at DDPM's timesteps"):
            distill(teacher, student, tmp_path / "no", **{**settings, "flow_shift": 7.0})


@torch.no_grad()
def test_wan_predicts_what_the_stock_transformer_does():
    family, transformer = family_of("WanPipeline"), tiny_transformer("WanTransformer3DModel")
    latents = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    embeds = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([10.0, 500.0])
    expected = transformer(latents.transpose(1, 2), timesteps, embeds).sample.transpose(1, 2)
    assert torch.equal(family.predict(transformer, latents, timesteps, {"prompt_embeds": embeds}), expected)
    assert family.token_grid(transformer.config, latents.shape) == (2, 4, 4)


@torch.no_grad()
def test_cogvideox_predicts_what_its_pipeline_lets_it():
    family, pipe = family_of("CogVideoXPipeline"), cogvideox_pipeline()
    latents = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    embeds = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([10, 500])
    rotary = pipe._prepare_rotary_positional_embeddings(64, 64, 2, torch.device("cpu"))
    expected = pipe.transformer(latents, embeds, timesteps, image_rotary_emb=rotary).sample
    assert torch.equal(family.predict(pipe.transformer, latents, timesteps, {"prompt_embeds": embeds}), expected)
    assert family.token_grid(pipe.transformer.config, latents.shape) == (2, 4, 4)


def test_wan_s_clips_are_encoded_as_its_pipeline_decodes_them():
    family, pipe = family_of("WanPipeline"), tiny_wan_pipeline(("transformer",))
    videos = torch.rand(1, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = {"pixel_values": videos, "caption": ["a cat"], "fps": torch.tensor([16])}
    encoded = family.encode(batch, pipe, [torch.Generator().manual_seed(1)])
    drawn = pipe.vae.encode(videos.transpose(1, 2)).latent_dist.sample(torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(pipe.vae.config[f"latents_{name}"])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close(encoded["latents"] * std + mean, drawn.transpose(1, 2), rtol=1e-4, atol=1e-5)
    assert encoded["prompt_embeds"].shape == (1, 512, 16)
    assert family.clip_shape({name: value[0] for name, value in encoded.items()}, pipe).num_frames == 5


def test_a_pipeline_of_two_experts_is_refused(tmp_path):
    tiny_wan_pipeline().save_pretrained(tmp_path / "teacher")
    plan = TransformerPruningPlan("tiny", "WanTransformer3DModel", {"blocks": (0, 1, 3)})
    student = prune_pipeline(tmp_path / "teacher", tmp_path / "student", plan)
    with pytest.raises(ValueError, match="has two denoisers for different noise levels"):
        distill(tmp_path / "teacher", student, tmp_path / "out", precomputed_data_dir="none", **FEW)
