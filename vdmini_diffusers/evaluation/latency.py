"""Latency and memory of networks side by side, on random weights: what the paper's Tables A1, A3 and A5 compare."""

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vdmini_diffusers.inference.rewriting import modules_of, optimize


@dataclass
class Timing:
    """What the rounds of one piece of work took. `peaks` has MiB beyond what was allocated before, on a GPU."""

    milliseconds: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def peak(self) -> float | None:
        return max(self.peaks, default=None)

    def ratio(self, other: "Timing") -> float:
        """How many times longer this took than the other: the median over the rounds, in which both had a turn."""
        rounds = zip(self.milliseconds, other.milliseconds, strict=True)
        return statistics.median(mine / theirs for mine, theirs in rounds)


def time_in_turns(
    works: Mapping[str, Callable[[], object]], device: str | torch.device, rounds: int, warm_ups: int = 0
) -> dict[str, Timing]:
    """Time each of `works` once a round, so that other load on the machine meets all of them.

    Args:
        works: what is timed, by name, on `device`.
        warm_ups: rounds before those that count.
    """
    timings = {name: Timing() for name in works}
    on_gpu = torch.device(device).type == "cuda"
    for round_ in range(-warm_ups, rounds):
        for name, work in works.items():
            allocated = 0
            if on_gpu:
                torch.cuda.synchronize(device)
                torch.cuda.reset_peak_memory_stats(device)
                allocated = torch.cuda.memory_allocated(device)
            start = time.perf_counter()
            work()
            if on_gpu:
                torch.cuda.synchronize(device)
            milliseconds = 1000 * (time.perf_counter() - start)
            if round_ >= 0:
                timings[name].milliseconds.append(milliseconds)
                if on_gpu:
                    timings[name].peaks.append((torch.cuda.max_memory_allocated(device) - allocated) / 2**20)
    return timings


def build_network(make: Callable[[], nn.Module], device: str | torch.device, dtype: torch.dtype) -> Any:
    """A network for inference whose random weights are drawn on the device and in the dtype, never elsewhere."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            network = make()
    finally:
        torch.set_default_dtype(default)
    # diffusers makes the mixing factors on the CPU, whatever the device, and its own `to` warns of half precision.
    return nn.Module.to(network, device, dtype).eval()


def optimized_copy(target: Any) -> Any:
    """What `optimize` makes of a network or a pipeline, beside it: the copy has the same parameters and buffers."""
    tensors = [x for m in modules_of(target) for x in (*m.parameters(recurse=False), *m.buffers(recurse=False))]
    return optimize(copy.deepcopy(target, {id(x): x for x in tensors}))
