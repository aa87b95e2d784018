#!/usr/bin/env python
"""Channel pruning of SVD's U-Net at full size to the paper's number of parameters, on random weights.

    pip install -e '.[prune]'
    python benchmarks/svd_channels.py

Prints parameters, multiply-accumulates of 14 frames of 576 x 1024 pixels and their shares by resolution, of SVD's
U-Net, the paper's student and the pruned one. It holds 3 GB of weights in bfloat16, and takes minutes on one core.
Which channels of random weights go says nothing of trained ones; that the search meets the number does.
"""

import resource
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel

from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.models import VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.pruning.cost import forward_cost
from vdmini_diffusers.pruning.presets import VDMINI_UNET
from vdmini_diffusers.pruning.unet_channels import CRITERIA, count_parameters, layer_widths, prune_unet_channels


@dataclass
class Arguments:
    criterion: str = field(default="magnitude_l2", metadata={"help": "magnitude_l2 or depgraph_l2."})
    ranking: str = field(default="global", metadata={"help": "global or uniform."})


def costs(name: str, unet: Any) -> dict[str, Any]:
    """The parameters and products of a U-Net on the meta device, with the shares of its stages."""
    inputs = {
        "sample": torch.zeros(1, 14, 8, 72, 128, device="meta"),
        "timestep": torch.zeros(1, device="meta"),
        "encoder_hidden_states": torch.zeros(1, 1, 1024, device="meta"),
        "added_time_ids": torch.zeros(1, 3, device="meta"),
    }
    found = forward_cost(unet, inputs)
    levels = len(unet.down_blocks)
    shares = {
        f"share at 1/{8 * 2**level}": found[f"down_blocks.{level}"].num_flops
        + found[f"up_blocks.{levels - 1 - level}"].num_flops
        for level in range(levels)
    }
    row = {"U-Net": name, "parameters": count_parameters(unet), "TMACs": found[""].num_flops / 2e12}
    return row | {level: flops / found[""].num_flops for level, flops in shares.items()}


def main(args: Arguments) -> None:
    if args.criterion not in ("magnitude_l2", "depgraph_l2"):
        raise ValueError(f"`--criterion` is magnitude_l2 or depgraph_l2, which need no data, not {args.criterion!r}.")
    with torch.device("meta"):
        whole: Any = UNetSpatioTemporalConditionModel()
        torch.nn.Module.to(whole, "meta")  # mixing factors are made on the CPU
        config = {key: value for key, value in whole.config.items() if not key.startswith("_")}
        student: Any = VDMiniUNetSpatioTemporalConditionModel.from_config(VDMINI_UNET.student_config(config))
        torch.nn.Module.to(student, "meta")
    unet = whole_with_random_weights()
    target = count_parameters(student)
    start = time.perf_counter()
    prune_unet_channels(unet, target, CRITERIA[args.criterion]._replace(ranking=args.ranking))
    seconds = time.perf_counter() - start
    widths = layer_widths(whole, unet)
    with torch.device("meta"):
        fields = {"mid_block_type": "UNetMidBlockSpatioTemporal", "layer_widths": widths}
        narrow: Any = VDMiniUNetSpatioTemporalConditionModel.from_config({**config, **fields})
        torch.nn.Module.to(narrow, "meta")
    rows = [costs("SVD", whole), costs("VDMini", student), costs(f"{args.criterion}, {args.ranking}", narrow)]
    print(markdown_table(rows))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{rows[-1]['parameters']:,} parameters, {rows[-1]['parameters'] / target - 1:+.5%} of {target:,}; pruned in"
        f" {seconds:.0f} s, peak memory {peak:.1f} GiB, {torch.get_num_threads()} thread(s)"
    )


def whole_with_random_weights() -> UNetSpatioTemporalConditionModel:
    """SVD's U-Net in bfloat16, every tensor random."""
    with torch.device("meta"):
        unet: Any = UNetSpatioTemporalConditionModel()
    unet = torch.nn.Module.to(unet, torch.bfloat16).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 16
            parameter.normal_(0, fan_in**-0.5, generator=generator)
    return unet.eval()


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
