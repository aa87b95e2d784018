#!/usr/bin/env python
"""Latency of the paper's pipelines by component, the teacher's beside VDMini's: Tables A1, A3 and A5.

    python benchmarks/latency_tables.py --table A1 --device cuda --dtype bf16 --rounds 10 --pipeline
    python benchmarks/latency_tables.py --table A3 --device cuda --dtype fp16 --rounds 10 --compile
    python benchmarks/latency_tables.py --table A1 --num_frames 2 --height 256 --width 384 --optimize

Weights are random, and drawn on the device in the dtype. Teacher and student of a component are in memory together and
take turns, so that other load on the machine meets both. A time is the median of the rounds, a ratio the median of the
rounds' ratios, and memory the peak beyond the weights: the allocator's on a GPU, elsewhere that of the living tensors,
in a round which is not timed. Multiply-accumulates are counted on the meta device. U-Nets run one step without
guidance; the sum is what a video takes, in 1 (A1) and 16 steps (A3).

`--output` keeps the rows as JSON after each component. Run again, what the file has is not measured again. The paper
does not say which size Table A5 was measured at, nor what part of a video its times are for.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
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
from vdmini_diffusers.evaluation.latency import build_network, count_tmacs, time_in_turns
from vdmini_diffusers.evaluation.live_bytes import LiveBytes
from vdmini_diffusers.inference import compile_blocks, optimize, restore
from vdmini_diffusers.serialization.atomic import write_file
from vdmini_diffusers.t2v_turbo.convert import scheduler as t2v_scheduler


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZES = {"A1": (14, 576, 1024), "A3": (16, 320, 512), "A5": (93, 480, 848)}  # frames, height and width in pixels
TINY_SIZES = {"A1": (2, 64, 64), "A3": (2, 64, 64), "A5": (5, 64, 64)}
STEPS = {"A1": 1, "A3": 16, "A5": 1}
SUM = "sum"
NETWORKS = json.loads(Path(__file__).with_name("latency_networks.json").read_text())


@dataclass
class Arguments:
    table: Literal["A1", "A3", "A5"] = field(
        default="A1", metadata={"help": "A1: image to video. A3: text to video. A5: HunyuanVideo's transformer."}
    )
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    dtype: Literal["fp32", "bf16", "fp16"] = field(
        default="fp32", metadata={"help": "Precision of weights and inputs."}
    )
    rounds: int = field(default=1, metadata={"help": "Measured rounds; on cuda two that are not come first."})
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
        sizes = (TINY_SIZES if self.tiny else SIZES)[self.table]
        frames, height, width = (a if a is not None else b for a, b in zip(given, sizes, strict=True))
        chunk_size = frames if self.decode_chunk_size is None else self.decode_chunk_size
        multiple = 16 if self.table == "A5" else 64  # the VAE's 8, times what the denoiser reduces latents by
        if min(height, width) < multiple or height % multiple or width % multiple:
            raise ValueError(f"`--height` and `--width` must be multiples of {multiple}, not {height} and {width}.")
        if min(frames, self.rounds, chunk_size) < 1:
            raise ValueError("`--num_frames`, `--rounds` and `--decode_chunk_size` must be at least 1.")
        if self.optimize and self.compile:
            raise ValueError("`--optimize` is measured beside eager networks: leave `--compile` out.")
        self.num_frames, self.height, self.width, self.decode_chunk_size = frames, height, width, chunk_size


@dataclass(frozen=True)
class Component:
    """`builders` make what the teacher and the student have, or share; `work` is timed; `paper`: ms on an A100."""

    name: str
    builders: tuple[Callable[[], Any], ...]
    work: Callable[[Any], object]
    paper: tuple[float, ...] = ()


class Place:
    """A device, and the dtype and size that networks have there."""

    def __init__(self, args: Arguments, device: str):
        self.tiny, self.device, self.dtype = args.tiny, device, DTYPES[args.dtype]

    def make(self, name: str, without: str | None = None) -> nn.Module:
        """A network of latency_networks.json, without one of its parts."""
        network = NETWORKS[name]
        library, class_name = network["class"]
        cls, config = getattr(import_module(library), class_name), network["config"]
        if self.tiny:
            config = config | network["tiny"]
        config_class = getattr(cls, "config_class", None)  # of transformers
        model = cls(config_class(**config)) if config_class else cls(**config)
        if without is not None:
            delattr(model, without)
        return model

    def build(self, name: str, without: str | None = None) -> Any:
        return build_network(partial(self.make, name, without), self.device, self.dtype)

    def builder(self, name: str, without: str | None = None) -> Callable[[], Any]:
        return partial(self.build, name, without)

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)


def image_to_video(args: Any, place: Place) -> list[Component]:
    frames, height, width, chunk_size = args.num_frames, args.height, args.width, args.decode_chunk_size
    embedding = 16 if args.tiny else 1024
    noisy, latents = place.draw(1, frames, 8, height // 8, width // 8), place.draw(frames, 4, height // 8, width // 8)
    embeds, ids, picture = place.draw(1, 1, embedding), place.draw(1, 3), place.draw(1, 3, height, width)
    pixels = place.draw(1, 3, 224, 224)

    def pipeline(unet: str, vae: str) -> VDMiniI2VPipeline:
        image_encoder, scheduler = place.build("CLIP ViT-H"), build_i2v_scheduler()
        pipe = VDMiniI2VPipeline(place.build(vae), image_encoder, place.build(unet), scheduler, CLIPImageProcessor())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sample(pipe: VDMiniI2VPipeline) -> None:
        image, size = Image.new("RGB", (width, height)), {"height": height, "width": width, "num_frames": frames}
        pipe(image, **size, decode_chunk_size=chunk_size, output_type="pt")

    teacher, student = ("SVD's U-Net", "SVD's VAE"), ("VDMini-I2V's U-Net", "VDMini-I2V's VAE")
    return [
        Component(
            "U-Net, one step",
            (place.builder(teacher[0]), place.builder(student[0])),
            lambda unet: unet(noisy, 1.6378, embeds, added_time_ids=ids),
            (512, 345),
        ),
        Component(
            "VAE decoder",
            (place.builder(teacher[1], "encoder"), place.builder(student[1], "encoder")),
            lambda vae: [vae.decode(chunk, num_frames=len(chunk)) for chunk in latents.split(chunk_size)],
            (2832, 840.5),
        ),
        Component("image encoder", (place.builder("CLIP ViT-H"),), lambda encoder: encoder(pixels), (35, 35)),
        Component("VAE encoder", (place.builder(teacher[1], "decoder"),), lambda vae: vae.encode(picture), (75, 75)),
        Component("pipeline", (partial(pipeline, *teacher), partial(pipeline, *student)), sample),
    ]


def text_to_video(args: Any, place: Place) -> list[Component]:
    frames, height, width, chunk_size = args.num_frames, args.height, args.width, args.decode_chunk_size
    noisy, latents = place.draw(1, 4, frames, height // 8, width // 8), place.draw(frames, 4, height // 8, width // 8)
    text = place.draw(1, 77, 16 if args.tiny else 1024)
    tokens = torch.zeros(1, 77, dtype=torch.long, device=place.device)
    conditions = {"timestep_cond": place.draw(1, 256), "motion_cond": place.draw(1, 256), "fps": 8}

    def pipeline(name: str) -> VDMiniT2VPipeline:
        unet, tokenizer = place.build(name), CLIPTokenizer.from_pretrained(T2V_TEACHER / "tokenizer")
        vae, text_encoder = place.build("Stable Diffusion's VAE"), place.build("VideoCrafter2's text encoder")
        scheduler: Any = t2v_scheduler(unet.config)
        pipe = VDMiniT2VPipeline(vae, text_encoder, tokenizer, unet, scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sample(pipe: VDMiniT2VPipeline) -> None:
        size = {"height": height, "width": width, "num_frames": frames, "num_inference_steps": STEPS["A3"]}
        pipe("a corgi", **size, decode_chunk_size=chunk_size, output_type="pt")

    unets = "T2V-Turbo-v2's U-Net", "VDMini-T2V's U-Net"
    return [
        Component(
            "U-Net, one step",
            (place.builder(unets[0]), place.builder(unets[1])),
            lambda unet: unet(noisy, 999, text, **conditions),
            (2554.05 / 16, 1662.26 / 16),
        ),
        Component(
            "VAE decoder",
            (place.builder("Stable Diffusion's VAE", "encoder"),),
            lambda vae: [vae.decode(chunk) for chunk in latents.split(chunk_size)],
            (367.66, 367.66),
        ),
        Component(
            "text encoder",
            (place.builder("VideoCrafter2's text encoder"),),
            lambda encoder: encoder(tokens),
            (13.57, 13.57),
        ),
        Component("pipeline", (partial(pipeline, unets[0]), partial(pipeline, unets[1])), sample),
    ]


def hunyuan_video(args: Any, place: Place) -> list[Component]:
    latents = place.draw(1, 16, (args.num_frames - 1) // 4 + 1, args.height // 8, args.width // 8)
    text_embedding, pooled_embedding = (16, 16) if args.tiny else (4096, 768)
    given = {
        "timestep": torch.full((1,), 999, device=place.device),
        "encoder_hidden_states": place.draw(1, 256, text_embedding),
        "encoder_attention_mask": torch.ones(1, 256, dtype=torch.long, device=place.device),
        "pooled_projections": place.draw(1, pooled_embedding),
        "guidance": torch.full((1,), 6000.0, device=place.device, dtype=place.dtype),
    }
    builders = place.builder("HunyuanVideo"), place.builder("VDMini-T2V-HY")
    return [Component("transformer, one step", builders, lambda model: model(latents, **given), (366.11, 292.89))]


TABLES = {"A1": image_to_video, "A3": text_to_video, "A5": hunyuan_video}


def networks_of(made: Any) -> list[Any]:
    """The networks of a pipeline, or the network itself."""
    return [made] if isinstance(made, nn.Module) else [m for m in made.components.values() if isinstance(m, nn.Module)]


def name_of(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def pair(name: str, values: Sequence[float | None]) -> dict[str, float]:
    """The teacher's and the student's, which are one where they share the network; nothing where there is none."""
    ends = {f"teacher {name}": values[0], f"student {name}": values[-1]} if values else {}
    return {key: round(value, 3) for key, value in ends.items() if value is not None}


def measure(component: Component, counted: Component, args: Arguments) -> list[dict[str, Any]]:
    """Time a component: one row, or two with `--compile`, for eager and compiled. `counted` is its like on "meta"."""
    made = [build() for build in component.builders]
    for each in made:
        if args.compile:
            compile_blocks(each)
    # Eager and compiled networks share their weights.
    stances = {"eager": "force_eager", "compiled": "default"} if args.compile else {"eager": "default"}

    def work(stance: str, each: Any) -> None:
        with torch.compiler.set_stance(stance):
            component.work(each)

    def optimized_work() -> None:
        for network in networks_of(made[-1]):
            optimize(network)
        component.work(made[-1])
        for network in networks_of(made[-1]):
            restore(network)

    works: dict[str, Callable[[], object]] = {
        f"{mode} {i}": partial(work, stance, each) for mode, stance in stances.items() for i, each in enumerate(made)
    }
    if args.optimize:
        works["optimized"] = optimized_work
    counters = {
        name: LiveBytes(p for each in made for n in networks_of(each) for p in n.parameters()) for name in works
    }
    for name in works if args.device == "cpu" and not args.compile else ():
        with counters[name]:
            works[name]()
    timings = time_in_turns(works, args.device, args.rounds, warm_ups=2 * (args.compile or args.device == "cuda"))
    for name, counter in counters.items():
        timings[name].peaks += [counter.peak / 2**20] if counter.peak else []
    sizes = [sum(p.numel() for network in networks_of(each) for p in network.parameters()) / 1e6 for each in made]
    is_network = isinstance(made[0], nn.Module)
    macs = [count_tmacs(partial(counted.work, build())) for build in counted.builders] if is_network else []
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
        rows.append(row | pair("ms in the paper", component.paper) | {"device": name_of(args.device)})
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
    rows = read_rows(args.output)
    components, counted = (TABLES[args.table](args, Place(args, device)) for device in (args.device, "meta"))
    in_sum = {component.name for component in components if component.paper}
    for component, on_meta in zip(components, counted, strict=True):
        known = component.name in {row["component"] for row in rows}
        only_compiled = args.compile and len(component.builders) == 1  # of what both pipelines share
        if known or only_compiled or (component.name not in in_sum and not args.pipeline):
            continue
        rows += measure(component, on_meta, args)
        print(json.dumps(rows[-1]), flush=True)
        if args.output is not None:
            write_file(args.output, json.dumps(rows, indent=2).encode())
    one_device = len({row["device"] for row in rows}) == 1  # where rows were kept, they may be another's
    if len(in_sum) > 1 and not args.compile and one_device:
        rows.append(total([row for row in rows if row["component"] in in_sum], STEPS[args.table]))
        if args.output is not None:
            write_file(args.output, json.dumps(rows, indent=2).encode())
    clip = f"{args.num_frames} x {args.height} x {args.width} pixels, {args.dtype}"
    print(f"\n{markdown_table(rows)}\n\nTable {args.table}: {clip}, {name_of(args.device)}, torch {torch.__version__}")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
