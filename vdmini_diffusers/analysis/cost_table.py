"""What each part of a network costs: parameters, multiplications, memory and time (paper, Fig. 1b, A2, A5).

The first three are counted on the meta device, at full size and without weights; time is measured where it runs.
"""

import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vdmini_diffusers.analysis.parts import Part, plain_config, removable_parts
from vdmini_diffusers.evaluation.device_name import device_name
from vdmini_diffusers.evaluation.latency import Timing
from vdmini_diffusers.evaluation.live_bytes import LiveBytes
from vdmini_diffusers.pruning.cost import counting_flops
from vdmini_diffusers.pruning.paper_names import paper_name
from vdmini_diffusers.serialization.safetensors_reader import read_json


REST = "rest"  # what belongs to no part: convolutions in and out, embeddings, blocks that cannot go


class CostError(ValueError):
    """Costs that are incomplete, damaged, or of something else."""


@dataclass(frozen=True)
class PartCost:
    """Args:
    num_macs: multiply-accumulates of one forward pass.
    peak_bytes: the most memory that activations take while the part runs, with those that are kept for later.
    milliseconds: median; None where it was not measured.
    """

    num_parameters: int
    num_macs: int
    peak_bytes: int
    milliseconds: float | None = None


@dataclass(frozen=True)
class CostTable:
    """The cost of a network and of its parts.

    Args:
        class_name, config: of the network.
        clip: frames, height and width of the clip that was counted, in pixels.
        bytes_per_parameter: of the dtype that was counted.
        dtype: that, as torch names it (`"float16"`); None in tables that do not say.
        whole: of all of it. Its `peak_bytes` is the greatest of the parts'.
        parts: by name. Blocks, samplers and `rest` add up to the whole; stages, layers and halves are sums and parts
            of blocks.
        kinds: of the parts.
        device: on which time was measured.
    """

    class_name: str
    config: Mapping[str, Any]
    clip: tuple[int, int, int]
    bytes_per_parameter: int
    whole: PartCost
    parts: Mapping[str, PartCost]
    kinds: Mapping[str, str]
    device: str | None = None
    dtype: str | None = None

    def to_json_string(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    def to_csv_string(self) -> str:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["part", "kind", *PartCost.__dataclass_fields__])
        for name, cost in {"whole": self.whole, **self.parts}.items():
            table.writerow([name, self.kinds.get(name, ""), *asdict(cost).values()])
        return text.getvalue()

    @classmethod
    def read(cls, file: Path) -> "CostTable":
        """Raises `CostError` for a file that is no such table."""
        try:
            fields = read_json(file)
            parts = {name: PartCost(**cost) for name, cost in fields["parts"].items()}
            whole, clip = PartCost(**fields["whole"]), tuple(fields["clip"])
            if not isinstance(fields["config"], dict):
                raise TypeError("its config is none")
            for name, cost in {"whole": whole, **parts}.items():
                counts = (cost.num_parameters, cost.num_macs, cost.peak_bytes)
                if not all(type(count) is int and count >= 0 for count in counts):
                    raise TypeError(f"a cost of {name} is no whole number from 0 on")
                took = cost.milliseconds
                if took is not None and not (type(took) in (int, float) and 0 <= took < math.inf):
                    raise TypeError(f"the milliseconds of {name} are {took!r}")
            return cls(**{**fields, "parts": parts, "whole": whole, "clip": clip})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CostError(f"{file} is no table of costs: {error}.") from error


def costed_parts(denoiser: nn.Module) -> dict[str, Part]:
    """The removable parts of a denoiser, but for streams, which share a block's cost, and the samplers of a U-Net."""
    parts = {name: part for name, part in removable_parts(denoiser).items() if part.kind != "stream"}
    modules: Any = denoiser.named_modules()
    for path, module in modules:
        if path.endswith((".downsamplers", ".upsamplers")):
            parts[paper_name(path)] = Part(
                paper_name(path), "sampler", tuple(f"{path}.{i}" for i in range(len(module)))
            )
    return parts


def decoder_parts(decoder: Any) -> dict[str, Part]:
    """The ResBlocks, attentions and upsamplers of a VAE's decoder, by their names in it, and its stages (Fig. A2)."""
    parts = {}
    stages = {"mid_block": decoder.mid_block} | {f"up_blocks.{i}": b for i, b in enumerate(decoder.up_blocks)}
    for name, stage in stages.items():
        blocks: Any = [
            (f"{name}.{path}.{i}", "sampler" if path == "upsamplers" else "block")
            for path in ("resnets", "attentions", "upsamplers")
            for i, module in enumerate(getattr(stage, path, None) or ())
            if module is not None
        ]
        parts[name] = Part(name, "stage", tuple(block for block, _ in blocks))
        parts |= {block: Part(block, kind, (block,)) for block, kind in blocks}
    return parts


