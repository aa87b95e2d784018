"""OpenCLIP's two towers, written out by the original names of their weights, against transformers' CLIPModel."""

import pytest
import torch
import torch.nn.functional as F
from drawn_weights import DrawnWeights, attention
from tiny_text_to_video import CLIP_EXCERPT
from torch import Tensor

from vdmini_diffusers.distillation.consistency_arguments import RewardArguments
from vdmini_diffusers.distillation.reward_models import CLIPReward
from vdmini_diffusers.t2v_turbo.open_clip import clip_model
from vdmini_diffusers.t2v_turbo.tensors import OriginalCheckpointError
from vdmini_diffusers.trainers.reward_weights import load_rewards


TEXT_WIDTH, VISION_WIDTH, PROJECTION = 128, 64, 24
TOKENS, VOCABULARY, PATCH, GRID = 12, 60, 4, 3


def layer(p: DrawnWeights, name: str, x: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    width = x.shape[-1]
    h = p.layer_norm(f"{name}.ln_1", x)
    weight = p.draw(f"{name}.attn.in_proj_weight", 3 * width, width)
    query, key, value = F.linear(h, weight, p.draw(f"{name}.attn.in_proj_bias", 3 * width)).chunk(3, dim=-1)
    x = x + p.linear(f"{name}.attn.out_proj", attention(query, key, value, heads=heads, mask=mask), width)
    h = F.gelu(p.linear(f"{name}.mlp.c_fc", p.layer_norm(f"{name}.ln_2", x), 4 * width))
    return x + p.linear(f"{name}.mlp.c_proj", h, width)


def encode_text(p: DrawnWeights, tokens: Tensor) -> Tensor:
    x = p.draw("token_embedding.weight", VOCABULARY, TEXT_WIDTH)[tokens]
    x = x + p.draw("positional_embedding", TOKENS, TEXT_WIDTH)
    p["attn_mask"] = torch.full((TOKENS, TOKENS), float("-inf"), dtype=p.dtype).triu(1)
    for i in range(2):
        x = layer(p, f"transformer.resblocks.{i}", x, TEXT_WIDTH // 64, p["attn_mask"])
    x = p.layer_norm("ln_final", x)
    return x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ p.draw("text_projection", TEXT_WIDTH, PROJECTION)


def encode_image(p: DrawnWeights, pixels: Tensor) -> Tensor:
    x = F.conv2d(pixels, p.draw("visual.conv1.weight", VISION_WIDTH, 3, PATCH, PATCH), stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    first = p.draw("visual.class_embedding", VISION_WIDTH).expand(len(x), 1, -1)
    x = torch.cat([first, x], dim=1) + p.draw("visual.positional_embedding", GRID**2 + 1, VISION_WIDTH)
    x = p.layer_norm("visual.ln_pre", x)
    for i in range(2):
        x = layer(p, f"visual.transformer.resblocks.{i}", x, heads=16)
    return p.layer_norm("visual.ln_post", x[:, 0]) @ p.draw("visual.proj", VISION_WIDTH, PROJECTION)


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(1, VOCABULARY - 2, (2, TOKENS), generator=generator)
    for row, end in zip(tokens, (4, 9), strict=True):
        row[end], row[end + 1 :] = VOCABULARY - 1, 0
    pixels = torch.randn(2, 3, GRID * PATCH, GRID * PATCH, generator=generator, dtype=torch.float64)
    return tokens, pixels


@pytest.fixture
def original():
    """Weights that single precision holds exactly, and what they compute in double precision."""
    p = DrawnWeights()
    tokens, pixels = inputs()
    encode_text(p, tokens), encode_image(p, pixels)  # draws them
    p.update({name: tensor.float().double() for name, tensor in p.items()})
    p["logit_scale"] = torch.tensor(2.5, dtype=torch.float64)
    return p, encode_text(p, tokens), encode_image(p, pixels)


def test_embeddings_of_texts_and_pictures_are_the_original_s(original):
    p, texts, pictures = original
    model = clip_model(dict(p)).double().eval()
    tokens, pixels = inputs()
    with torch.no_grad():
        found = model.get_text_features(tokens).pooler_output, model.get_image_features(pixels).pooler_output
    for ours, theirs in zip(found, (texts, pictures), strict=True):
        assert theirs.std() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert model.logit_scale == 2.5


@pytest.mark.parametrize(
    "name",
    [
        *("visual.proj", "visual.ln_pre.weight", "transformer.resblocks.1.mlp.c_fc.bias"),
        *("transformer.resblocks.0.mlp.c_fc.weight", "visual.transformer.resblocks.0.mlp.c_fc.weight"),
    ],
)
def test_a_missing_tensor_is_named(original, name):
    tensors = {key: tensor for key, tensor in original[0].items() if key != name}
    with pytest.raises(OriginalCheckpointError, match=name.replace(".", r"\.")):
        clip_model(tensors)


def test_hpsv2_1_comes_from_such_a_file(original, tmp_path):
    torch.save({"state_dict": dict(original[0]), "epoch": 3}, tmp_path / "HPS_v2.1_compressed.pt")
    place = str(tmp_path / "HPS_v2.1_compressed.pt")
    args = RewardArguments(image_rewards=["hpsv2.1:2"], hps_checkpoint=place, clip_score_model=str(CLIP_EXCERPT))
    ((weight, reward),) = load_rewards(args, torch.nn.Identity()).image_rewards
    assert weight == 2 and isinstance(reward, CLIPReward) and reward.fit == "pad"
