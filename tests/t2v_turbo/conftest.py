import json

import original_text_encoder
import original_unet
import original_vae
import pytest
import torch
from drawn_weights import DrawnWeights
from original_inputs import CONTEXT, LATENTS, PIXELS, TOKENS, UNET_INPUTS, normal
from tiny_text_to_video import CLIP_EXCERPT


# The buffers of the original's noise schedule, which lie beside the weights.
SCHEDULE = [
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    "scale_arr",
]


@pytest.fixture(scope="session")
def originals():
    """Weights with the original's 32 groups, and what they compute: the U-Nets of two files, VAE, text encoder."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(original_unet, "GROUPS", 32)
        patch.setattr(original_unet, "WIDTHS", (32, 32, 64, 64))
        patch.setattr(original_vae, "GROUPS", 32)
        patch.setattr(original_vae, "WIDTHS", (32, 32, 64, 64))
        patch.setattr(original_text_encoder, "VOCABULARY", 514)
        weights = {name: DrawnWeights(seed=i) for i, name in enumerate(("unet", "unet_mg", "vae", "text_encoder"))}
        conditions = {"guidance": normal(1, 12), "motion": normal(1, 10)}
        outputs = {
            "unet": original_unet.unet(weights["unet"], **UNET_INPUTS),
            "unet_mg": original_unet.unet(weights["unet_mg"], **UNET_INPUTS, **conditions),
            "vae": original_vae.encode(weights["vae"], PIXELS)[:, :4],
            "text_encoder": original_text_encoder.text_encoder(weights["text_encoder"], TOKENS),
        }
        original_vae.decode(weights["vae"], LATENTS)
    assert original_text_encoder.WIDTH == CONTEXT
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


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """CLIP's bytes and marks, 514 tokens, in a folder like that of Stable Diffusion 2's, which pads with `!`."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokens = json.loads((CLIP_EXCERPT / "vocab.json").read_text())
    bytes_ = {token: number for token, number in tokens.items() if number < 512}
    assert len(bytes_) == 512
    vocabulary = {**bytes_, "<|startoftext|>": 512, "<|endoftext|>": 513}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "pad_token": "!"}))
    return folder
