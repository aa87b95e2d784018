#!/usr/bin/env python
"""What each part of the paper's networks costs at full size: Figures 1b, A2 and A5, and the same of HunyuanVideo.

    pip install -e .
    python benchmarks/block_costs.py --output_dir outputs/block_costs
    python benchmarks/block_costs.py --measure_on cuda --dtype fp16 --output_dir outputs/block_costs_cuda

Parameters, multiplications and peak memory are counted on the meta device, for the clips that the paper measured at;
with `--measure_on`, time is measured as well, on random weights. Writes `table.md`, stage by stage, and for each
network a CSV of all its parts and a plot of each column.
"""

from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from vdmini_diffusers.analysis.cost_plots import cost_plots
from vdmini_diffusers.analysis.cost_table import CostTable, costed_parts, count_costs, decoder_parts, measure_times
from vdmini_diffusers.analysis.pictures import png
from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.evaluation.paper_components import (
    DTYPES,
    SIZES,
    TINY_SIZES,
    PipelineComponent,
    Place,
    pipeline_components,
)
from vdmini_diffusers.serialization.atomic import write_file


COMPONENTS = {
    "i2v": ("U-Net, one step", "VAE decoder"),
    "t2v": ("U-Net, one step",),
    "hunyuan": ("transformer, one step",),
}


@dataclass
class Arguments:
    output_dir: Path = field(default=Path("outputs/block_costs"), metadata={"help": "Where tables and plots go."})
    dtype: Literal["fp32", "bf16", "fp16"] | None = field(
        default=None, metadata={"help": "Precision; default: fp32 to measure time on a CPU, else fp16."}
    )
    measure_on: Literal["cuda", "cpu"] | None = field(
        default=None, metadata={"help": "Device on which time is measured."}
    )
    rounds: int = field(default=5, metadata={"help": "Timed runs, whose median counts."})
    tiny: bool = field(default=False, metadata={"help": "Tiny networks and clips, to try it."})

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"`--rounds` is 1 at least, not {self.rounds}.")
        self.dtype = self.dtype or ("fp32" if self.measure_on == "cpu" else "fp16")


def cost_of(component: PipelineComponent, clip: tuple[int, int, int], args: Arguments) -> CostTable:
    """What the network that was not pruned costs."""

    def opened(device: str) -> tuple[Any, Any, dict[str, Any], Any]:
        place = Place(device, DTYPES[str(args.dtype)], args.tiny)
        network = place.build(component.networks[0], component.without)
        inputs = component.inputs(place)
        counted = network.decoder if component.name == "VAE decoder" else network
        parts = decoder_parts(counted) if component.name == "VAE decoder" else costed_parts(counted)

        @torch.no_grad()
        def work() -> None:
            component.run(network, inputs)

        return counted, work, parts, inputs

    network, work, parts, inputs = opened("meta")
    tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    table = count_costs(network, work, parts, clip, tensors)
    if args.measure_on is None:
        return table
    network, work, parts, _ = opened(args.measure_on)
    return measure_times(table, network, work, parts, args.rounds)


def describe(network: str, table: CostTable) -> str:
    whole, size = table.whole, " x ".join(map(str, table.clip))
    took = f", {whole.milliseconds:.1f} ms on {table.device}" if whole.milliseconds is not None else ""
    return (
        f"{network}, {size}, {table.dtype}: {whole.num_parameters:,} parameters, {whole.num_macs / 1e12:.2f} T"
        f" multiplications, {whole.peak_bytes / 2**30:.2f} GiB of activations at the peak{took}."
    )


def shares(table: CostTable) -> list[dict[str, Any]]:
    """Stages, beside them the samplers of a U-Net, and what is left; or blocks, equal ones in one row."""
    kinds = {"stage", "rest"} if "stage" in table.kinds.values() else {"block", "rest"}
    if "D.0" in table.parts:  # of a decoder they are parts of the stages
        kinds.add("sampler")
    shown = [(name, cost) for name, cost in table.parts.items() if table.kinds.get(name, "rest") in kinds]
    rows = []
    for cost, group in groupby(shown, key=lambda part: replace(part[1], milliseconds=None)):
        names, costs = zip(*group, strict=True)
        row = {
            "part": names[0] if len(names) == 1 else f"each of {names[0]} to {names[-1].rpartition('.')[2]}",
            "parameters, M": f"{cost.num_parameters / 1e6:.2f}",
            "of all": f"{cost.num_parameters / table.whole.num_parameters:.1%}",
            "multiplications, G": f"{cost.num_macs / 1e9:,.1f}",
            "of all of them": f"{cost.num_macs / table.whole.num_macs:.1%}",
            "activations at the peak, MiB": f"{cost.peak_bytes / 2**20:,.0f}",
        }
        if times := [each.milliseconds for each in costs if each.milliseconds is not None]:
            row["ms"] = f"{median(times):.2f}"
        rows.append(row)
    return rows


def main(args: Arguments) -> None:
    if args.measure_on == "cuda" and not torch.cuda.is_available():
        raise ValueError("`--measure_on` is cpu where there is no CUDA device.")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    text = []
    for pipeline, names in COMPONENTS.items():
        size = (TINY_SIZES if args.tiny else SIZES)[pipeline]
        for component in pipeline_components(pipeline, size):
            if component.name not in names:
                continue
            table = cost_of(component, size, args)
            name = f"{pipeline}_{component.name.partition(',')[0].lower().replace(' ', '_').replace('-', '_')}"
            write_file(args.output_dir / f"{name}.csv", table.to_csv_string().encode())
            for column, plot in cost_plots(table).items():
                write_file(args.output_dir / f"{name}_{column}.png", png(plot))
            text.append(f"{describe(component.networks[0], table)}\n\n{markdown_table(shares(table))}\n")
    write_file(args.output_dir / "table.md", "\n".join(text).encode())
    print("\n".join(text))


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
