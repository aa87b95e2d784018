"""Gradient checkpointing of whole layers, where that of diffusers leaves most of what they hold in memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_layers(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Let all layers of these classes keep their inputs only, and compute the rest again in the backward pass.

    diffusers' own gradient checkpointing leaves out the temporal attention of `UNetSpatioTemporalConditionModel`,
    which holds most of the activations. Hooks of a layer run once, outside of what is computed again, so that features
    can be taken of it, and a forward pass may end behind any layer.
    """
    for layer in model.modules():
        if isinstance(layer, kinds):
            layer.forward = partial(_computed_again, layer.forward)


def _computed_again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
