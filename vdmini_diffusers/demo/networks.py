"""The networks of the demo teachers before training: SVD's and VideoCrafter2's classes, with few channels."""

import json
from collections.abc import Iterable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    DDIMScheduler,
    EulerDiscreteScheduler,
    UNetSpatioTemporalConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from vdmini_diffusers.models import VDMiniUNet3DConditionModel


SIZE = 64  # pixels
NUM_FRAMES = 16
EMBEDDING_DIM = 64  # of the image's one token and of the text's
MAX_TOKENS = 77
UNET_WIDTHS = (64, 32, 32, 32)  # at 8 x 8 latents most is decided in the first stage
LATENT_CHANNELS = 8
NUM_VAE_STAGES = 4
VAE_WIDTH = 96


def build_i2v_vae(num_stages: int = NUM_VAE_STAGES) -> AutoencoderKLTemporalDecoder:
    """With four stages, three downsamplers, 64 pixels to 8 latents: SVD's eightfold reduction. With three stages, half
    as many latent channels at 16 x 16.

    A group of the 32 groups of a norm holds three of the 96 channels, and tells a colour from its absence; with one or
    two channels a group, the norms before the two last convolutions would take every mean away.
    """
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * num_stages,  # pyright: ignore[reportArgumentType] - annotated as a tuple of one
        block_out_channels=(VAE_WIDTH,) * num_stages,  # pyright: ignore[reportArgumentType] - the same
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS if num_stages == NUM_VAE_STAGES else LATENT_CHANNELS // 2,
        sample_size=SIZE,
    )
    start_as_thumbnail(vae)
    return vae


@torch.no_grad()
def start_as_thumbnail(vae: AutoencoderKLTemporalDecoder, reference: float = 3.0, offset: float = 4.0) -> None:
    """Start the VAE at what a random start needs thousands of steps to find: three of the four latents are the mean
    colours of squares of pixels, and are decoded by smooth upsampling. The rest of the network starts at random.

    Each colour leads one of the norms' 32 groups, in which `reference` and its negative come
    next and nothing after them: from these the last convolution reads the mean back. `offset` keeps the SiLU behind
    the norm nearly linear.
    """
    smooth = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16
    centre, mean = torch.zeros(3, 3), torch.zeros(3, 3)
    centre[1, 1], mean[:2, :2] = 1, 0.25
    per_group = VAE_WIDTH // 32
    used = 3 * per_group

    def carry(conv: Any, taps: torch.Tensor, stride: int = per_group) -> None:
        conv.weight[:used] = 0
        conv.bias[:used] = 0
        conv.bias[1:used:per_group], conv.bias[2:used:per_group] = reference, -reference
        for colour in range(3):
            conv.weight[per_group * colour, stride * colour] = taps

    def read(norm: nn.GroupNorm, conv: Any) -> None:
        norm.weight[:used] = (2 / per_group) ** 0.5 * reference / 4  # about a quarter of the colour
        norm.bias[:used] = offset
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
        for colour in range(3):
            for channel, share in enumerate((1.0, -0.5, -0.5)):
                conv.weight[colour, per_group * colour + channel] = 4 * share * centre

    parts: dict[str, Any] = dict(vae.named_modules())
    for name, module in parts.items():
        if name.endswith((".conv2", ".to_out.0")):  # residual blocks and attention start as the identity
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    carry(vae.encoder.conv_in, centre, stride=1)
    for i in range(len(vae.encoder.down_blocks) - 1):
        carry(parts[f"encoder.down_blocks.{i}.downsamplers.0.conv"], mean)
    read(vae.encoder.conv_norm_out, vae.encoder.conv_out)
    channels = vae.config.latent_channels
    vae.encoder.conv_out.weight[3:channels].normal_(std=0.02)
    vae.quant_conv.weight.copy_(torch.eye(2 * channels)[:, :, None, None])
    parts["quant_conv"].bias.copy_(torch.tensor([0.0] * channels + [-6.0] * channels))  # little noise at first
    carry(vae.decoder.conv_in, centre, stride=1)
    for i in range(len(vae.decoder.up_blocks) - 1):
        carry(parts[f"decoder.up_blocks.{i}.upsamplers.0.conv"], smooth)
    read(vae.decoder.conv_norm_out, vae.decoder.conv_out)
    vae.decoder.time_conv_out.weight.copy_(torch.eye(3).view(3, 3, 1, 1, 1) * torch.tensor([0.0, 1, 0]).view(3, 1, 1))
    parts["decoder.time_conv_out"].bias.zero_()


@torch.no_grad()
def grow_vae(vae: AutoencoderKLTemporalDecoder, smaller: AutoencoderKLTemporalDecoder) -> None:
    """Start at the outer layers of a trained VAE that has the same widths and one stage less."""
    state_dict = vae.state_dict()
    last = len(vae.config.block_out_channels) - 1
    for name, tensor in smaller.state_dict().items():
        part = name.split(".")
        if part[:2] == ["decoder", "up_blocks"]:
            name = ".".join([*part[:2], str(int(part[2]) + 1), *part[3:]])
        inner = (
            "mid_block" in name
            or "quant_conv" in name
            or name.startswith(("decoder.conv_in", f"encoder.down_blocks.{last}"))
        )
        if not inner and not name.startswith(("encoder.conv_norm_out", "encoder.conv_out")):
            state_dict[name].copy_(tensor)


def build_i2v_unet() -> UNetSpatioTemporalConditionModel:
    """SVD's four stages, narrow. The last two widths agree, as in SVD, so that the paper's plan applies."""
    return UNetSpatioTemporalConditionModel(
        sample_size=SIZE // 8,
        in_channels=2 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=UNET_WIDTHS,
        num_attention_heads=(2, 1, 1, 1),
        cross_attention_dim=EMBEDDING_DIM,
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        num_frames=NUM_FRAMES,
    )


def build_image_encoder() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=224,  # what the SVD pipeline resizes to
            patch_size=32,
            projection_dim=EMBEDDING_DIM,
        )
    )


def build_i2v_scheduler() -> EulerDiscreteScheduler:
    """With SVD's settings."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        timestep_type="continuous",
        steps_offset=1,
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


def build_t2v_unet() -> VDMiniUNet3DConditionModel:
    """VideoCrafter2's four stages, conditioned on the frame rate and not on the guidance scale."""
    return VDMiniUNet3DConditionModel(
        sample_size=SIZE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
        up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
        block_out_channels=UNET_WIDTHS,
        norm_num_groups=16,
        layers_per_block=2,
        cross_attention_dim=EMBEDDING_DIM,
        attention_head_dim=8,
        mid_block_type="UNetMidBlock3DCrossAttn",
        time_cond_proj_dim=None,
        motion_cond_proj_dim=None,
    )


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
            hidden_size=EMBEDDING_DIM,
            intermediate_size=4 * EMBEDDING_DIM,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,  # pyright: ignore[reportArgumentType] - an int
            eos_token_id=tokenizer.eos_token_id,  # pyright: ignore[reportArgumentType] - an int
            pad_token_id=0,
        )
    )
