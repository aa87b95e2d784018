#!/usr/bin/env python
"""The least time that each component of the pipelines can take, and the share of it that a machine reaches.

    python benchmarks/floors.py
    python benchmarks/floors.py --device cpu --dtype fp32 --pipelines i2v --num_frames 4 --height 256 --width 384
    python benchmarks/floors.py --device cuda --rounds 10

One forward pass is counted without computing it, so at any size. What is counted, of every operator that torch
dispatches (not of views, which move nothing): its FLOPs, and as bytes each tensor that it takes and each that it
gives, once; what a group norm takes, twice, as it sums over all of a group first. Attention is one kernel, which takes
query, key and value and gives its output. Tensors that an operator works on in place are taken and given; of expanded
tensors only what is stored counts; workspaces do not.

A kernel's floor is the longer of FLOPs / peak and bytes / rate, a component's the sum over its kernels. "Element-wise"
are all kernels without products: norms, activations, sums, copies. Fused kernels can go below this floor; none of
torch's that run one after the other can. Of each component the stock network comes first, then ours, and each again
after `optimize`, where that changes its kernels on that device in that dtype.

Published peaks for dense half precision are those of an A100 (SXM, 40 GB: 312 TFLOP/s, 1.555 TB/s; that of 80 GB moves
2.039) and an H100 (SXM: 989 TFLOP/s, 3.35 TB/s). "In reach" takes 0.65 and 0.55 of the products and 0.8 of the rate,
about what the best kernels get. On `--device cpu` or `cuda` this machine's ceilings, the best product of
`torch.mm` and the best copy, are taken in the same run, and the networks run with random weights, taking turns.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.evaluation.latency import build_network, time_in_turns
from vdmini_diffusers.inference import optimize, restore
from vdmini_diffusers.serialization.atomic import write_file


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZES = {"i2v": (14, 576, 1024), "t2v": (16, 320, 512), "hunyuan": (93, 480, 848)}  # frames, height, width in pixels
NETWORKS = json.loads(Path(__file__).with_name("latency_networks.json").read_text())
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
    name: str = field(default="floors", metadata={"help": "Of the files in benchmarks/results: .md and .json."})

    def __post_init__(self):
        if strangers := set(self.pipelines) - set(SIZES):
            raise ValueError(f"`--pipelines` may name {', '.join(SIZES)}, not {', '.join(sorted(strangers))}.")
        if any(size is not None and (size < 64 or size % 64) for size in (self.height, self.width)):
            raise ValueError(f"`--height` and `--width` must be multiples of 64, not {self.height} and {self.width}.")
        if self.rounds < 1 or (self.num_frames is not None and self.num_frames < 1):
            raise ValueError("`--rounds` and `--num_frames` must be at least 1.")


@dataclass(frozen=True)
class Component:
    """`networks` are the stock one and ours, or the one that both have; `work` runs one of them once."""

    name: str
    networks: tuple[str, ...]
    work: Callable[[Any, Callable[..., torch.Tensor]], object]  # the network, and what draws inputs
    without: str | None = None  # a part that is not needed


def components(pipeline: str, frames: int, height: int, width: int) -> list[Component]:
    height, width = height // 8, width // 8
    if pipeline == "i2v":
        unets, vaes = ("SVD's U-Net", "VDMini-I2V's U-Net"), ("SVD's VAE", "VDMini-I2V's VAE")
        return [
            Component("image encoder", ("CLIP ViT-H",), lambda net, draw: net(draw(1, 3, 224, 224))),
            Component(
                "VAE encoder", vaes[:1], lambda net, draw: net.encode(draw(1, 3, 8 * height, 8 * width)), "decoder"
            ),
            Component(
                "U-Net, one step",
                unets,
                lambda net, draw: net(
                    draw(1, frames, 8, height, width), 1.6378, draw(1, 1, 1024), added_time_ids=draw(1, 3)
                ),
            ),
            Component(
                "VAE decoder",
                vaes,
                lambda net, draw: net.decode(draw(frames, 4, height, width), num_frames=frames),
                "encoder",
            ),
        ]
    if pipeline == "t2v":
        tokens = {"dtype": torch.long}
        return [
            Component(
                "text encoder", ("VideoCrafter2's text encoder",), lambda net, draw: net(draw(1, 77).to(**tokens))
            ),
            Component(
                "U-Net, one step",
                ("T2V-Turbo-v2's U-Net", "VDMini-T2V's U-Net"),
                lambda net, draw: net(
                    draw(1, 4, frames, height, width),
                    999,
                    draw(1, 77, 1024),
                    timestep_cond=draw(1, 256),
                    motion_cond=draw(1, 256),
                    fps=8,
                ),
            ),
            Component(
                "VAE decoder",
                ("Stable Diffusion's VAE",),
                lambda net, draw: net.decode(draw(frames, 4, height, width)),
                "encoder",
            ),
        ]
    return [
        Component(
            "transformer, one step",
            ("HunyuanVideo", "VDMini-T2V-HY"),
            lambda net, draw: net(
                draw(1, 16, (frames - 1) // 4 + 1, height, width),
                timestep=draw(1).to(torch.long),
                encoder_hidden_states=draw(1, 256, 4096),
                encoder_attention_mask=draw(1, 256).to(torch.long),
                pooled_projections=draw(1, 768),
                guidance=draw(1),
            ),
        )
    ]


def make_network(name: str, without: str | None) -> nn.Module:
    (library, class_name), config = NETWORKS[name]["class"], NETWORKS[name]["config"]
    cls = getattr(import_module(library), class_name)
    config_class = getattr(cls, "config_class", None)  # of transformers
    network = cls(config_class(**config)) if config_class else cls(**config)
    if without is not None:
        delattr(network, without)
    return network


class KernelCounter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        taken, given = (_tensors(tree) for tree in ((args, kwargs), made))
        storages = {x.untyped_storage()._cdata for x in taken}
        is_view = not func._schema.is_mutable and {x.untyped_storage()._cdata for x in given} <= storages
        if not is_view and "empty" not in func.__name__:
            flops = flop_registry.get(func._overloadpacket)
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
def count_kernels(component: Component, name: str, optimized: bool, args: Arguments) -> list[Kernel]:
    """The kernels of one pass. Rewrites and layouts go by the device, so a CPU's is counted on fake tensors of one."""
    on_cpu, dtype = args.device == "cpu", DTYPES[args.dtype]
    make = partial(make_network, name, component.without)
    with FakeTensorMode() if on_cpu else nullcontext():
        network = make_in_dtype(make, dtype) if on_cpu else build_network(make, "meta", dtype)
        if optimized:
            optimize(network)
        draw = partial(_draw, "cpu" if on_cpu else "meta", dtype)
        with KernelCounter() as counter, AttentionKernel(counter):
            component.work(network, draw)
    return counter.kernels


