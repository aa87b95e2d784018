"""What a forward pass of a network costs, counted: on the meta device nothing is computed and nothing is held."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """Parameters and time of a part of a network, which need not go together.

    A dual-stream and a single-stream block of HunyuanVideo take the same time for a long video, and the former has 2.4
    times the parameters: which kind goes decides on memory, and how many go on time.

    Args:
        num_flops: floating point operations of one forward pass; a multiplication and an addition are two.
    """

    num_parameters: int
    num_flops: int


@contextmanager
def counting_flops() -> Iterator[FlopCounterMode]:
    """Count floating point operations of what runs inside, without gradients, attention's as products of matrices."""
    # The counter does not know the CPU's fused attention, and would leave it out.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        yield counter


def count_tmacs(work: Callable[[], object]) -> float:
    """10^12 multiply-accumulates of `work`, which may run on the meta device."""
    with counting_flops() as counter:
        work()
    return counter.get_total_flops() / 2e12


def forward_cost(network: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Cost]:
    """The cost of a whole network, by the name `""`, and of each block of its lists of blocks, by theirs.

    Args:
        network: on the meta device, or where it is.
        inputs: its forward pass's, on the same device; `Family.example_inputs` makes them.
    """
    with counting_flops() as counter:
        network(**inputs)
    # The counter names a module by its path, from the network's class on.
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    lists = [(name, part) for name, part in network.named_children() if isinstance(part, nn.ModuleList)]
    blocks = {f"{name}.{i}": block for name, part in lists for i, block in enumerate(part)}
    return {
        "": Cost(_num_parameters(network), counter.get_total_flops()),
        **{
            name: Cost(_num_parameters(block), flops.get(f"{type(network).__name__}.{name}", 0))
            for name, block in blocks.items()
        },
    }


def _num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
