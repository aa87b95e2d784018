#!/usr/bin/env python
"""Ways to be faster that do not compute exactly the same: how much faster, and how far from the exact output.

    python benchmarks/opt_ins.py
    python benchmarks/opt_ins.py --device cuda --num_frames 14 --height 576 --width 1024 --rounds 10 --compile

The image-to-video student's U-Net and decoder run at full width with random weights, and a small HunyuanVideo
transformer samples 16 steps. All variants of a network take turns; a ratio is the median of the rounds' ratios to the
exact network, in float32 without any of it. The error is the ratio of the exact output's energy to the error's, in
decibels; that of a trained network may differ. Quantised weights are measured where torchao is installed.

`--parts allocator` compares processes, which take turns: the decoder after `optimize`, in float32, once with the
system's allocator as it is and once with one that keeps memory (glibc, hence Linux). The output is equal bit by bit.
"""

import copy
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    HunyuanVideoTransformer3DModel,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.utils import is_torchao_available
from torch import nn

from vdmini_diffusers import VDMiniAutoencoderKLTemporalDecoder, VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.evaluation.device_name import device_name
from vdmini_diffusers.evaluation.latency import build_network, optimized_copy, time_in_turns
from vdmini_diffusers.inference import compile_blocks, optimize


STEPS = 16
# glibc keeps what is freed, so that the kernel need not clear it again for the next tensor.
KEEPING_MEMORY = {
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
}
PARTS: tuple[str, ...] = ("U-Net", "decoder", "transformer", "allocator", "one process")


@dataclass
class Arguments:
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    num_frames: int = field(default=4, metadata={"help": "Frames in the clip."})
    height: int = field(default=128, metadata={"help": "Pixels."})
    width: int = field(default=192, metadata={"help": "Pixels."})
    rounds: int = field(default=3, metadata={"help": "In each of which all variants have their turn."})
    parts: list[str] = field(
        default_factory=lambda: list(PARTS[:3]),
        metadata={"help": f"What to measure, of {', '.join(PARTS)}; the last is what `allocator` starts."},
    )
    compile: bool = field(default=False, metadata={"help": "Compiled blocks as well; minutes on a CPU."})

    def __post_init__(self):
        if self.height % 64 or self.width % 64 or min(self.height, self.width, self.num_frames, self.rounds) < 1:
            raise ValueError("`--height` and `--width` must be multiples of 64, and all counts at least 1.")
        if strangers := set(self.parts) - set(PARTS):
            raise ValueError(f"`--parts` may name {', '.join(PARTS)}, not {', '.join(sorted(strangers))}.")


def decibels(output: torch.Tensor, exact: torch.Tensor) -> float:
    error = (output.double() - exact.double()).square().mean()
    return 10 * math.log10(float(exact.double().square().mean() / error)) if error else math.inf


