#!/usr/bin/env python
"""Latency of the paper's pipelines by component, the teacher's beside VDMini's: Tables A1, A3 and A5.

    python benchmarks/latency_tables.py --table A1 --device cuda --dtype bf16 --rounds 10 --pipeline
    python benchmarks/latency_tables.py --table A3 --device cuda --dtype fp16 --rounds 10 --compile
    python benchmarks/latency_tables.py --table A1 --num_frames 2 --height 256 --width 384 --optimize

Weights are random, and drawn on the device in the dtype. Teacher and student of a component are in memory together and
take turns, so that other load on the machine meets both. A time is the median of the rounds, which come after a
warm-up, a ratio the median of the rounds' ratios, and memory the peak beyond the weights: the allocator's on a GPU,
elsewhere that of the living tensors, in a round which is not timed. Multiply-accumulates are counted on the meta
device. U-Nets run one step without guidance; the sum is what a video takes, in 1 (A1) and in 4, 8 and 16 steps (A3).

`--output` keeps the rows as JSON after each component. Run again, what the file has is not measured again. The paper
does not say which size Table A5 was measured at, nor what part of a video its times are for.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessor, CLIPTokenizer

from vdmini_diffusers import VDMiniI2VPipeline, VDMiniT2VPipeline
from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.networks import build_i2v_scheduler
from vdmini_diffusers.demo.teachers import T2V_TEACHER
from vdmini_diffusers.evaluation.device_name import device_name
from vdmini_diffusers.evaluation.latency import optimized_copy, time_in_turns
from vdmini_diffusers.evaluation.live_bytes import LiveBytes
from vdmini_diffusers.evaluation.paper_components import (
    DTYPES,
    MULTIPLES,
    SIZES,
    TINY_SIZES,
    ClipSize,
    PipelineComponent,
    Place,
    pipeline_components,
)
from vdmini_diffusers.inference import compile_blocks
from vdmini_diffusers.pruning.cost import count_tmacs
from vdmini_diffusers.serialization.atomic import write_file
from vdmini_diffusers.t2v_turbo.convert import scheduler as t2v_scheduler


TABLES = {"A1": "i2v", "A3": "t2v", "A5": "hunyuan"}
STEPS = {"A1": (1,), "A3": (4, 8, 16), "A5": (1,)}
SUM = "sum"


@dataclass
class Arguments:
    table: Literal["A1", "A3", "A5"] = field(
        default="A1", metadata={"help": "A1: image to video. A3: text to video. A5: HunyuanVideo's transformer."}
    )
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    dtype: Literal["fp32", "bf16", "fp16"] = field(
        default="fp32", metadata={"help": "Precision of weights and inputs."}
    )
    rounds: int = field(
        default=3, metadata={"help": "Measured rounds. One that is not comes first; on cuda, or compiled, two."}
    )
    compile: bool = field(
        default=False, metadata={"help": "Measure what was pruned only, compiled and eager in the same rounds."}
    )
    optimize: bool = field(
        default=False, metadata={"help": "Measure the student after `optimize` as well, in the same rounds."}
    )
    pipeline: bool = field(default=False, metadata={"help": "Measure whole pipelines as well (A1, A3)."})
    num_frames: int | None = field(default=None, metadata={"help": "Frames in the clip; default: the paper's."})
    height: int | None = field(default=None, metadata={"help": "Pixels; default: the paper's."})
    width: int | None = field(default=None, metadata={"help": "Pixels; default: the paper's."})
    decode_chunk_size: int | None = field(default=None, metadata={"help": "Frames decoded at once; default: all."})
    tiny: bool = field(default=False, metadata={"help": "Tiny networks and a tiny clip, to try the script."})
    output: Path | None = field(default=None, metadata={"help": "JSON file that the rows are kept in."})

    def __post_init__(self):
        given = (self.num_frames, self.height, self.width)
        sizes = (TINY_SIZES if self.tiny else SIZES)[TABLES[self.table]]
        frames, height, width = (a if a is not None else b for a, b in zip(given, sizes, strict=True))
        chunk_size = frames if self.decode_chunk_size is None else self.decode_chunk_size
        multiple = MULTIPLES[TABLES[self.table]]
        if min(height, width) < multiple or height % multiple or width % multiple:
            raise ValueError(f"`--height` and `--width` must be multiples of {multiple}, not {height} and {width}.")
        if min(frames, self.rounds, chunk_size) < 1:
            raise ValueError("`--num_frames`, `--rounds` and `--decode_chunk_size` must be at least 1.")
        if self.optimize and self.compile:
            raise ValueError("`--optimize` is measured beside eager networks: leave `--compile` out.")
        self.num_frames, self.height, self.width, self.decode_chunk_size = frames, height, width, chunk_size


@dataclass(frozen=True)
class Timed:
    """`builders` make what the teacher and the student have, or share; `work` is timed; `paper`: ms on an A100."""

    name: str
    builders: tuple[Callable[[], Any], ...]
    work: Callable[[Any], object]
    count: Callable[[], list[float]] = list  # 10^12 multiply-accumulates of each
    paper: tuple[float, ...] = ()


def timed_component(component: PipelineComponent, place: Place) -> Timed:
    inputs, meta = component.inputs(place), Place("meta", place.dtype, place.tiny)

    def count() -> list[float]:
        counted = component.inputs(meta)
        networks = (meta.build(name, component.without) for name in component.networks)
        return [count_tmacs(partial(component.run, network, counted)) for network in networks]

    builders = tuple(partial(place.build, name, component.without) for name in component.networks)
    return Timed(component.name, builders, lambda network: component.run(network, inputs), count, component.paper)


def image_to_video_pipelines(args: Any, place: Place) -> Timed:
    def pipeline(unet: str, vae: str) -> VDMiniI2VPipeline:
        image_encoder, scheduler = place.build("CLIP ViT-H"), build_i2v_scheduler()
        pipe = VDMiniI2VPipeline(place.build(vae), image_encoder, place.build(unet), scheduler, CLIPImageProcessor())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sample(pipe: VDMiniI2VPipeline) -> None:
        image = Image.new("RGB", (args.width, args.height))
        size = {"height": args.height, "width": args.width, "num_frames": args.num_frames}
        pipe(image, **size, decode_chunk_size=args.decode_chunk_size, output_type="pt")

    names = ("SVD's U-Net", "SVD's VAE"), ("VDMini-I2V's U-Net", "VDMini-I2V's VAE")
    return Timed("pipeline", tuple(partial(pipeline, *each) for each in names), sample)


def text_to_video_pipelines(args: Any, place: Place) -> Timed:
    def pipeline(name: str) -> VDMiniT2VPipeline:
        unet, tokenizer = place.build(name), CLIPTokenizer.from_pretrained(T2V_TEACHER / "tokenizer")
        vae, text_encoder = place.build("Stable Diffusion's VAE"), place.build("VideoCrafter2's text encoder")
        scheduler: Any = t2v_scheduler(unet.config)
        pipe = VDMiniT2VPipeline(vae, text_encoder, tokenizer, unet, scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sample(pipe: VDMiniT2VPipeline) -> None:
        size = {"height": args.height, "width": args.width, "num_frames": args.num_frames}
        steps = {"num_inference_steps": max(STEPS["A3"])}
        pipe("a corgi", **size, **steps, decode_chunk_size=args.decode_chunk_size, output_type="pt")

    return Timed(
        "pipeline", tuple(partial(pipeline, name) for name in ("T2V-Turbo-v2's U-Net", "VDMini-T2V's U-Net")), sample
    )


PIPELINES = {"A1": image_to_video_pipelines, "A3": text_to_video_pipelines}


def all_timed(args: Arguments) -> list[Timed]:
    """The components, those that were pruned first, and whole pipelines if they are asked for."""
    place = Place(args.device, DTYPES[args.dtype], args.tiny)
    size = ClipSize(*(int(each or 0) for each in (args.num_frames, args.height, args.width)))
    components = pipeline_components(TABLES[args.table], size, args.decode_chunk_size)
    found = [timed_component(each, place) for each in sorted(components, key=lambda each: len(each.networks) == 1)]
    if args.pipeline and args.table in PIPELINES:
        found.append(PIPELINES[args.table](args, place))
    return found


def networks_of(made: Any) -> list[Any]:
    """The networks of a pipeline, or the network itself."""
    return [made] if isinstance(made, nn.Module) else [m for m in made.components.values() if isinstance(m, nn.Module)]


def pair(name: str, values: Sequence[float | None]) -> dict[str, float]:
    """The teacher's and the student's, which are one where they share the network; nothing where there is none."""
    ends = {f"teacher {name}": values[0], f"student {name}": values[-1]} if values else {}
    return {key: round(value, 3) for key, value in ends.items() if value is not None}


def measure(component: Timed, args: Arguments) -> list[dict[str, Any]]:
    """One row, or two with `--compile`, for eager and compiled."""
    made = [build() for build in component.builders]
    for each in made:
        if args.compile:
            compile_blocks(each)
    # Eager and compiled networks share their weights.
    stances = {"eager": "force_eager", "compiled": "default"} if args.compile else {"eager": "default"}

    def work(stance: str, each: Any) -> None:
        with torch.compiler.set_stance(stance):
            component.work(each)

    works: dict[str, Callable[[], object]] = {
        f"{mode} {i}": partial(work, stance, each) for mode, stance in stances.items() for i, each in enumerate(made)
    }
    if args.optimize:
        works["optimized"] = partial(component.work, optimized_copy(made[-1]))
    counters = {
        name: LiveBytes(p for each in made for n in networks_of(each) for p in n.parameters()) for name in works
    }
    for name in works if args.device == "cpu" and not args.compile else ():
        with counters[name]:
            works[name]()
    warm_ups = 2 if args.compile or args.device == "cuda" else 1
    timings = time_in_turns(works, args.device, args.rounds, warm_ups)
    for name, counter in counters.items():
        timings[name].peaks += [counter.peak / 2**20] if counter.peak else []
    sizes = [sum(p.numel() for network in networks_of(each) for p in network.parameters()) / 1e6 for each in made]
    macs = component.count()
    rows = []
    for mode in stances:
        teacher, student = timings[f"{mode} 0"], timings[f"{mode} {len(component.builders) - 1}"]
        row = {"component": component.name, "mode": mode, **pair("M parameters", sizes), **pair("TMACs", macs)}
        row |= {**pair("ms", [teacher.median, student.median]), "ratio": round(teacher.ratio(student), 3)}
        row |= pair("peak MiB", [teacher.peak, student.peak])
        if args.optimize:
            fast = timings["optimized"]
            row |= {"optimized ms": round(fast.median, 3), "optimized ratio": round(teacher.ratio(fast), 3)}
            row |= {"optimized peak MiB": round(fast.peak or 0, 3)}
        row |= pair("ms in the paper", component.paper)
        rows.append(row | {"rounds": args.rounds, "device": device_name(args.device)})
    return rows


def total(rows: list[dict[str, Any]], num_steps: int) -> dict[str, Any]:
    """The row of a video: the sum of the components' rows, whose U-Net runs several steps."""
    row: dict[str, Any] = {"component": f"{SUM}, {num_steps} step{'s' * (num_steps > 1)}", "mode": "eager"}
    for key in ("teacher ms", "student ms", "optimized ms", "teacher ms in the paper", "student ms in the paper"):
        if all(key in each for each in rows):
            row[key] = round(sum(each[key] * (num_steps if "step" in each["component"] else 1) for each in rows), 3)
    row["ratio"] = round(row["teacher ms"] / row["student ms"], 3)
    if "optimized ms" in row:
        row["optimized ratio"] = round(row["teacher ms"] / row["optimized ms"], 3)
    return row