def make_in_dtype(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """As `build_network`, without its conversion, which fake parameters do not take."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return make().eval()
    finally:
        torch.set_default_dtype(default)


def _draw(device: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.ones(shape, device=device, dtype=dtype)


def take_ceilings(device: str, dtype: torch.dtype) -> Ceilings:
    """The best of a few rounds of a matrix product and a copy that no cache holds."""
    size = 8192 if device == "cuda" else 2048
    a, b, c = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
    source, target = (torch.ones(2**26, device=device) for _ in range(2))  # 256 MiB each
    works = {"mm": lambda: torch.mm(a, b, out=c), "copy": lambda: target.copy_(source)}
    best = {name: min(t.milliseconds) / 1000 for name, t in time_in_turns(works, device, 8, warm_ups=2).items()}
    return Ceilings(2 * size**3 / best["mm"], 2 * source.nbytes / best["copy"])


@contextmanager
def optimized_if(network: nn.Module, optimized: bool) -> Iterator[None]:
    if optimized:
        optimize(network)
    try:
        yield
    finally:
        restore(network)


@torch.no_grad()
def measure(component: Component, args: Arguments) -> dict[tuple[str, bool], float]:
    """Milliseconds by network and whether it is optimised."""
    dtype = DTYPES[args.dtype]
    made = {
        name: build_network(partial(make_network, name, component.without), args.device, dtype)
        for name in component.networks
    }
    inputs: dict[tuple[int, ...], torch.Tensor] = {}

    def draw(*shape: int) -> torch.Tensor:
        if shape not in inputs:
            inputs[shape] = torch.randn(shape, device=args.device).to(dtype)
        return inputs[shape]

    def work(name: str, optimized: bool) -> None:
        with optimized_if(made[name], optimized):
            component.work(made[name], draw)

    works = {f"{name}|{optimized}": partial(work, name, optimized) for name in made for optimized in (False, True)}
    timings = time_in_turns(works, args.device, args.rounds, warm_ups=2 if args.device == "cuda" else 0)
    return {(name, o): timings[f"{name}|{o}"].median for name in made for o in (False, True)}


def row_of(kernels: list[Kernel], here: Ceilings | None, milliseconds: float | None) -> dict[str, float]:
    row = {"TMAC": sum(k.flops for k in kernels) / 2e12, "GB": sum(k.bytes for k in kernels) / 1e9}
    element_wise = [k for k in kernels if not k.flops]
    row["element-wise GB"] = sum(k.bytes for k in element_wise) / 1e9
    for name, ceilings in ({"here": here} if here else GPUS).items():
        row[f"{name} ms"] = 1000 * sum(k.seconds(ceilings) for k in kernels)
        row[f"{name}, element-wise"] = 1000 * sum(k.seconds(ceilings) for k in element_wise)
    if milliseconds is not None:
        row |= {"measured ms": milliseconds, "share": row["here ms"] / milliseconds}
    return {name: round(value, 3 if name in ("TMAC", "share") else 1) for name, value in row.items()}


def main(args: Arguments) -> None:
    dtype = DTYPES[args.dtype]
    here = take_ceilings(args.device, dtype) if args.device != "meta" else None
    rows, sizes = [], []
    for pipeline in args.pipelines:
        given = (args.num_frames, args.height, args.width)
        size = [a if a is not None else b for a, b in zip(given, SIZES[pipeline], strict=True)]
        sizes.append(f"{pipeline} {' x '.join(map(str, size))}")
        for component in components(pipeline, *size):
            times = measure(component, args) if args.device != "meta" else {}
            for name in component.networks:
                stock, rewritten = (count_kernels(component, name, optimized, args) for optimized in (False, True))
                for kernels in (stock, rewritten)[: 1 + (rewritten != stock)]:
                    row = {"pipeline": pipeline, "component": component.name, "network": name}
                    row["optimised"] = "yes" if kernels is rewritten else ""
                    rows.append(row | row_of(kernels, here, times.get((name, kernels is rewritten))))
                    print(json.dumps(rows[-1]), flush=True)
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    lines = [f"# Floors\n\n{', '.join(sizes)} pixels, {args.dtype}, torch {torch.__version__}."]
    if here:
        lines.append(f"Here ({device}): {here.flops / 1e12:.4g} TFLOP/s, {here.bytes / 1e9:.4g} GB/s.")
    lines.append(
        "`benchmarks/floors.py` says what is counted. TMAC: 10^12 multiply-accumulates; milliseconds are the least that a"
        " pass can take, and `share` is that of what it took."
    )
    text = "\n\n".join([*lines, markdown_table(rows)]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    write_file(RESULTS / f"{args.name}.md", text.encode())
    ceilings = {name: each._asdict() for name, each in ({"here": here} if here else GPUS).items()}
    result = {"sizes": sizes, "dtype": args.dtype, "device": device if here else args.device, "ceilings": ceilings}
    write_file(RESULTS / f"{args.name}.json", (json.dumps(result | {"rows": rows}, indent=1) + "\n").encode())
    print(f"\n{text}")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
