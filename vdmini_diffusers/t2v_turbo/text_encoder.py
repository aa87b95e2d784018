"""The text encoder of VideoCrafter2, OpenCLIP ViT-H/14: the original names of its tensors, and its config.

VideoCrafter2 runs all layers but the last, and then the final norm: the last layer is left out.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from vdmini_diffusers.t2v_turbo.tensors import Source, axis_size


PREFIX = "cond_stage_model.model."
HEAD = 64  # channels of an attention head
RENAMED = {
    r"^embeddings\.token_embedding\.": "token_embedding.",
    r"^embeddings\.position_embedding\.weight$": "positional_embedding",
    r"^final_layer_norm\.": "ln_final.",
    r"^encoder\.layers\.(\d+)\.": r"transformer.resblocks.\1.",
    r"\.layer_norm([12])\.": r".ln_\1.",
    r"\.self_attn\.out_proj\.": ".attn.out_proj.",
    r"\.mlp\.fc1\.": ".mlp.c_fc.",
    r"\.mlp\.fc2\.": ".mlp.c_proj.",
}


def original_text_encoder_key(key: str) -> Source:
    """The original of a tensor of [`CLIPTextModel`], without the prefix that it has in a whole checkpoint."""
    key = key.removeprefix("text_model.")  # before transformers 5
    for pattern, replacement in RENAMED.items():
        key = re.sub(pattern, replacement, key)
    if match := re.fullmatch(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)", key):
        return Source(f"{match[1]}.attn.in_proj_{match[3]}", third="qkv".index(match[2]))
    return Source(key)


def unused_text_encoder_keys(tensors: Mapping[str, Tensor]) -> set[str]:
    """What VideoCrafter2 never computes with: the last layer, the projection to CLIP's space, the causal mask."""
    last = f"transformer.resblocks.{num_layers(tensors, 'transformer.resblocks.') - 1}."
    return {name for name in tensors if name.startswith(last)} | {"text_projection", "logit_scale", "attn_mask"}


def text_encoder_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config of [`CLIPTextModel`] that these tensors, under their original names, fill.

    Raises:
        OriginalCheckpointError: if the tensors by which the sizes are known are missing.
    """
    config = text_tower_config(tensors, "text encoder of VideoCrafter2")
    return {**config, "num_hidden_layers": config["num_hidden_layers"] - 1}


def text_tower_config(tensors: Mapping[str, Tensor], network: str) -> dict[str, Any]:
    """As `text_encoder_config`, with all layers. `network` is for the error."""
    size = partial(axis_size, tensors, network)
    vocabulary, width = size("token_embedding.weight", 0), size("token_embedding.weight", 1)
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": size("transformer.resblocks.0.mlp.c_fc.weight", 0),
        "num_hidden_layers": num_layers(tensors, "transformer.resblocks."),
        "num_attention_heads": width // HEAD,
        "max_position_embeddings": size("positional_embedding", 0),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0,
    }


def num_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Layers with numbers after `prefix`. They are counted, as a file may have any number in a name."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})
