"""OpenCLIP's ViT-H/14, both towers: the original names of its tensors as transformers' [`CLIPModel`] has them.

HPSv2.1's weights are published under these names.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from vdmini_diffusers.t2v_turbo.tensors import OriginalCheckpointError, Source, convert_tensors
from vdmini_diffusers.t2v_turbo.text_encoder import HEAD, original_text_encoder_key


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
    sizes = ("visual.conv1.weight", "visual.positional_embedding", "token_embedding.weight", "text_projection")
    if absent := [name for name in sizes if name not in tensors]:
        raise OriginalCheckpointError(f"These are not the tensors of an OpenCLIP model: {', '.join(absent)} missing.")
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**clip_config(tensors)))
    turned = {name: tensors[name].T for name in PROJECTIONS.values() if name in tensors}  # applied from the right
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if "position_ids" not in name}
    converted = convert_tensors({**tensors, **turned}, shapes, original_clip_key, ("attn_mask",), "OpenCLIP model")
    model = model.to_empty(device="cpu")
    for tower in (model.text_model, model.vision_model):
        ids = tower.embeddings.position_ids
        ids.copy_(torch.arange(ids.shape[-1]).expand_as(ids))
    model.load_state_dict({name: tensor.float() for name, tensor in converted.items()}, strict=False)
    return model


def clip_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    width, _, patch, _ = tensors["visual.conv1.weight"].shape
    positions = tensors["visual.positional_embedding"].shape[0]
    vocabulary, text_width = tensors["token_embedding.weight"].shape
    common = {"hidden_act": "gelu", "layer_norm_eps": 1e-5}
    return {
        "projection_dim": tensors["text_projection"].shape[1],
        "vision_config": {
            **common,
            "hidden_size": width,
            "intermediate_size": tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": _count_layers(tensors, "visual.transformer.resblocks."),
            "num_attention_heads": VISION_HEADS,
            "patch_size": patch,
            "image_size": patch * round((positions - 1) ** 0.5),
        },
        "text_config": {
            **common,
            "vocab_size": vocabulary,
            "hidden_size": text_width,
            "intermediate_size": tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": _count_layers(tensors, "transformer.resblocks."),
            "num_attention_heads": text_width // HEAD,
            "max_position_embeddings": tensors["positional_embedding"].shape[0],
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": 0,
        },
    }


def _count_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})
