#!/usr/bin/env python
"""The least time that each component of the pipelines can take, and the share of it that a machine reaches.

    python benchmarks/floors.py
    python benchmarks/floors.py --device cpu --dtype fp32 --pipelines i2v --num_frames 4 --height 256 --width 384
    python benchmarks/floors.py --device cuda --rounds 10

Without `--device` nothing is computed: one forward pass is counted on the meta device, so at any size, with the
kernels that a GPU has. What is counted, of every operator that torch dispatches (not of views, which move nothing):
its FLOPs, and as bytes each tensor that it takes and each that it gives, once; what a group norm takes, twice, as it
sums over all of a group first. Attention is one kernel, which takes query, key and value and gives its output. Tensors
that an operator works on in place are taken and given; of expanded tensors only what is stored counts; workspaces do
not.

A kernel's floor is the longer of FLOPs / peak and bytes / rate, a component's the sum over its kernels. "Element-wise"
are all kernels without products: norms, activations, sums, copies. Fused kernels can go below this floor; none of
torch's that run one after the other can. Of each component the stock network comes first, then ours, and each again
after `optimize`, where that changes its kernels on that device in that dtype. "Activations" is their memory at the
peak; what is needed at least beside it is all weights, or with offloading of groups the largest layer.

Published peaks for dense half precision are those of an A100 (SXM, 40 GB: 312 TFLOP/s, 1.555 TB/s; that of 80 GB moves
2.039) and an H100 (SXM: 989 TFLOP/s, 3.35 TB/s). "In reach" takes 0.65 and 0.55 of the products and 0.8 of the rate,
about what the best kernels get. On `--device cpu` or `cuda` this machine's ceilings, the best product of `torch.mm`
and the best copy, are taken in the same run, and the networks are counted there and run with random weights, taking
turns. Shares above 1 are possible where that is no ceiling: in float32 on a GPU, as torch's convolutions round to TF32
there and `torch.mm` does not, and where a cache holds what is counted as traffic.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.evaluation.device_name import device_name
from vdmini_diffusers.evaluation.latency import optimized_copy, time_in_turns
from vdmini_diffusers.evaluation.live_bytes import LiveBytes
from vdmini_diffusers.evaluation.paper_components import (
    DTYPES,
    SIZES,
    ClipSize,
    PipelineComponent,
    Place,
    pipeline_components,
)
from vdmini_diffusers.serialization.atomic import write_file


RESULTS = Path(__file__).with_name("results")


class Ceilings(NamedTuple):
    flops: float  # a second
    bytes: float  # a second


GPUS = {
    "A100": Ceilings(312e12, 1.555e12),
    "A100 in reach": Ceilings(0.65 * 312e12, 0.8 * 1.555e12),
    "H100": Ceilings(989e12, 3.35e12),
    "H100 in reach": Ceilings(0.55 * 989e12, 0.8 * 3.35e12),
}


class Kernel(NamedTuple):
    name: str
    flops: int
    bytes: int

    def seconds(self, ceilings: Ceilings) -> float:
        return max(self.flops / ceilings.flops, self.bytes / ceilings.bytes)


@dataclass
class Arguments:
    pipelines: list[str] = field(default_factory=lambda: list(SIZES), metadata={"help": f"Of {', '.join(SIZES)}."})
    device: Literal["meta", "cpu", "cuda"] = field(
        default="meta", metadata={"help": "Where the networks run; meta: they are counted only, as on a GPU."}
    )
    dtype: Literal["fp32", "bf16", "fp16"] = field(
        default="bf16", metadata={"help": "Precision of weights and inputs."}
    )
    num_frames: int | None = field(default=None, metadata={"help": "Frames in the clip; default: the paper's."})
    height: int | None = field(default=None, metadata={"help": "Pixels; default: the paper's."})
    width: int | None = field(default=None, metadata={"help": "Pixels; default: the paper's."})
    rounds: int = field(default=2, metadata={"help": "Measured rounds, in each of which all have a turn."})
    name: str = field(default="floors", metadata={"help": "Name of the results' files, without .md and .json."})

    def __post_init__(self):
        if strangers := set(self.pipelines) - set(SIZES):
            raise ValueError(f"`--pipelines` may name {', '.join(SIZES)}, not {', '.join(sorted(strangers))}.")
        if any(size is not None and (size < 64 or size % 64) for size in (self.height, self.width)):
            raise ValueError(f"`--height` and `--width` must be multiples of 64, not {self.height} and {self.width}.")
        if self.rounds < 1 or (self.num_frames is not None and self.num_frames < 1):
            raise ValueError("`--rounds` and `--num_frames` must be at least 1.")


class KernelCounter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        taken, given = (_tensors(tree) for tree in ((args, kwargs), made))
        if "new_" in func.__name__ or "_like" in func.__name__:  # of its shape only
            taken = []
        storages = {x.untyped_storage()._cdata for x in taken}
        is_view = taken and not func._schema.is_mutable and {x.untyped_storage()._cdata for x in given} <= storages
        if not is_view and not func.__name__.startswith(("empty", "new_empty")):
            name = func._overloadpacket.__name__
            product = getattr(torch.ops.aten, name.removesuffix("_"), None)  # those in place are not in the registry
            flops: Any = flop_registry.get(product)
            num_flops = flops(*args, **kwargs, out_val=made) if flops else 0
            out = _tensors({name: x for name, x in kwargs.items() if name == "out"})  # given only
            unique = {id(x): x for x in taken if not any(x is y for y in out)}
            num_bytes = sum(map(_stored_bytes, [*unique.values(), *given]))
            if func._overloadpacket is torch.ops.aten.native_group_norm:  # all of a group, before any of it is given
                num_bytes += _stored_bytes(args[0])
            self.kernels.append(Kernel(func.__name__, num_flops, num_bytes))
        return made


class AttentionKernel(TorchFunctionMode):
    """Attention counts as one kernel, and makes its output only."""

    def __init__(self, counter: KernelCounter):
        super().__init__()
        self.counter = counter

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not nn.functional.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        query, key, value = given["query"], given["key"], given["value"]
        # In the memory that torch's kernels give: heads beside their channels, so that joining them copies nothing.
        *batch, heads, tokens, _ = query.shape
        made = query.new_empty((*batch, tokens, heads, value.shape[-1])).transpose(-3, -2)
        num_bytes = sum(map(_stored_bytes, (query, key, value, made)))
        self.counter.kernels.append(
            Kernel("attention", sdpa_flop_count(query.shape, key.shape, value.shape), num_bytes)
        )
        return made


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _stored_bytes(x: torch.Tensor) -> int:
    elements = math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)
    return elements * x.element_size()


@torch.no_grad()
def count(work: Callable[[], object], weights: Iterable[torch.Tensor] = ()) -> tuple[list[Kernel], int]:
    """The kernels, and the bytes of living tensors at the peak."""
    with LiveBytes(weights) as live, KernelCounter() as counter, AttentionKernel(counter):
        work()
    return counter.kernels, live.peak


def weights_of(network: nn.Module) -> tuple[int, int]:
    """Bytes of all, and of the layer that has most."""
    layers = [sum(p.nbytes for p in layer.parameters(recurse=False)) for layer in network.modules()]
    return sum(p.nbytes for p in network.parameters()), max(layers)


def take_ceilings(device: str, dtype: torch.dtype) -> Ceilings:
    """The best of some rounds of a matrix product and of a copy that no cache holds."""
    size = 8192 if device == "cuda" else 1024
    a, b, c = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
    source, target = (torch.ones(2**26, device=device) for _ in range(2))  # 256 MiB each
    works = {"mm": lambda: torch.mm(a, b, out=c), "copy": lambda: target.copy_(source)}
    best = {name: min(t.milliseconds) / 1000 for name, t in time_in_turns(works, device, 20, warm_ups=2).items()}
    return Ceilings(2 * size**3 / best["mm"], 2 * source.nbytes / best["copy"])


@dataclass
class Pass:
    """One forward pass: counted, and measured unless the device is "meta"."""

    pipeline: str
    component: str
    network: str
    optimized: bool
    kernels: list[Kernel]
    peak: int  # bytes of living tensors, weights left out
    weights: tuple[int, int]  # bytes of all, and of the layer that has most
    milliseconds: float | None

    def row(self, ceilings: dict[str, Ceilings]) -> dict[str, Any]:
        row: dict[str, Any]
        element_wise = [kernel for kernel in self.kernels if not kernel.flops]
        row = {"pipeline": self.pipeline, "component": self.component, "network": self.network}
        row |= {"optimised": "yes" * self.optimized, "TMAC": round(sum(k.flops for k in self.kernels) / 2e12, 3)}
        for name, kernels in (("GB", self.kernels), ("element-wise GB", element_wise)):
            row[name] = round(sum(k.bytes for k in kernels) / 1e9, 1)
        sizes = {"weights": self.weights[0], "largest layer": self.weights[1], "activations": self.peak}
        for name, size in sizes.items():
            row[f"{name} GiB"] = round(size / 2**30, 2)
        for name, each in ceilings.items():
            row[f"{name} ms"] = round(1000 * sum(k.seconds(each) for k in self.kernels), 1)
            row[f"{name}, element-wise"] = round(1000 * sum(k.seconds(each) for k in element_wise), 1)
        if self.milliseconds is not None:
            row |= {"measured ms": round(self.milliseconds, 1), "share": round(row["here ms"] / self.milliseconds, 2)}
        return row


@torch.no_grad()
def passes_of(pipeline: str, component: PipelineComponent, args: Arguments) -> list[Pass]:
    """A pass of each network, and one of it rewritten if that changes its kernels."""
    place = Place(args.device, DTYPES[args.dtype])
    inputs = component.inputs(place)
    works: dict[str, Callable[[], object]] = {}
    counts: dict[str, tuple[list[Kernel], int]] = {}
    weights: dict[str, tuple[int, int]] = {}
    for name in component.networks:
        network = place.build(name, component.without)
        for optimized, each in ((False, network), (True, optimized_copy(network))):
            key = f"{name}|{optimized}"
            works[key] = partial(component.run, each, inputs)
            counts[key] = count(works[key], network.parameters())
        weights[name] = weights_of(network)
        if counts[f"{name}|True"][0] == counts[f"{name}|False"][0]:
            del works[f"{name}|True"]
    timings = {}
    if args.device != "meta":
        timings = time_in_turns(works, args.device, args.rounds, warm_ups=2 if args.device == "cuda" else 0)
    found = []
    for key in works:
        name, optimized = key.split("|")
        milliseconds = timings[key].median if timings else None
        names = pipeline, component.name, name, optimized == "True"
        found.append(Pass(*names, *counts[key], weights[name], milliseconds))
    return found


def main(args: Arguments) -> None:
    passes, sizes, ceilings = [], [], GPUS
    for pipeline in args.pipelines:
        given = (args.num_frames, args.height, args.width)
        size = ClipSize(*(a if a is not None else b for a, b in zip(given, SIZES[pipeline], strict=True)))
        sizes.append(f"{pipeline} {' x '.join(map(str, size))}")
        for component in pipeline_components(pipeline, size):
            if args.device != "meta":  # again and again, as other load on the machine comes and goes
                here = take_ceilings(args.device, DTYPES[args.dtype])
                ceilings = {"here": Ceilings(*map(max, here, ceilings.get("here", here)))}
            passes += passes_of(pipeline, component, args)
            print(f"{pipeline}, {component.name}: done", flush=True)
    rows = [each.row(ceilings) for each in passes]
    device = device_name(args.device)
    lines = [f"# Floors\n\n{', '.join(sizes)} pixels, {args.dtype}, torch {torch.__version__}."]
    named = [
        f"{name}{f' ({device})' * (name == 'here')} {each.flops / 1e12:.4g} TFLOP/s, {each.bytes / 1e12:.4g} TB/s"
        for name, each in ceilings.items()
    ]
    lines.append(f"Ceilings: {'; '.join(named)}.")
    lines.append(
        "`benchmarks/floors.py` says what is counted. TMAC: 10^12 multiply-accumulates. Milliseconds are the least\n"
        "that a pass can take; `share` is that of what it took."
    )
    text = "\n\n".join([*lines, markdown_table(rows)]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    write_file(RESULTS / f"{args.name}.md", text.encode())
    result = {"sizes": sizes, "dtype": args.dtype, "device": device if "here" in ceilings else args.device}
    result |= {"ceilings": {name: each._asdict() for name, each in ceilings.items()}, "rows": rows}
    write_file(RESULTS / f"{args.name}.json", (json.dumps(result, indent=1) + "\n").encode())
    print(f"\n{text}")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
