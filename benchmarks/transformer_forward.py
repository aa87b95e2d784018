#!/usr/bin/env python
"""Time of a forward pass of HunyuanVideo's transformer and of its student, at real width, with few of the blocks.

    python benchmarks/transformer_forward.py
    python benchmarks/transformer_forward.py --device cuda --num_frames 61 --height 480 --width 848

Teacher and student have the paper's proportion, 3 : 2. They are 3 dual-stream and 6 single-stream blocks, and 2 and 4
of them; all else is HunyuanVideo's: width 3072, 24 heads of 128, text of width 4096. Weights are random. The student's
are the teacher's own, so that both need the memory of the teacher. They take turns, so that other load on the machine
meets both. Beside the times stand the operations, counted on the meta device: their ratio is the speed-up on a machine
that takes time for nothing else.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers import HunyuanVideoTransformer3DModel

from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.evaluation.latency import build_network, time_in_turns
from vdmini_diffusers.families.hunyuan_video import HUNYUAN_VIDEO
from vdmini_diffusers.pruning import PLANS
from vdmini_diffusers.pruning.cost import forward_cost


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Arguments:
    num_layers: int = field(default=3, metadata={"help": "The teacher's dual-stream blocks (HunyuanVideo: 20)."})
    num_single_layers: int = field(default=6, metadata={"help": "Its single-stream blocks (HunyuanVideo: 40)."})
    num_frames: int = field(default=17, metadata={"help": "Frames of the clip."})
    height: int = field(default=128, metadata={"help": "Pixels, a multiple of 16."})
    width: int = field(default=192, metadata={"help": "Pixels, a multiple of 16."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    dtype: Literal["fp32", "bf16"] = field(default="bf16", metadata={"help": "Precision of weights and inputs."})
    rounds: int = field(default=9, metadata={"help": "Measured rounds, after one that is not."})


def transformer_on_meta(config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return HunyuanVideoTransformer3DModel.from_config(config).eval()


@torch.no_grad()
def main(args: Arguments) -> None:
    sizes = {"num_layers": args.num_layers, "num_single_layers": args.num_single_layers}
    config = {**transformer_on_meta(sizes).config, "_class_name": "HunyuanVideoTransformer3DModel"}
    plan = PLANS["middle"].for_teacher(config["_class_name"], config)
    student_config = plan.student_config(config)
    with torch.device("meta"):
        example = HUNYUAN_VIDEO.example_inputs(config, args.num_frames, args.height, args.width)
    costs = [forward_cost(transformer_on_meta(each), example)[""] for each in (config, student_config)]

    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    cls: Any = HunyuanVideoTransformer3DModel
    teacher = build_network(lambda: cls.from_config(config), device, dtype)
    student, weights = transformer_on_meta(student_config), teacher.state_dict()
    shared = {name: weights[key] for name, key in plan.weight_map(student.state_dict()).items()}
    student.load_state_dict(shared, assign=True)
    inputs = HUNYUAN_VIDEO.example_inputs(config, args.num_frames, args.height, args.width)
    for name, tensor in inputs.items():
        inputs[name] = tensor.to(device)
        if tensor.is_floating_point():
            inputs[name] = torch.randn_like(tensor, device=device, dtype=dtype)
    works = {"teacher": lambda: teacher(**inputs), "student": lambda: student(**inputs)}
    timings = time_in_turns(works, device, args.rounds, warm_ups=1)

    rows = []
    for (name, timing), cost, own in zip(timings.items(), costs, (config, student_config), strict=True):
        blocks = f"{own['num_layers']} + {own['num_single_layers']}"
        row = {"": name, "blocks": blocks, "parameters": f"{cost.num_parameters:,}"}
        rows.append(row | {"TFLOP": cost.num_flops / 1e12, "seconds, median": timing.median / 1000})
    print(markdown_table(rows))
    ratios = [a / b for a, b in zip(*(timing.milliseconds for timing in timings.values()), strict=True)]
    _, _, frames, height, width = example["hidden_states"].shape
    tokens = f"{frames * height * width // 4} tokens of video and 256 of text"
    print(
        f"\n{tokens}, {args.dtype}, {device.type}, {torch.get_num_threads()} threads"
        f"\nmeasured {timings['teacher'].ratio(timings['student']):.3f} times faster, median of {args.rounds} rounds"
        f" ({min(ratios):.3f} to {max(ratios):.3f}); counted {costs[0].num_flops / costs[1].num_flops:.3f} times fewer"
        " operations"
    )


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
