"""Count what each part of a video diffusion model costs: the paper's Figures 1b, A2 and A5.

Parameters, multiplications and the peak memory of activations are counted at full size without weights, from the
configs of a pipeline alone; with `--measure_on` time is measured as well, on random weights:

    python conversion/measure_block_cost.py --pretrained_model_name_or_path vdmini_diffusers/demo/i2v_teacher \\
        --num_frames 16 --height 64 --width 64 --measure_on cpu --output_dir outputs/cost

`output_dir` then holds `cost.json`, `cost.csv` and a plot of each column.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLTemporalDecoder

from vdmini_diffusers.analysis.cost_plots import cost_plots
from vdmini_diffusers.analysis.cost_table import (
    CostTable,
    costed_parts,
    count_costs,
    decoder_parts,
    measure_times,
)
from vdmini_diffusers.analysis.pictures import png
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.evaluation.latency import build_network
from vdmini_diffusers.families import Family, find_family
from vdmini_diffusers.pruning.vae_folder import CLASSES
from vdmini_diffusers.serialization.atomic import write_file
from vdmini_diffusers.serialization.safetensors_reader import read_json


@dataclass
class CostArguments:
    pretrained_model_name_or_path: str = field(metadata={"help": "Folder of a pipeline; only configs are read."})
    output_dir: str = field(metadata={"help": "Folder of the results, which are replaced."})
    network: str | None = field(
        default=None, metadata={"help": "By default the denoiser; `vae` for the decoder, or `transformer_2`."}
    )
    num_frames: int | None = field(default=None, metadata={"help": "By default that of the paper's results."})
    height: int | None = field(default=None, metadata={"help": "In pixels. Likewise."})
    width: int | None = field(default=None, metadata={"help": "Likewise."})
    dtype: Literal["float32", "float16", "bfloat16"] | None = field(
        default=None,
        metadata={"help": "Weights' precision: by default float32 if time is measured on a CPU, else float16."},
    )
    measure_on: str | None = field(default=None, metadata={"help": "Device on which time is measured: cuda or cpu."})
    rounds: int = field(default=5, metadata={"help": "Timed runs, whose median counts."})

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"`--num_frames` is 1 at least, not {self.num_frames}.")
        for name in ("height", "width"):
            size = getattr(self, name)
            if size is not None and (size < 8 or size % 8):
                raise ValueError(f"`--{name}` is a multiple of 8, which VAEs reduce frames by, not {size}.")
        if self.rounds < 1:
            raise ValueError(f"`--rounds` is 1 at least, not {self.rounds}.")
        if self.measure_on not in (None, "cpu") and not torch.cuda.is_available():
            raise ValueError(f"`--measure_on` is cpu where there is no CUDA device, not {self.measure_on}.")


def main() -> None:
    (args,) = parse_arguments([CostArguments], __doc__)
    family = find_family(args.pretrained_model_name_or_path)
    clip = tuple(
        getattr(args, name) or value
        for name, value in zip(("num_frames", "height", "width"), family.evaluated_clip, strict=True)
    )
    dtype = getattr(torch, args.dtype or ("float32" if args.measure_on == "cpu" else "float16"))
    table = table_of(args, family, clip, "meta", dtype)
    if args.measure_on is not None:
        table = table_of(args, family, clip, args.measure_on, dtype, table)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "cost.json", table.to_json_string().encode())
    write_file(folder / "cost.csv", table.to_csv_string().encode())
    for column, plot in cost_plots(table).items():
        write_file(folder / f"cost_{column}.png", png(plot))
    print(
        f"{table.whole.num_parameters:,} parameters, {table.whole.num_macs / 1e9:,.2f} G multiply-accumulates,"
        f" {table.whole.peak_bytes / 2**20:,.1f} MiB of activations at the peak: {folder}/cost.csv"
    )


def table_of(
    args: CostArguments,
    family: Family,
    clip: tuple[int, ...],
    device: str,
    dtype: torch.dtype,
    counted: CostTable | None = None,
) -> CostTable:
    """Costs counted on `device`; with a table that was counted before, that with times instead."""
    name = args.network or family.denoiser
    network, make_inputs, call = open_network(args, family, name, clip, device, dtype)
    parts = costed_parts(network) if name in family.denoisers else decoder_parts(network)
    with torch.device(device):
        inputs = {key: v.to(dtype) if v.is_floating_point() else v for key, v in make_inputs().items()}

        def work() -> None:
            with torch.no_grad():
                call(**inputs)

        if counted is None:
            frames, height, width = clip
            return count_costs(network, work, parts, (frames, height, width), inputs.values())
        return measure_times(counted, network, work, parts, args.rounds)


def open_network(
    args: CostArguments, family: Family, name: str, clip: tuple[int, ...], device: str, dtype: torch.dtype
) -> tuple[Any, Callable[[], dict[str, torch.Tensor]], Callable[..., Any]]:
    """A network without weights or with random ones, what makes its inputs, and what is called with them."""
    config = read_json(Path(args.pretrained_model_name_or_path) / name / "config.json")
    frames, height, width = clip
    if name in family.denoisers:
        if family.example_inputs is None:
            raise ValueError(f"What the forward pass of {family.name} takes is not known here: costs are not counted.")
        classes = {cls.__name__: cls for cls in family.denoisers[name].teachers}
        network = build_network(lambda: classes[config["_class_name"]].from_config(config), device, dtype)
        example = family.example_inputs
        return network, lambda: example(network.config, frames, height, width), network
    cls = CLASSES.get(str(config.get("_class_name")))
    if cls is None:
        raise ValueError(
            f"`--network` {name} is no {' or '.join(CLASSES)}: costs are counted of denoisers and of these VAEs."
        )
    make: Any = cls.from_config
    vae = build_network(lambda: make(config), device, dtype)
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    size = (frames, vae.config.latent_channels, height // scale, width // scale)
    more = {"num_frames": frames} if issubclass(cls, AutoencoderKLTemporalDecoder) else {}
    return vae.decoder, lambda: {"z": torch.zeros(size)}, lambda z: vae.decode(z, **more)


if __name__ == "__main__":
    run(main)