def read_rows(output: Path | None) -> list[dict[str, Any]]:
    """The components' rows that an earlier run has kept."""
    rows = json.loads(output.read_text()) if output is not None and output.exists() else []
    return [row for row in rows if not row["component"].startswith(SUM)]


@torch.no_grad()
def main(args: Arguments) -> None:
    rows, works = read_rows(args.output), all_timed(args)
    in_sum = {work.name for work in works if work.paper}
    for work in works:
        known = work.name in {row["component"] for row in rows}
        only_compiled = args.compile and len(work.builders) == 1  # of what both pipelines share
        if known or only_compiled:
            continue
        rows += measure(work, args)
        print(json.dumps(rows[-1]), flush=True)
        if args.output is not None:
            write_file(args.output, json.dumps(rows, indent=2).encode())
    one_device = len({row["device"] for row in rows}) == 1  # where rows were kept, they may be another's
    if len(in_sum) > 1 and not args.compile and one_device:
        parts = [row for row in rows if row["component"] in in_sum]
        rows += [total(parts, num_steps) for num_steps in STEPS[args.table]]
        if args.output is not None:
            write_file(args.output, json.dumps(rows, indent=2).encode())
    clip = f"{args.num_frames} x {args.height} x {args.width} pixels, {args.dtype}"
    where = f"{device_name(args.device)}, torch {torch.__version__}"
    print(f"\n{markdown_table(rows)}\n\nTable {args.table}: {clip}, {where}")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
