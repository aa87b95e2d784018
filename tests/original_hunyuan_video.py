"""HunyuanVideo's transformer under the names of its authors, from diffusers' names. Written from their network."""

from collections.abc import Mapping

import torch
from torch import Tensor


TOP = {
    "x_embedder.": "img_in.",
    "time_text_embed.timestep_embedder.linear_1.": "time_in.mlp.0.",
    "time_text_embed.timestep_embedder.linear_2.": "time_in.mlp.2.",
    "time_text_embed.guidance_embedder.linear_1.": "guidance_in.mlp.0.",
    "time_text_embed.guidance_embedder.linear_2.": "guidance_in.mlp.2.",
    "time_text_embed.text_embedder.linear_1.": "vector_in.in_layer.",
    "time_text_embed.text_embedder.linear_2.": "vector_in.out_layer.",
    "norm_out.linear.": "final_layer.adaLN_modulation.1.",
    "proj_out.": "final_layer.linear.",
    "context_embedder.proj_in.": "txt_in.input_embedder.",
    "context_embedder.time_text_embed.timestep_embedder.linear_1.": "txt_in.t_embedder.mlp.0.",
    "context_embedder.time_text_embed.timestep_embedder.linear_2.": "txt_in.t_embedder.mlp.2.",
    "context_embedder.time_text_embed.text_embedder.": "txt_in.c_embedder.",
}
REFINER = "context_embedder.token_refiner.refiner_blocks."
# The parts of a block; several of diffusers' are rows of one original tensor, one after the other.
PARTS = {
    "transformer_blocks.": {
        ("attn.to_q.", "attn.to_k.", "attn.to_v."): "img_attn_qkv.",
        ("attn.add_q_proj.", "attn.add_k_proj.", "attn.add_v_proj."): "txt_attn_qkv.",
        ("attn.norm_q.",): "img_attn_q_norm.",
        ("attn.norm_k.",): "img_attn_k_norm.",
        ("attn.norm_added_q.",): "txt_attn_q_norm.",
        ("attn.norm_added_k.",): "txt_attn_k_norm.",
        ("attn.to_out.0.",): "img_attn_proj.",
        ("attn.to_add_out.",): "txt_attn_proj.",
        ("norm1.linear.",): "img_mod.linear.",
        ("norm1_context.linear.",): "txt_mod.linear.",
        ("ff.net.0.proj.",): "img_mlp.fc1.",
        ("ff.net.2.",): "img_mlp.fc2.",
        ("ff_context.net.0.proj.",): "txt_mlp.fc1.",
        ("ff_context.net.2.",): "txt_mlp.fc2.",
    },
    "single_transformer_blocks.": {
        ("attn.to_q.", "attn.to_k.", "attn.to_v.", "proj_mlp."): "linear1.",
        ("attn.norm_q.",): "q_norm.",
        ("attn.norm_k.",): "k_norm.",
        ("proj_out.",): "linear2.",
        ("norm.linear.",): "modulation.linear.",
    },
    REFINER: {
        ("attn.to_q.", "attn.to_k.", "attn.to_v."): "self_attn_qkv.",
        ("attn.to_out.0.",): "self_attn_proj.",
        ("norm1.",): "norm1.",
        ("norm2.",): "norm2.",
        ("ff.net.0.proj.",): "mlp.fc1.",
        ("ff.net.2.",): "mlp.fc2.",
        ("norm_out.linear.",): "adaLN_modulation.1.",
    },
}
PREFIXES = {
    "transformer_blocks.": "double_blocks.",
    "single_transformer_blocks.": "single_blocks.",
    REFINER: "txt_in.individual_token_refiner.blocks.",
}


def original_hunyuan_video(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `state`, each of which must be known."""
    left, original = dict(state), {}
    for prefix, parts in PARTS.items():
        blocks = sorted({int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix)})
        for block in blocks:
            for names, new in parts.items():
                for kind in ("weight", "bias"):
                    found = [left.pop(f"{prefix}{block}.{name}{kind}", None) for name in names]
                    if found[0] is not None:
                        original[f"{PREFIXES[prefix]}{block}.{new}{kind}"] = torch.cat(found)
    for old, new in TOP.items():
        for name in [name for name in left if name.startswith(old)]:
            original[new + name.removeprefix(old)] = left.pop(name)
    for kind in ("weight", "bias"):  # shift and scale, in the other order
        name = f"final_layer.adaLN_modulation.1.{kind}"
        original[name] = torch.cat(original[name].chunk(2)[::-1])
    assert not left, sorted(left)
    return original
