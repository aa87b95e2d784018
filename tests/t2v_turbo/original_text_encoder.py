"""VideoCrafter2's text encoder, OpenCLIP's text tower without its last layer, by its original names of weights."""

import torch
import torch.nn.functional as F
from drawn_weights import DrawnWeights, attention
from torch import Tensor


WIDTH = 128
LAYERS = 4  # of which three run
TOKENS = 12
VOCABULARY = 60


def text_encoder(p: DrawnWeights, tokens: Tensor) -> Tensor:
    x = p.draw("token_embedding.weight", VOCABULARY, WIDTH)[tokens] + p.draw("positional_embedding", TOKENS, WIDTH)
    p["attn_mask"] = torch.full((TOKENS, TOKENS), float("-inf"), dtype=p.dtype).triu(1)
    p.draw("text_projection", WIDTH, WIDTH)
    p.draw("logit_scale", 1)
    outputs = [x]
    for i in range(LAYERS):
        outputs.append(layer(p, f"transformer.resblocks.{i}", outputs[-1], p["attn_mask"]))
    return p.layer_norm("ln_final", outputs[-2])


def layer(p: DrawnWeights, name: str, x: Tensor, mask: Tensor) -> Tensor:
    h = p.layer_norm(f"{name}.ln_1", x)
    weight = p.draw(f"{name}.attn.in_proj_weight", 3 * WIDTH, WIDTH)
    query, key, value = F.linear(h, weight, p.draw(f"{name}.attn.in_proj_bias", 3 * WIDTH)).chunk(3, dim=-1)
    x = x + p.linear(f"{name}.attn.out_proj", attention(query, key, value, heads=WIDTH // 64, mask=mask), WIDTH)
    h = F.gelu(p.linear(f"{name}.mlp.c_fc", p.layer_norm(f"{name}.ln_2", x), 4 * WIDTH))
    return x + p.linear(f"{name}.mlp.c_proj", h, WIDTH)
