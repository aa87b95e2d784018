"""Tiny Wan pipelines with every tensor random: 2.1 with one transformer, 2.2 with two."""

from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
from tiny import randomise
from tiny_video_transformers import tiny_transformer
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel


def tiny_wan_vae() -> AutoencoderKLWan:
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[-0.75, -0.5, 0.25, 0.0],
        latents_std=[2.0, 1.5, 1.0, 0.5],
    )
    return randomise(vae, 2).eval()


def tiny_t5_tokenizer() -> T5Tokenizer:
    """With letters as tokens."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581", -2.0),
        *((chr(i), -3.0) for i in range(97, 123)),
    ]
    return T5Tokenizer(vocab=pieces)


def tiny_wan_pipeline(transformers: tuple[str, ...] = ("transformer", "transformer_2")) -> WanPipeline:
    """With the transformers that are named. Their weights differ."""
    umt5 = UMT5Config(vocab_size=150, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    denoisers = {"transformer": tiny_transformer("WanTransformer3DModel"), "transformer_2": None}
    denoisers["transformer_2"] = randomise(tiny_transformer("WanTransformer3DModel"), 5)
    return WanPipeline(
        tokenizer=tiny_t5_tokenizer(),
        text_encoder=randomise(UMT5EncoderModel(umt5), 1).eval(),
        vae=tiny_wan_vae(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        **{name: denoiser if name in transformers else None for name, denoiser in denoisers.items()},
        boundary_ratio=0.875 if "transformer_2" in transformers else None,
    )
