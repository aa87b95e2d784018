"""Attention within frames and its mass on other frames, against whole maps and masks."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vdmini_diffusers.analysis.f3 import attention as f3
from vdmini_diffusers.analysis.f3.attention import Tokens, attention_within_frames, mass_on_other_frames


LAYOUTS = {
    "text first": Tokens(num_frames=3, per_frame=4, num_text=5, text_first=True),
    "text last": Tokens(num_frames=3, per_frame=4, num_text=5),
    "no text": Tokens(num_frames=3, per_frame=4),
    "frames alone": Tokens(num_frames=6, per_frame=1),
}


def draw(tokens: Tokens) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    length = tokens.num_frames * tokens.per_frame + tokens.num_text
    return [3 * torch.randn(2, 2, length, 8, generator=generator) for _ in range(3)]


def masks(length: int) -> dict[str, torch.Tensor | None]:
    seen = torch.ones(2, 1, 1, length, dtype=torch.bool)
    seen[0, ..., -2:] = False
    return {"none": None, "seen keys": seen, "added": torch.linspace(-2, 2, length).expand(2, 1, 1, -1)}


def elsewhere(tokens: Tokens, length: int) -> torch.Tensor:
    """Which keys are video tokens of another frame than the query, `(queries, keys)`."""
    frame = torch.full((length,), -1)
    for number in range(tokens.num_frames):
        frame[tokens.frame(number)] = number
    return (frame[:, None] != frame) & (frame[:, None] >= 0) & (frame >= 0)


@pytest.mark.parametrize("kind", ["none", "seen keys", "added"])
@pytest.mark.parametrize("layout", ["text first", "text last", "no text"])
def test_attention_within_frames_is_attention_with_a_mask(layout, kind):
    tokens = LAYOUTS[layout]
    query, key, value = draw(tokens)
    length = query.shape[2]
    mask = masks(length)[kind]
    logits = query @ key.transpose(2, 3) * 0.3
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    expected = logits.masked_fill(elsewhere(tokens, length), -torch.inf).softmax(dim=3) @ value
    torch.testing.assert_close(attention_within_frames(query, key, value, mask, 0.3, tokens), expected)


@pytest.mark.parametrize("max_values", [1, 100, 2**22])  # one query at a time, a few, all
@pytest.mark.parametrize("kind", ["none", "seen keys", "added"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_mass_on_other_frames_is_that_of_the_whole_map(layout, kind, max_values, monkeypatch):
    monkeypatch.setattr(f3, "MAX_BLOCK_VALUES", max_values)
    tokens = LAYOUTS[layout]
    query, key, _ = draw(tokens)
    mask = masks(query.shape[2])[kind]
    logits = query @ key.transpose(2, 3) * 8**-0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    weights = logits.softmax(dim=3) * elsewhere(tokens, query.shape[2])
    expected = weights.sum(dim=3)[:, :, tokens.video].mean().item()
    assert 0.1 < expected < 0.95
    assert mass_on_other_frames(query, key, mask, None, tokens) == pytest.approx(expected, rel=1e-6)


def test_some_places_estimate_the_mass_of_all():
    tokens = Tokens(num_frames=4, per_frame=256)
    query, key, _ = draw(tokens)
    every = mass_on_other_frames(query, key, None, None, tokens)
    assert mass_on_other_frames(query, key, None, None, tokens, 256) == every
    assert mass_on_other_frames(query, key, None, None, tokens, 64) == pytest.approx(every, abs=0.03)
    # Exactly the queries that are evenly spread: every fourth.
    some = Tokens(num_frames=4, per_frame=64)
    weights = (query[:, :, ::4] @ key.transpose(2, 3) * 8**-0.5).softmax(dim=3)
    own = sum(
        weights[:, :, some.frame(n), tokens.frame(n)].sum(dim=3).mean().item() / tokens.num_frames for n in range(4)
    )
    assert mass_on_other_frames(query, key, None, None, tokens, 64) == pytest.approx(1 - own, rel=1e-5)


class LargestTensor(TorchDispatchMode):
    """The number of values of the largest tensor that is made within this context."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor):
            self.numel = max(self.numel, output.numel())
        return output


def test_no_map_of_all_tokens_is_held(monkeypatch):
    monkeypatch.setattr(f3, "MAX_BLOCK_VALUES", 2**15)
    tokens = Tokens(num_frames=4, per_frame=256)
    query, key, _ = draw(tokens)
    with LargestTensor() as largest:
        mass_on_other_frames(query, key, None, None, tokens)
    assert 2**14 < largest.numel <= max(2**15, query.numel())  # the map of all tokens has 2**22 values
    with LargestTensor() as largest:  # a control
        F.softmax(query @ key.transpose(2, 3), dim=3)
    assert largest.numel == 2**22


def test_a_mask_that_differs_from_query_to_query_is_refused():
    tokens = LAYOUTS["no text"]
    query, key, value = draw(tokens)
    causal = torch.ones(12, 12, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match=r"the same for all queries, \(batch, 1, 1, 12\), not \(12, 12\)"):
        attention_within_frames(query, key, value, causal, None, tokens)
    with pytest.raises(ValueError, match="without dropout, causal masks"), f3.ReplacedAttention(print):
        F.scaled_dot_product_attention(query, key, value, is_causal=True)
