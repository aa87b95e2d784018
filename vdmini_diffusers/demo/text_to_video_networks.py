"""The networks of the text-to-video demo teacher before training: VideoCrafter2's classes, with few channels."""

import json
from collections.abc import Iterable

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    DDIMScheduler,
    UNetSpatioTemporalConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vdmini_diffusers.models import VDMiniUNet3DConditionModel


WIDTH = 64  # channels of the U-Net's stages, and of the text's tokens
MAX_TOKENS = 77
# How the few-step teacher was made of the other one, and is sampled best.
W_RANGE = (0.0, 2.0)  # guidance weights; T2V-Turbo's are 5 to 15
NUM_DDIM_STEPS = 20  # of the grid; T2V-Turbo's has 200
GUIDANCE_SCALE = 1.0


def build_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """CLIP's kind of byte-pair encoding, with the merges that make one token of each word of the captions.

    Each word has the same id every time. The trainer decides between equally frequent merges differently from process
    to process, so the parts of words, and what is made of other words, may differ.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers  # transformers brings it

    captions = sorted(captions)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # "!" comes first, as in CLIP: it has the id that pads
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
    model.train_from_iterator(captions, trainer)
    learned = json.loads(model.to_str())["model"]
    tokens = [
        *alphabet,
        *(letter + "</w>" for letter in alphabet),
        *("<|startoftext|>", "<|endoftext|>"),
        *sorted({word + "</w>" for caption in captions for word in caption.lower().split()}),
        *sorted(learned["vocab"]),
    ]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(dict.fromkeys(tokens))},
        merges=[tuple(pair) for pair in learned["merges"]],  # pyright: ignore[reportArgumentType] - it takes pairs
        model_max_length=MAX_TOKENS,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,  # pyright: ignore[reportArgumentType] - an int
            eos_token_id=tokenizer.eos_token_id,  # pyright: ignore[reportArgumentType] - an int
            pad_token_id=0,
        )
    )


def build_t2v_unet() -> VDMiniUNet3DConditionModel:
    """VideoCrafter2's four stages, conditioned on the frame rate and not on the guidance scale."""
    return VDMiniUNet3DConditionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
        up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
        block_out_channels=(WIDTH,) * 4,
        layers_per_block=2,
        cross_attention_dim=WIDTH,
        attention_head_dim=32,
        mid_block_type="UNetMidBlock3DCrossAttn",
        time_cond_proj_dim=None,
        motion_cond_proj_dim=None,
    )


def start_from_image_to_video(unet: VDMiniUNet3DConditionModel, teacher: UNetSpatioTemporalConditionModel) -> None:
    """Start at what an image-to-video U-Net of the same widths does without its image, in each frame by itself, as
    VideoCrafter2 starts from Stable Diffusion's layers. Layers in time start as the identity.

    Both predict v from the same noisy latents; only their conditioning on the noise level differs.
    """
    state_dict = unet.state_dict()
    inherited = {name.replace(".spatial_res_block", ""): tensor for name, tensor in teacher.state_dict().items()}
    inherited["conv_in.weight"] = inherited["conv_in.weight"][:, : unet.config.in_channels]
    for name, tensor in state_dict.items():
        if name in inherited:
            tensor.copy_(inherited[name])
        elif name.endswith(("proj_out.weight", "proj_out.bias")) or "fps_embedding.linear_2" in name:
            tensor.zero_()  # of layers in time, each of which is added to what comes in
    _learn_timesteps(unet, teacher)


@torch.enable_grad()
def _learn_timesteps(unet: VDMiniUNet3DConditionModel, teacher: UNetSpatioTemporalConditionModel) -> None:
    """Embed timestep t as the teacher embeds the noise level of `build_t2v_scheduler` there, at SVD's defaults."""
    alphas_cumprod = build_t2v_scheduler().alphas_cumprod
    timesteps = torch.arange(len(alphas_cumprod))
    sigmas = ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5
    added_time_ids = torch.tensor([6.0, 127.0, 0.02])
    with torch.no_grad():
        added = teacher.add_embedding(teacher.add_time_proj(added_time_ids).flatten()[None])
        wanted = teacher.time_embedding(teacher.time_proj(0.25 * sigmas.log())) + added
    projected = unet.time_proj(timesteps)
    layers = (unet.time_embedding.linear_1, unet.time_embedding.linear_2)
    optimizer = torch.optim.Adam([p for layer in layers for p in layer.parameters()], lr=1e-3)
    for _ in range(500):
        embedded = layers[1](nn.functional.silu(layers[0](projected)))
        nn.functional.mse_loss(embedded, wanted).backward()
        optimizer.step()
        optimizer.zero_grad()


def build_t2v_scheduler() -> DDIMScheduler:
    """VideoCrafter2's noise schedule. The U-Net predicts v, as a small one predicts the noise of the last levels too
    badly."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    )


def frame_by_frame(vae: AutoencoderKLTemporalDecoder) -> AutoencoderKL:
    """The same encoder; a decoder without layers in time, which starts at the other's layers in space.

    With one layer per block, the other VAE's mid block runs its first ResBlock only. This one also runs an attention
    and a second ResBlock, which start as the identity.
    """
    config = vae.config
    made = AutoencoderKL(
        down_block_types=config.down_block_types,
        up_block_types=("UpDecoderBlock2D",) * len(config.down_block_types),  # pyright: ignore[reportArgumentType] - annotated as a tuple of one
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        sample_size=config.sample_size,
        scaling_factor=config.scaling_factor,
        use_post_quant_conv=False,
    )
    state_dict = made.state_dict()
    state_dict |= {
        name.replace(".spatial_res_block", ""): tensor
        for name, tensor in vae.state_dict().items()
        if ".temporal_res_block" not in name and "time_mixer" not in name and "time_conv_out" not in name
    }
    if config.layers_per_block == 1:
        for name in ("attentions.0.to_out.0", "resnets.1.conv2"):
            for key in (f"decoder.mid_block.{name}.weight", f"decoder.mid_block.{name}.bias"):
                state_dict[key] = torch.zeros_like(state_dict[key])
    made.load_state_dict(state_dict)
    return made
