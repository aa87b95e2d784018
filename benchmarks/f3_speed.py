#!/usr/bin/env python
"""How much faster F3-Pruning makes a forward pass, against the share alpha of pruned layers, with counted operations.

    python benchmarks/f3_speed.py
    python benchmarks/f3_speed.py --device cuda --num_layers 30 --scale 1 --unet_scale 1 --rounds 9
    python benchmarks/f3_speed.py --count_only

CogVideoX-2B with few of its 30 layers, SVD's U-Net and VideoCrafter2's, all at real width with random weights. The
variants of a network take turns in each round, so that other load on the machine meets all of them; a time is the
median of the rounds, a speed-up the median of the rounds' ratios. On a CPU the process's own time is taken beside the
clock's, as other work does not lengthen it. The layers are drawn at random, as random weights
have no scores worth ranking: in CogVideoX all cost the same, and in U-Nets alpha 1 says what can be gained at most.
Operations are counted on the meta device, here for the clip that is measured and for the models' own clip and depth.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers import CogVideoXTransformer3DModel, UNetSpatioTemporalConditionModel

from vdmini_diffusers import VDMiniUNet3DConditionModel
from vdmini_diffusers.analysis.f3 import F3Plan, apply_f3, remove_f3, temporal_layers
from vdmini_diffusers.analysis.f3.layers import attention_class
from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.evaluation.latency import build_network, time_in_turns
from vdmini_diffusers.evaluation.paper_components import DTYPES, NETWORK_CONFIGS
from vdmini_diffusers.pruning.cost import count_tmacs


Inputs = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """`make`, with the number of layers where it can be chosen; `clip`: the model's own latents, `(frames, h, w)`.
    `variants`: what is pruned, and the shares alpha."""

    make: Callable[[int], Any]
    inputs: Callable[[int, int, int], Inputs]
    clip: tuple[int, int, int]
    variants: tuple[tuple[Literal["attention", "block"], float], ...]
    depth: int = 0


def cogvideox(num_layers: int) -> Any:
    return CogVideoXTransformer3DModel(num_layers=num_layers)


def cogvideox_inputs(frames: int, height: int, width: int) -> Inputs:
    return {
        "hidden_states": torch.zeros(1, frames, 16, height, width),
        "encoder_hidden_states": torch.zeros(1, 226, 4096),
        "timestep": torch.tensor([500]),
    }


def svd(_: int) -> Any:
    return UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20), num_frames=14)


def svd_inputs(frames: int, height: int, width: int) -> Inputs:
    return {
        "sample": torch.zeros(1, frames, 8, height, width),
        "timestep": torch.tensor(1.6),
        "encoder_hidden_states": torch.zeros(1, 1, 1024),
        "added_time_ids": torch.zeros(1, 3),
    }


def videocrafter2(_: int) -> Any:
    config = NETWORK_CONFIGS["T2V-Turbo-v2's U-Net"]["config"]
    return VDMiniUNet3DConditionModel(**config | {"time_cond_proj_dim": None, "motion_cond_proj_dim": None})


def videocrafter2_inputs(frames: int, height: int, width: int) -> Inputs:
    return {
        "sample": torch.zeros(1, 4, frames, height, width),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.zeros(1, 77, 1024),
        "fps": torch.tensor([8.0]),
    }


UNET_VARIANTS: Any = (("attention", 0.5), ("attention", 1.0), ("block", 0.5), ("block", 1.0))
NETWORKS = {
    "CogVideoX-2B": Network(
        cogvideox, cogvideox_inputs, (13, 60, 90), tuple(("attention", n / 3) for n in (1, 2, 3)), depth=30
    ),
    "VideoCrafter2's U-Net": Network(videocrafter2, videocrafter2_inputs, (16, 40, 64), UNET_VARIANTS),
    "SVD's U-Net": Network(svd, svd_inputs, (14, 72, 128), UNET_VARIANTS),
}


@dataclass
class Arguments:
    networks: list[str] = field(default_factory=lambda: list(NETWORKS), metadata={"help": "Which of them."})
    num_layers: int = field(default=3, metadata={"help": "Layers of CogVideoX that are measured (CogVideoX-2B: 30)."})
    scale: float = field(default=0.55, metadata={"help": "Height and width of CogVideoX's clip; 1: its own."})
    unet_scale: float = field(default=0.25, metadata={"help": "Height and width of the U-Nets' clips; 1: their own."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    dtype: Literal["fp32", "bf16", "fp16"] = field(default="bf16", metadata={"help": "Precision."})
    rounds: int = field(default=2, metadata={"help": "Measured rounds, after one that is not."})
    count_only: bool = field(default=False, metadata={"help": "Count operations; measure nothing."})

    def __post_init__(self):
        if unknown := set(self.networks) - set(NETWORKS):
            raise ValueError(f"`--networks` are some of {list(NETWORKS)}, not {sorted(unknown)}.")
        if not (0 < self.scale <= 1 and 0 < self.unet_scale <= 1 and self.num_layers >= 1 and self.rounds >= 1):
            raise ValueError(
                "`--scale` and `--unet_scale` are above 0 and at most 1, `--num_layers` and `--rounds` are at least 1."
            )


def plan_for(model: Any, part: Literal["attention", "block"], alpha: float) -> F3Plan:
    scores = dict.fromkeys(temporal_layers(model), 0.0)
    return F3Plan.from_scores(attention_class(model), scores, alpha, part=part, order="random")


def pruned(model: Any, plan: F3Plan, work: Callable[[], Any]) -> Callable[[], None]:
    """`work` by the pruned model; applying the plan takes milliseconds."""

    def run_pruned() -> None:
        apply_f3(model, plan)
        work()
        remove_f3(model)

    return run_pruned


def with_cpu_time(work: Callable[[], Any], times: list[float]) -> Callable[[], None]:
    """`work`, whose CPU time in seconds is added to `times`."""

    def timed() -> None:
        start = time.process_time()
        work()
        times.append(time.process_time() - start)

    return timed


def works_of(model: Any, network: Network, inputs: Inputs) -> dict[tuple[str, float], Callable[[], Any]]:
    """The forward pass of every variant, by what is pruned and alpha; that of the model itself comes first."""
    works: dict[tuple[str, float], Callable[[], Any]] = {("", 0.0): lambda: model(**inputs)}
    for part, alpha in network.variants:
        works[part, alpha] = pruned(model, plan_for(model, part, alpha), works["", 0.0])
    return works


def count(network: Network, num_layers: int, clip: tuple[int, int, int]) -> dict[tuple[str, float], float]:
    """10^12 multiply-accumulates of each variant."""
    model = build_network(lambda: network.make(num_layers), "meta", torch.float32)
    with torch.device("meta"):
        inputs = network.inputs(*clip)
    return {variant: count_tmacs(work) for variant, work in works_of(model, network, inputs).items()}


@torch.no_grad()
def main(args: Arguments) -> None:
    for name in args.networks:
        network = NETWORKS[name]
        frames, height, width = network.clip
        scale = args.scale if network.depth else args.unet_scale
        small = (frames, int(height * scale) // 8 * 8 or 8, int(width * scale) // 8 * 8 or 8)
        own, here = count(network, network.depth, network.clip), count(network, args.num_layers, small)
        timings: Any = {}
        device, cpu_times = torch.device(args.device), {variant: [] for variant in own}
        if not args.count_only:
            dtype = DTYPES[args.dtype]
            model = build_network(lambda network=network: network.make(args.num_layers), device, dtype)
            inputs = network.inputs(*small)
            for key, tensor in inputs.items():
                is_data = tensor.ndim > 1
                inputs[key] = torch.randn(tensor.shape, device=device, dtype=dtype) if is_data else tensor.to(device)
            works: Any = {
                variant: with_cpu_time(work, cpu_times[variant])
                for variant, work in works_of(model, network, inputs).items()
            }
            timings = time_in_turns(works, device, args.rounds, warm_ups=1)
            del model, works, inputs  # before the next network is made
        rows = []
        for variant in own:
            row: dict[str, Any] = {"pruned": variant[0] or "nothing", "alpha": variant[1]}
            row |= {"own clip, TFLOP": 2 * own[variant], "counted speed-up": own["", 0.0] / own[variant]}
            row |= {"this clip, TFLOP": 2 * here[variant], "counted here": here["", 0.0] / here[variant]}
            if timings:
                first, timing = timings["", 0.0], timings[variant]
                ratios = [a / b for a, b in zip(first.milliseconds, timing.milliseconds, strict=True)]
                row |= {"seconds, median": timing.median / 1000, "measured here": first.ratio(timing)}
                row |= {"of the rounds": f"{min(ratios):.2f} to {max(ratios):.2f}"}
                if device.type == "cpu":
                    times = [cpu_times[each][1:] for each in (("", 0.0), variant)]  # without the warm-up
                    row |= {"CPU seconds, median": statistics.median(times[1])}
                    row |= {"in CPU time": statistics.median(a / b for a, b in zip(*times, strict=True))}
            rows.append(row)
        depth = f", {args.num_layers} of {network.depth} layers here" if network.depth else ""
        sizes = " and ".join("x".join(map(str, clip)) for clip in (network.clip, small))
        print(f"\n{name}{depth}; latents of {sizes}\n\n{markdown_table(rows)}", flush=True)
    print(f"\n{args.dtype}, {args.device}, {torch.get_num_threads()} threads, {args.rounds} rounds")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