class FusedAttention(TorchFunctionMode):
    """On the meta device, attention makes its output only, as kernels do where it runs: no map of all tokens."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is nn.functional.scaled_dot_product_attention:
            names = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            query, value = names["query"], names["value"]
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def count_costs(
    network: nn.Module,
    run: Callable[[], object],
    parts: Mapping[str, Part],
    clip: tuple[int, int, int],
    inputs: Iterable[Tensor] = (),
) -> CostTable:
    """Parameters, multiplications and peak memory of a network and of its parts.

    Args:
        network: on the meta device, or on another if it is small: it runs twice.
        run: one forward pass of it.
        parts: `costed_parts(network)` or `decoder_parts(decoder)`.
        clip: what is run, for the record.
        inputs: tensors that are there before the pass.
    """
    with counting_flops() as counter:
        run()
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    root = type(network).__name__
    peaks = _count_peaks(network, run, parts, inputs)
    costs = {
        name: PartCost(
            num_parameters=sum(_num_parameters(network.get_submodule(module)) for module in part.modules),
            num_macs=sum(flops.get(f"{root}.{module}", 0) for module in part.modules) // 2,
            peak_bytes=peaks[name],
        )
        for name, part in parts.items()
    }
    whole = PartCost(_num_parameters(network), counter.get_total_flops() // 2, max(peaks.values()))
    disjoint = [costs[name] for name, part in parts.items() if part.kind in ("block", "sampler")]
    costs[REST] = PartCost(
        whole.num_parameters - sum(cost.num_parameters for cost in disjoint),
        whole.num_macs - sum(cost.num_macs for cost in disjoint),
        peaks[REST],
    )
    config = plain_config(network)
    dtype = next(network.parameters()).dtype
    kinds = {name: part.kind for name, part in parts.items()}
    named = str(dtype).removeprefix("torch.")
    return CostTable(root, config, clip, dtype.itemsize, whole, costs, kinds, dtype=named)


@torch.no_grad()
def measure_times(
    table: CostTable, network: nn.Module, run: Callable[[], object], parts: Mapping[str, Part], rounds: int = 5
) -> CostTable:
    """The table with milliseconds: medians of the rounds, after one that does not count.

    Parts are timed within the pass of the whole, so that each finds the caches as they are there. On a GPU each part
    is waited for, which makes the whole slower than it is; so the whole is timed by itself.

    Args:
        network: with weights, on the device to measure.
    """
    device = next(network.parameters()).device
    timings = {name: Timing() for name in ("", *parts)}
    for round_ in range(-1, rounds):
        start = _now(device)
        run()
        total = _now(device) - start
        modules = {module for part in parts.values() for module in part.modules}
        with _timed(network, modules, device) as seconds:
            run()
        if round_ >= 0:
            timings[""].milliseconds.append(1000 * total)
            for name, part in parts.items():
                timings[name].milliseconds.append(1000 * sum(seconds[module] for module in part.modules))
    costs = {name: replace(table.parts[name], milliseconds=timings[name].median) for name in parts}
    whole = timings[""].median
    blocks = sum(timings[name].median for name, part in parts.items() if part.kind in ("block", "sampler"))
    costs[REST] = replace(table.parts[REST], milliseconds=max(0.0, whole - blocks))
    return replace(table, whole=replace(table.whole, milliseconds=whole), parts=costs, device=device_name(device))


def _count_peaks(
    network: nn.Module, run: Callable[[], object], parts: Mapping[str, Part], inputs: Iterable[Tensor]
) -> dict[str, int]:
    """The greatest number of bytes that lived at once while each part ran, and while none did, by `REST`."""
    meter = LiveBytes([*network.parameters(), *network.buffers(), *inputs])
    peaks = dict.fromkeys((*parts, REST), 0)
    outer: list[int] = []  # of the parts that run: the peaks until they began

    def begin(module: nn.Module, args: Any) -> None:
        if not outer:
            peaks[REST] = max(peaks[REST], meter.peak)
        outer.append(meter.peak)
        meter.peak = meter.live

    def end(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            peaks[name] = max(peaks[name], meter.peak)
            before = outer.pop()
            # What lives as a part ends is the part's: what is outside of all counts from the next tensor on.
            meter.peak = max(meter.peak, before) if outer else 0

        return hook

    handles = []
    for name, part in parts.items():
        for path in part.modules:
            module = network.get_submodule(path)
            handles.append(module.register_forward_pre_hook(begin))
            # Windows close in the order opposite to that in which they were opened.
            handles.append(module.register_forward_hook(end(name), prepend=True))
    try:
        with FusedAttention(), meter:
            run()
    finally:
        for handle in handles:
            handle.remove()
    peaks[REST] = max(peaks[REST], meter.peak)
    return peaks


@contextmanager
def _timed(network: nn.Module, modules: Iterable[str], device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds that each module takes within the block, by name."""
    seconds = dict.fromkeys(modules, 0.0)
    handles = []

    def begin(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            seconds[name] -= _now(device)

        return hook

    def end(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seconds[name] += _now(device)

        return hook

    for name in seconds:
        module = network.get_submodule(name)
        handles += [module.register_forward_pre_hook(begin(name)), module.register_forward_hook(end(name))]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
