"""Attention of a video's tokens, frame by frame: how much of it goes to other frames, and what is left without that.

Both are computed in the place of PyTorch's scaled dot product attention while a layer runs, so that its processor's
projections, norms and rotary embeddings stay what they are.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


# Given query, key and value `(batch, heads, tokens, width)`, the mask or None, and the scale or None.
AttentionFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None, float | None], Tensor]

MAX_BLOCK_VALUES = 2**22  # of attention weights that are held at once, in float32: 16 MiB


class ReplacedAttention(TorchFunctionMode):
    """Within this context, `function` computes scaled dot product attention.

    `calls` counts them: an attention backend that does not end in PyTorch's function leaves it at 0.
    """

    def __init__(self, function: AttentionFunction):
        super().__init__()
        self.function = function
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        return self._attention(*args, **(kwargs or {}))

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if dropout_p or is_causal or enable_gqa:
            raise ValueError(
                "F3-Pruning takes attention without dropout, causal masks and grouped queries; none of its"
                " models has them. Take another processor, or do not prune this layer."
            )
        return self.function(query, key, value, attn_mask, scale)


class Tokens:
    """How the tokens of an attention are laid out: frame after frame, and the text before or after them.

    Args:
        num_frames: of the video.
        per_frame: tokens of each of its frames.
        num_text: tokens of the text.
        text_first: whether these come before the video's.
    """

    def __init__(self, num_frames: int, per_frame: int, num_text: int = 0, text_first: bool = False):
        self.num_frames, self.per_frame = num_frames, per_frame
        num_video = num_frames * per_frame
        start = num_text if text_first else 0
        self.video = slice(start, start + num_video)
        self.text = slice(0, num_text) if text_first else slice(num_video, num_video + num_text)
        self.text_first, self.num_text = text_first, num_text

    def frame(self, number: int) -> slice:
        start = self.video.start + number * self.per_frame
        return slice(start, start + self.per_frame)


def attention_within_frames(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, tokens: Tokens
) -> Tensor:
    """Attention in which the video's tokens see their own frame and the text, and the text's tokens see everything.

    It is attention with a mask that is block-diagonal over frames, computed with the frames as a batch, which takes
    less by their number.

    Args:
        query, key, value: `(batch, heads, tokens, width)`.
        mask: which keys are seen, or what is added to their logits; the same for all queries: `(..., 1, tokens)`.

    Raises:
        ValueError: if the mask differs from query to query.
    """
    batch, frames = query.shape[0], tokens.num_frames
    mask = _key_mask(mask, batch, query.shape[2])

    def by_frame(x: Tensor) -> Tensor:  # (batch * frames, heads, tokens of a frame, width)
        return x[:, :, tokens.video].unflatten(2, (frames, -1)).transpose(1, 2).flatten(0, 1)

    def text_for_each(x: Tensor) -> Tensor:  # (batch * frames, heads, tokens of the text, width)
        return x[:, None, :, tokens.text].expand(-1, frames, -1, -1, -1).flatten(0, 1)

    keys, values = (torch.cat([by_frame(x), text_for_each(x)], dim=2) for x in (key, value))
    frame_mask = None
    if mask is not None:
        own = mask[..., tokens.video].unflatten(3, (frames, -1)).movedim(3, 1).flatten(0, 1)
        text = mask[:, None, ..., tokens.text].expand(-1, frames, -1, -1, -1).flatten(0, 1)
        frame_mask = torch.cat([own, text], dim=3)
    video = F.scaled_dot_product_attention(by_frame(query), keys, values, attn_mask=frame_mask, scale=scale)
    video = video.unflatten(0, (batch, frames)).transpose(1, 2).flatten(2, 3)
    if not tokens.num_text:
        return video
    text = F.scaled_dot_product_attention(query[:, :, tokens.text], key, value, attn_mask=mask, scale=scale)
    return torch.cat([text, video] if tokens.text_first else [video, text], dim=2)


@torch.no_grad()
def mass_on_other_frames(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scale: float | None,
    tokens: Tokens,
    max_queries_per_frame: int | None = None,
) -> float:
    """The attention of the video's queries to keys of other frames, 0 to 1: the mean over queries, heads and batch.

    Queries are taken block by block, as many as keep `MAX_BLOCK_VALUES` attention weights, so that no map of all
    tokens is ever held.

    Args:
        query, key, mask, scale: as for `attention_within_frames`.
        max_queries_per_frame: take only that many queries of each frame, evenly spread, and estimate the mean by them.
    """
    mask = _key_mask(mask, query.shape[0], query.shape[2])
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    step = -(-tokens.per_frame // max_queries_per_frame) if max_queries_per_frame else 1
    batch, heads, num_tokens, _ = query.shape
    rows = max(1, MAX_BLOCK_VALUES // (heads * num_tokens))  # query tokens, of one sample or several
    samples = max(1, rows // -(-tokens.per_frame // step))
    total, count = 0.0, 0
    for part in (slice(start, start + samples) for start in range(0, batch, samples)):
        keys = key[part].float().transpose(2, 3)
        for number in range(tokens.num_frames):
            own = tokens.frame(number)
            for block in query[part, :, own.start : own.stop : step].split(rows, dim=2):
                logits = block.float() @ keys * factor
                if mask is not None and mask.dtype == torch.bool:
                    logits = logits.masked_fill(~mask[part], -torch.inf)
                elif mask is not None:
                    logits = logits + mask[part]
                weights = logits.softmax(dim=3)
                # Summed without the own frame, as a difference of nearly equal sums would lose what is small.
                other = weights[..., tokens.video.start : own.start].sum((0, 1, 2, 3), dtype=torch.float64)
                other += weights[..., own.stop : tokens.video.stop].sum((0, 1, 2, 3), dtype=torch.float64)
                total += other.item()
                count += weights[..., 0].numel()
    return min(total / count, 1.0)  # softmax values can sum to more by rounding; NaN stays NaN


def _key_mask(mask: Tensor | None, batch: int, num_tokens: int) -> Tensor | None:
    """`(batch, heads or 1, 1, tokens)`."""
    if mask is None:
        return None
    if mask.ndim != 4 or mask.shape[2] != 1 or mask.shape[3] != num_tokens:
        raise ValueError(
            f"F3-Pruning takes attention masks that are the same for all queries, (batch, 1, 1, {num_tokens}), not"
            f" {tuple(mask.shape)}."
        )
    return mask.expand(batch, -1, -1, -1)