def in_dtype(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    return nn.Module.to(copy.deepcopy(network), dtype)  # diffusers' own warns of half precision


def quantised(network: nn.Module, name: str) -> nn.Module:
    import torchao.quantization as ao  # pyright: ignore[reportMissingImports] - not among the requirements

    config = {"int8": lambda: ao.Int8WeightOnlyConfig(version=2), "fp8": ao.Float8WeightOnlyConfig}[name]()
    network = copy.deepcopy(network)
    ao.quantize_(network, config)
    return network


def variants_of(
    network: nn.Module, work: Callable[[Any, torch.dtype], torch.Tensor], args: Arguments
) -> dict[str, Callable[[], torch.Tensor]]:
    """What to run, by name; `work` runs a network on inputs of a dtype. Variants of one dtype share their weights."""
    bf16 = in_dtype(network, torch.bfloat16)

    def autocast() -> torch.Tensor:
        with torch.autocast(args.device, torch.bfloat16):
            return work(network, torch.float32)

    def eager() -> torch.Tensor:
        with torch.compiler.set_stance("force_eager"):
            return work(bf16, torch.bfloat16)

    runs: dict[str, Callable[[], torch.Tensor]] = {
        "exact": partial(work, network, torch.float32),
        "`optimize` (exact to rounding)": partial(work, optimized_copy(network), torch.float32),
        "bf16 autocast of float32 weights": autocast,
        "bf16 weights": eager,
    }
    if is_torchao_available():
        for name in ("int8", "fp8"):
            runs[f"{name} weights of linear layers, bf16"] = partial(work, quantised(bf16, name), torch.bfloat16)
    if args.compile:
        runs["bf16 weights, `compile_blocks`"] = partial(work, compile_blocks(bf16), torch.bfloat16)
    else:
        runs["bf16 weights, `optimize`"] = partial(work, optimized_copy(bf16), torch.bfloat16)
    return runs


def rows_of(part: str, runs: dict[str, Callable[[], torch.Tensor]], args: Arguments) -> list[dict[str, Any]]:
    outputs, first = {}, {}
    for name, each in runs.items():  # compiles what is to be compiled
        start = time.perf_counter()
        outputs[name] = each()
        first[name] = time.perf_counter() - start
    timings = time_in_turns(runs, args.device, args.rounds)
    rows = []
    for name in runs:
        row = {"part": part, "what": name, "ms": round(timings[name].median)}
        row["times faster"] = round(timings["exact"].ratio(timings[name]), 2)
        row["error, dB"] = round(decibels(outputs[name], outputs["exact"]), 1) if name != "exact" else ""
        row["first call, s"] = round(first[name], 1) if "compile" in name else ""
        rows.append(row)
        print(row, flush=True)
    return rows


def unet_rows(args: Arguments) -> list[dict[str, Any]]:
    unet = build_network(VDMiniUNetSpatioTemporalConditionModel, args.device, torch.float32)
    noisy = torch.randn(1, args.num_frames, 8, args.height // 8, args.width // 8, device=args.device)
    context, ids = torch.randn(1, 1, 1024, device=args.device), torch.ones(1, 3, device=args.device)

    def work(network: Any, dtype: torch.dtype) -> torch.Tensor:
        return network(noisy.to(dtype), 1.6378, context.to(dtype), added_time_ids=ids.to(dtype)).sample

    return rows_of("U-Net", variants_of(unet, work, args), args)


def decoder_rows(args: Arguments) -> list[dict[str, Any]]:
    vae = build_network(VDMiniAutoencoderKLTemporalDecoder, args.device, torch.float32)
    del vae.encoder
    latents = torch.randn(args.num_frames, 4, args.height // 8, args.width // 8, device=args.device)

    def work(network: Any, dtype: torch.dtype) -> torch.Tensor:
        return network.decode(latents.to(dtype), num_frames=args.num_frames).sample

    def channels_last(network: Any) -> torch.Tensor:
        frames = latents.bfloat16().contiguous(memory_format=torch.channels_last)
        return network.decode(frames, num_frames=args.num_frames).sample

    runs = variants_of(vae, work, args)
    runs["bf16 weights, latents channels last"] = partial(channels_last, in_dtype(vae, torch.bfloat16))
    return rows_of("decoder", runs, args)


@torch.no_grad()
def decode_in_this_process(args: Arguments) -> list[dict[str, Any]]:
    """One row: the process's own time for a second clip, and a hash of its frames."""
    vae = build_network(VDMiniAutoencoderKLTemporalDecoder, "cpu", torch.float32)
    latents = torch.randn(args.num_frames, 4, args.height // 8, args.width // 8)
    optimize(vae).decode(latents, num_frames=args.num_frames)
    start = time.process_time()
    frames = vae.decode(latents, num_frames=args.num_frames).sample.numpy()
    row = {"ms": 1000 * (time.process_time() - start), "frames": hashlib.sha256(frames.tobytes()).hexdigest()}
    print(json.dumps(row))
    return [row]


def allocator_rows(args: Arguments) -> list[dict[str, Any]]:
    size = [f"--{name}={getattr(args, name)}" for name in ("num_frames", "height", "width")]
    command = [sys.executable, __file__, "--parts", "one process", *size]
    rounds: dict[str, list[dict[str, Any]]] = {"as it is": [], "keeping memory": []}
    for _ in range(args.rounds):
        for name, found in rounds.items():
            environment = os.environ | (KEEPING_MEMORY if name == "keeping memory" else {})
            output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            found.append(json.loads(next(line for line in output.splitlines() if line.startswith("{"))))
    plain, keeping = rounds.values()
    ratios = [one["ms"] / other["ms"] for one, other in zip(plain, keeping, strict=True)]
    equal = len({each["frames"] for each in [*plain, *keeping]}) == 1
    row = {"part": "decoder after `optimize`", "what": "allocator that keeps memory", "error, dB": "equal" * equal}
    row |= {"ms": round(statistics.median(each["ms"] for each in keeping))}
    row |= {"times faster": round(statistics.median(ratios), 2), "in rounds": ", ".join(f"{r:.2f}" for r in ratios)}
    print(row, flush=True)
    return [row]


def transformer_rows(args: Arguments) -> list[dict[str, Any]]:
    """The caches of diffusers, which every transformer of a video pipeline takes, on 16 steps of Euler's method."""
    config: dict[str, Any] = {
        "num_attention_heads": 4,
        "attention_head_dim": 32,
        "num_layers": 4,
        "num_single_layers": 8,
    }
    config |= {"rope_axes_dim": (8, 12, 12), "text_embed_dim": 64, "pooled_projection_dim": 32}
    transformer = build_network(lambda: HunyuanVideoTransformer3DModel(**config), args.device, torch.float32)
    draw = partial(torch.randn, device=args.device)
    noise, text, pooled = draw(1, 16, args.num_frames, args.height // 8, args.width // 8), draw(1, 20, 64), draw(1, 32)
    mask, guidance = torch.ones(1, 20, device=args.device), torch.full((1,), 6000.0, device=args.device)
    sigmas = torch.linspace(1, 0, STEPS + 1, device=args.device)
    sigmas = 7 * sigmas / (1 + 6 * sigmas)  # the shift of HunyuanVideo's scheduler
    now = [1000.0]

    def sample(cache: Any = None) -> torch.Tensor:
        if cache is not None:
            transformer.enable_cache(cache)
        x = noise
        for sigma, following in pairwise(sigmas):
            now[0] = 1000 * float(sigma)
            with transformer.cache_context("cond"):
                velocity = transformer(x, sigma[None] * 1000, text, mask, pooled, guidance).sample
            x = x + (following - sigma) * velocity
        if cache is not None:
            transformer.disable_cache()
        return x

    spatial: dict[str, Any] = {"spatial_attention_block_skip_range": 2, "current_timestep_callback": lambda: now[0]}
    caches = {
        "FirstBlockCacheConfig(threshold=0.4)": FirstBlockCacheConfig(threshold=0.4),
        "TaylorSeerCacheConfig(cache_interval=3)": TaylorSeerCacheConfig(cache_interval=3, max_order=1),
        "PyramidAttentionBroadcastConfig(block_skip_range=2)": PyramidAttentionBroadcastConfig(
            **spatial, spatial_attention_timestep_skip_range=(100, 950)
        ),
        "FasterCacheConfig(block_skip_range=2)": FasterCacheConfig(
            **spatial,
            spatial_attention_timestep_skip_range=(-1, 950),
            tensor_format="BCFHW",
            is_guidance_distilled=True,
        ),
        "MagCacheConfig(max_skip_steps=2)": MagCacheConfig(
            threshold=0.1, max_skip_steps=2, num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS
        ),
    }
    return rows_of("transformer", {"exact": sample} | {name: partial(sample, c) for name, c in caches.items()}, args)


@torch.no_grad()
def main(args: Arguments) -> None:
    torch.manual_seed(0)
    functions = (unet_rows, decoder_rows, transformer_rows, allocator_rows, decode_in_this_process)
    measures = dict(zip(PARTS, functions, strict=True))
    rows = [row for part in args.parts for row in measures[part](args)]
    where = device_name(args.device)
    print(f"\n{markdown_table(rows)}\n\n{args.num_frames} x {args.height} x {args.width} pixels, {where}")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
