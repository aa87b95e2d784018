"""OpenCLIP's ViT-H/14, both towers: the original names of its tensors as transformers' [`CLIPModel`] has them.

HPSv2.1's weights are published under these names.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from vdmini_diffusers.t2v_turbo.tensors import Source, axis_size, convert_tensors
from vdmini_diffusers.t2v_turbo.text_encoder import num_layers, original_text_encoder_key, text_tower_config


VISION_HEADS = 16
RENAMED = {
    r"^embeddings\.patch_embedding\.weight$": "conv1.weight",
    r"^embeddings\.class_embedding$": "class_embedding",
    r"^embeddings\.position_embedding\.weight$": "positional_embedding",
    r"^pre_layrnorm\.": "ln_pre.",  # so spelt in transformers
    r"^post_layernorm\.": "ln_post.",
}
PROJECTIONS = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}


def original_clip_key(key: str) -> Source:
    """The original of a tensor of [`CLIPModel`]."""
    if key in PROJECTIONS:
        return Source(PROJECTIONS[key])
    tower, _, rest = key.partition(".")
    if tower == "text_model":
        return original_text_encoder_key(rest)
    if tower != "vision_model":
        return Source(key)  # logit_scale
    for pattern, replacement in RENAMED.items():
        if re.match(pattern, rest):
            return Source(f"visual.{re.sub(pattern, replacement, rest)}")
    source = original_text_encoder_key(rest)  # layers are named alike
    return Source(f"visual.{source.key}", source.third)


def clip_model(tensors: Mapping[str, Tensor]) -> CLIPModel:
    """The model with these tensors, under their original names.

    Raises:
        OriginalCheckpointError: if they are not those of an OpenCLIP ViT with a text tower.
    """
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**clip_config(tensors)))
    turned = {name: tensors[name].T for name in PROJECTIONS.values() if name in tensors}  # applied from the right
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    converted = convert_tensors({**tensors, **turned}, shapes, original_clip_key, ("attn_mask",), "OpenCLIP model")
    model = model.to_empty(device="cpu")
    for tower in (model.text_model, model.vision_model):  # the positions' numbers are in no file
        ids = tower.embeddings.position_ids
        ids.copy_(torch.arange(ids.shape[-1]).expand_as(ids))
    model.load_state_dict(converted)
    return model


def clip_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config of [`CLIPModel`]. Raises as `clip_model`."""
    size = partial(axis_size, tensors, "OpenCLIP model")
    patch = size("visual.conv1.weight", 2)
    return {
        "projection_dim": size("text_projection", 1),
        "vision_config": {
            "hidden_size": size("visual.conv1.weight", 0),
            "intermediate_size": size("visual.transformer.resblocks.0.mlp.c_fc.weight", 0),
            "num_hidden_layers": num_layers(tensors, "visual.transformer.resblocks."),
            "num_attention_heads": VISION_HEADS,
            "patch_size": patch,
            "image_size": patch * round((size("visual.positional_embedding", 0) - 1) ** 0.5),
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
        },
        "text_config": text_tower_config(tensors, "OpenCLIP model"),
    }
