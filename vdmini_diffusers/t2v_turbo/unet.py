"""The U-Net of VideoCrafter2, T2V-Turbo and T2V-Turbo-v2: the original names of its tensors, and its config.

The original numbers the layers of all four levels through: three entries of `input_blocks` are a level, two layers and
a downsampler; three of `output_blocks` are a level, three layers, the last with the upsampler as its last part.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from vdmini_diffusers.t2v_turbo.tensors import Source, axis_size


TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.fps_embedding.linear_1": "fps_embedding.0",
    "time_embedding.fps_embedding.linear_2": "fps_embedding.2",
    "time_embedding.cond_proj": "time_cond_proj",
    "time_embedding.motion_cond_proj": "motion_cond_proj",
    "time_embedding.combine_proj": "combine_proj",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
PARTS = {"resnets": 0, "temp_convs": 0, "attentions": 1, "temp_attentions": 2}  # of an entry of the original's lists
LEVEL = 3  # entries of a level


def original_unet_key(key: str) -> Source:
    """The original of a tensor of [`VDMiniUNet3DConditionModel`] with the four stages of a teacher."""
    parts = key.split(".")
    top, _, kind = key.rpartition(".")
    if top in TOP:
        return Source(f"{TOP[top]}.{kind}")
    if parts[0] == "transformer_in":
        return Source(".".join(["init_attn.0", *parts[1:]]))
    if parts[0] == "mid_block":
        part, index, rest = parts[1], int(parts[2]), parts[3:]
        entry = f"middle_block.{3 * index if PARTS[part] == 0 else PARTS[part]}"
        return Source(".".join([entry, *_inside(part, rest)]))
    stage, part, index, rest = int(parts[1]), parts[2], int(parts[3]), parts[4:]
    if part == "downsamplers":
        return Source(f"input_blocks.{LEVEL * stage + LEVEL}.0.op.{kind}")
    if part == "upsamplers":
        last = 1 if stage == 0 else 3  # the innermost level has no attention
        return Source(f"output_blocks.{LEVEL * stage + LEVEL - 1}.{last}.conv.{kind}")
    down = parts[0] == "down_blocks"
    entry = f"input_blocks.{1 + LEVEL * stage + index}" if down else f"output_blocks.{LEVEL * stage + index}"
    return Source(".".join([entry, str(PARTS[part]), *_inside(part, rest)]))


def _inside(part: str, rest: list[str]) -> list[str]:
    if part == "resnets":
        return [RESNET[rest[0]], *rest[1:]]
    return ["temopral_conv", *rest] if part == "temp_convs" else rest  # the original's spelling


def unet_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config of [`VDMiniUNet3DConditionModel`] that these tensors, under their original names, fill.

    The network's conditions are recognised by their layers: VideoCrafter2 has a frame rate, T2V-Turbo
    guidance as well, T2V-Turbo-v2 with motion guidance all three.

    Raises:
        OriginalCheckpointError: if the tensors by which the sizes are known are missing.
    """
    size = partial(axis_size, tensors, "U-Net of VideoCrafter2 or T2V-Turbo")
    return {
        "in_channels": size("input_blocks.0.0.weight", 1),
        "out_channels": size("out.2.weight", 0),
        "down_block_types": ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
        "up_block_types": ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
        "block_out_channels": tuple(size(f"input_blocks.{1 + LEVEL * i}.0.out_layers.3.weight", 0) for i in range(4)),
        "layers_per_block": 2,
        "cross_attention_dim": size("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", 1),
        "attention_head_dim": size("init_attn.0.proj_in.weight", 0) // 8,  # always eight heads
        "mid_block_type": "UNetMidBlock3DCrossAttn",
        "time_cond_proj_dim": size("time_cond_proj.weight", 1) if "time_cond_proj.weight" in tensors else None,
        "fps_cond": "fps_embedding.0.weight" in tensors,
        "motion_cond_proj_dim": size("motion_cond_proj.weight", 1) if "motion_cond_proj.weight" in tensors else None,
    }
