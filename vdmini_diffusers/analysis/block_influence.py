"""Block influence: how far a block turns what it is given. It needs one run of the whole denoiser, and no videos.

ShortGPT's score, 1 - cosine of input and output, for each stream by itself: dual-stream blocks look active in most
places if one of the two streams is.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from vdmini_diffusers.analysis.parts import Part, removable_parts, stand_in, transformer_class


@torch.no_grad()
def block_influence(
    denoiser: nn.Module, run: Callable[[], object], parts: Mapping[str, Part] | None = None
) -> dict[str, float]:
    """1 - cosine between what each part makes and what is left in its place when it is removed.

    The mean over tokens, or pixels, and over all calls. Blocks with several streams have a number for each of them.

    Args:
        denoiser: the bare module.
        run: runs it as often as need be: `lambda: unet(**inputs)`, or a `FixedVideos`.
        parts: by default the blocks, halves and streams of the denoiser.

    Raises:
        ValueError: if one of the parts did not run.
    """
    if parts is None:
        found = removable_parts(denoiser)
        with_streams = {part.modules[0] for part in found.values() if part.kind == "stream"}
        parts = {
            name: part
            for name, part in found.items()
            if part.kind in ("half", "stream") or (part.kind == "block" and part.modules[0] not in with_streams)
        }
    sums = {name: [0.0, 0] for name in parts}
    handles = [handle for part in parts.values() for handle in _tap(denoiser, part, sums[part.name])]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if idle := [name for name, (_, count) in sums.items() if not count]:
        raise ValueError(f"{idle[0]} did not run: its influence cannot be measured.")
    return {name: 1 - total / count for name, (total, count) in sums.items()}


def _tap(denoiser: nn.Module, part: Part, found: list[Any]) -> list[Any]:
    """Hooks that add up cosines and count them in `found`."""
    if transformer_class(denoiser) is not None:
        first = last = part.modules[0]  # what is attached to a block is not seen
    else:
        running = part.replaced or part.modules
        # A half that goes with its blender leaves the spatial input of that.
        first, last = running[-1] if running[-1].endswith("time_mixer") else running[0], running[-1]
    passes = stand_in(denoiser, first)
    left: list[Any] = []

    def before(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        left.append(passes(*args, **kwargs))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        a, b = (_stream(value, part.stream or 0) for value in (left.pop(), output))
        cosines = cosine_similarity(a.float(), b.float(), dim=-1 if a.ndim == 3 else 1)
        found[0] += cosines.double().sum().item()
        found[1] += cosines.numel()

    return [
        denoiser.get_submodule(first).register_forward_hook(before, with_kwargs=True),
        denoiser.get_submodule(last).register_forward_hook(after),
    ]


def _stream(value: Any, index: int) -> Tensor:
    return value[index] if isinstance(value, tuple) else value
