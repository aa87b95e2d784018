"""Torch-Pruning's dependency graph of a network, and its importances of channels."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn


Importance = Literal["l2", "taylor"]
IMPORTANCES = ("l2", "taylor")


def build_graph(network: nn.Module, example_inputs: Mapping[str, Any]) -> Any:
    """Which channels of `network` depend on each other: a `torch_pruning.DependencyGraph`.

    Raises:
        ImportError: without the extra `prune`.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise ImportError("Channels are pruned by Torch-Pruning: `pip install -e '.[prune]'`.") from error
    network.requires_grad_(True)
    with torch.enable_grad(), _deep_networks():
        return torch_pruning.DependencyGraph().build_dependency(
            network,
            example_inputs=dict(example_inputs),
            # The mixing factors of space and time, one number each, are no channels.
            ignored_params=[p for name, p in network.named_parameters() if name.endswith("mix_factor")],
            verbose=False,
        )


@contextmanager
def _deep_networks() -> Iterator[None]:
    """Torch-Pruning gives up on the width of a concatenation after visiting 500 operations. A U-Net of SVD has more
    between two layers that tell, as space and time are mixed in each block: every mix doubles the ways back."""
    from torch_pruning.dependency import constants

    before, constants.MAX_RECURSION_DEPTH = constants.MAX_RECURSION_DEPTH, 10**7
    try:
        yield
    finally:
        constants.MAX_RECURSION_DEPTH = before


def coupled_groups(graph: Any, outputs: Sequence[nn.Module]) -> list[Any]:
    """Each set of channels that stay or go together, but those of the layers `outputs`."""
    with _deep_networks():
        return list(graph.get_all_groups(ignored_layers=list(outputs)))


def prune_group(graph: Any, root: Any, removed: Iterable[int]) -> None:
    """Remove channels, in place, from all layers that depend on them. `root`: of a group that the graph has given."""
    with _deep_networks():
        graph.get_pruning_group(root.target.module, root.handler, list(removed)).prune()


def accumulate_gradients(network: nn.Module, losses: Iterable[Tensor]) -> None:
    """The gradients of the sum of `losses`; each is differentiated before the next is asked for."""
    network.zero_grad()
    with torch.enable_grad():
        for loss in losses:
            loss.backward()


def make_importance(importance: Importance, group_reduction: str = "mean", normalizer: str | None = "mean") -> Any:
    """Torch-Pruning's importance of each channel of a group.

    Args:
        importance: the sum over a channel's weights of their squares (`l2`), or of the absolute values of weight times
            gradient (`taylor`, Molchanov et al. 2019).
        group_reduction: over the layers of the group: `"mean"`, or `"first"` for the group's first layer alone.
        normalizer: of a group's scores, so that groups can be compared.
    """
    import torch_pruning.pruner.importance

    kinds: Any = torch_pruning.pruner.importance
    if importance == "l2":
        return kinds.GroupMagnitudeImportance(p=2, group_reduction=group_reduction, normalizer=normalizer)
    return kinds.GroupTaylorImportance(group_reduction=group_reduction, normalizer=normalizer)


def rank_within(scores: Tensor, num_groups: int) -> Tensor:
    """Channels from the most to the least important one, within each of `num_groups` runs: `(num_groups, -1)`."""
    by_group = scores.unflatten(0, (num_groups, -1))
    order = by_group.argsort(dim=1, descending=True, stable=True)
    return order + torch.arange(num_groups, device=scores.device)[:, None] * by_group.shape[1]
