#!/usr/bin/env python
"""SVD's own VAE decoder against the compressed ones, side by side; or whole pipelines, component by component.

    python benchmarks/decode_vae.py
    python benchmarks/decode_vae.py --device cuda --compile --num_frames 14 --height 576 --width 1024 --rounds 10
    python benchmarks/decode_vae.py --end_to_end i2v --num_frames 2 --height 256 --width 384 --chunk_sizes 2
    python benchmarks/decode_vae.py --end_to_end t2v --num_frames 16 --height 320 --width 512 --variants fp32 bf16

Full width, random weights. The decoders take turns within each round, so that other load on the machine meets all of
them; a time is the least of its rounds. Memory is the allocator's peak on a GPU, elsewhere what the process grew by:
nothing in tiny clips, which fit where others were. Multiply-accumulates are counted on the meta device.

`--end_to_end i2v` has the components of Table A1, of the unpruned one-step pipeline (SF-V's) and of VDMini-I2V,
`--end_to_end t2v` those of Table A3, of T2V-Turbo-v2 and of VDMini-T2V. Both models of a component are in memory and
take turns. The U-Nets run one step without guidance; the sums are what a video takes, in 1 and 16 steps.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from vdmini_diffusers import (
    VDMiniAutoencoderKLTemporalDecoder,
    VDMiniUNet3DConditionModel,
    VDMiniUNetSpatioTemporalConditionModel,
)
from vdmini_diffusers.cli.script import parse_arguments, run


DTYPES = {"fp32": torch.float32, "channels_last": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SVD_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
SVD_UNET = {"num_attention_heads": (5, 10, 20, 20), "num_frames": 14, "sample_size": 96}
CLIP_H = CLIPVisionConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=16,
    patch_size=14,
    projection_dim=1024,
)
Q2 = {"decoder_block_out_channels": (64, 96, 384, 512), "decoder_upsample_out_channels": (128, 160, 384)}
VAES: dict[str, Callable[[], Any]] = {
    "original": lambda: AutoencoderKLTemporalDecoder(**SVD_VAE),
    "P1": lambda: VDMiniAutoencoderKLTemporalDecoder(),
    "Q2": lambda: VDMiniAutoencoderKLTemporalDecoder(**Q2),
}
T2V_TURBO_UNET = {
    "down_block_types": ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
    "up_block_types": ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "mid_block_type": "UNetMidBlock3DCrossAttn",
}
OPENCLIP_H = CLIPTextConfig(  # the layers that VideoCrafter2 runs
    vocab_size=49408, hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16
)
SD_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
# Tables A1 and A3: milliseconds on an A100 of the original and of VDMini. Table A3's U-Nets run 16 steps.
PAPER = {
    "i2v": {
        "image encoder": (35, 35),
        "VAE encoder": (75, 75),
        "U-Net, one step": (512, 345),
        "VAE decoder": (2832, 840.5),
    },
    "t2v": {
        "text encoder": (13.57, 13.57),
        "U-Net, one step": (2554.05 / 16, 1662.26 / 16),
        "VAE decoder": (367.66, 367.66),
    },
}
STEPS = {"i2v": 1, "t2v": 16}


@dataclass
class Arguments:
    num_frames: int = field(default=4, metadata={"help": "Frames in the clip."})
    height: int = field(default=288, metadata={"help": "Pixels."})
    width: int = field(default=512, metadata={"help": "Pixels."})
    chunk_sizes: list[int] = field(default_factory=lambda: [4], metadata={"help": "Frames that are decoded at once."})
    variants: list[str] = field(
        default_factory=lambda: ["fp32", "channels_last", "bf16"], metadata={"help": f"Of {', '.join(DTYPES)}."}
    )
    rounds: int = field(default=1, metadata={"help": "In each of which all decoders have their turn."})
    device: str = field(
        default="cpu", metadata={"help": "cpu or cuda; on cuda a round that is not measured comes first."}
    )
    compile: bool = field(default=False, metadata={"help": "Compiled decoders beside the eager ones."})
    end_to_end: Literal["i2v", "t2v"] | None = field(
        default=None, metadata={"help": "Table A1's (i2v) or A3's (t2v) components, in each variant."}
    )

    def __post_init__(self):
        multiple = 64 if self.end_to_end else 8  # of the U-Net, which halves latents three times, and of the VAE
        if self.height % multiple or self.width % multiple:
            raise ValueError(
                f"`--height` and `--width` must be multiples of {multiple}, not {self.height} and {self.width}."
            )
        if min(self.num_frames, self.rounds, *self.chunk_sizes) < 1:
            raise ValueError("`--num_frames`, `--rounds` and `--chunk_sizes` must be at least 1.")
        strangers = set(self.variants) - set(DTYPES)
        if strangers or not self.variants:
            raise ValueError(f"`--variants` may name {', '.join(DTYPES)}, not {', '.join(sorted(strangers))}.")


def resident(name: str) -> int:
    """`VmRSS` or `VmHWM`, of Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@torch.no_grad()
def measure(work: Callable[[], object], device: str) -> tuple[float, int]:
    """Seconds, and bytes at the peak beyond what there was before."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, (torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")) - before


def placed(model: nn.Module, variant: str, device: str) -> nn.Module:
    model = nn.Module.to(model, device, DTYPES[variant]).eval()  # diffusers' own warns of every conversion
    if variant == "channels_last":
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return model


def inputs(shape: tuple[int, ...], variant: str, device: str) -> torch.Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, DTYPES[variant])
    return drawn.to(memory_format=torch.channels_last) if variant == "channels_last" and drawn.ndim == 4 else drawn


def decode(vae: Any, latents: torch.Tensor, chunk_size: int) -> None:
    for chunk in latents.split(chunk_size):
        vae.decode(chunk, num_frames=len(chunk))


def num_values(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def tera_macs(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> float:
    with torch.device("meta"):
        vae: Any = make()
    vae.to("meta")  # diffusers makes the mixing factors on the CPU, whatever the device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.decode(torch.empty(shape, device="meta"), num_frames=shape[0])
    return counter.get_total_flops() / 2e12


def decoders(args: Arguments) -> None:
    shape = (args.num_frames, 4, args.height // 8, args.width // 8)
    macs = {name: tera_macs(make, shape) for name, make in VAES.items()}
    clip = f"{args.num_frames} x {args.height} x {args.width}"
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{clip} pixels, {where}, torch {torch.__version__}, best of {args.rounds}\n")
    print("| decoder | variant | chunk | parameters | TMACs | fewer | seconds | faster | peak MiB |")
    print("| --- " * 9 + "|")
    for variant in args.variants:
        vaes: dict[str, Any] = {name: placed(make(), variant, args.device) for name, make in VAES.items()}
        for vae in vaes.values():
            del vae.encoder
        latents = inputs(shape, variant, args.device)
        for compiled in (False, True)[: 1 + args.compile]:
            for vae in vaes.values():
                if compiled:
                    vae.decoder.compile()
            for chunk_size in args.chunk_sizes:
                found: dict[str, list[tuple[float, int]]] = {name: [] for name in vaes}
                for round_ in range(-(args.device == "cuda" or compiled), args.rounds):
                    for name, vae in vaes.items():
                        result = measure(partial(decode, vae, latents, chunk_size), args.device)
                        if round_ >= 0:
                            found[name].append(result)
                base = min(found["original"])[0]
                for name, results in found.items():
                    seconds = min(results)[0]
                    print(
                        f"| {name} | {variant}{', compiled' * compiled} | {chunk_size} |"
                        f" {num_values(vaes[name].decoder):,} | {macs[name]:.3f} | {macs['original'] / macs[name]:.2f}"
                        f" | {seconds:.3f} | {base / seconds:.2f} | {max(peak for _, peak in results) / 2**20:.0f} |",
                        flush=True,
                    )


def without_encoder(vae: Any) -> nn.Module:
    del vae.encoder
    return vae


def components(
    args: Arguments, variant: str, device: str
) -> dict[str, tuple[list[Callable[[], nn.Module]], Callable[[Any], object]]]:
    """For each name, the makers of the two pipelines' models (one, if they share it), and what such a model does."""
    frames, height, width = args.num_frames, args.height // 8, args.width // 8
    latents = inputs((frames, 4, height, width), variant, device)
    if args.end_to_end == "t2v":
        noisy = inputs((1, 4, frames, height, width), variant, device)
        text, guidance = inputs((1, 77, 1024), variant, device), inputs((1, 256), variant, device)
        conditions = {"timestep_cond": guidance, "motion_cond": guidance, "fps": 8}
        tokens = torch.zeros(1, 77, dtype=torch.long, device=device)
        return {
            "text encoder": ([lambda: CLIPTextModel(OPENCLIP_H)], lambda model: model(tokens)),
            "U-Net, one step": (
                [lambda: VDMiniUNet3DConditionModel(**T2V_TURBO_UNET), VDMiniUNet3DConditionModel],
                lambda model: model(noisy, 999, text, **conditions),
            ),
            "VAE decoder": (
                [lambda: without_encoder(AutoencoderKL(**SD_VAE))],
                lambda model: [model.decode(chunk) for chunk in latents.split(args.chunk_sizes[0])],
            ),
        }
    image = inputs((1, 3, args.height, args.width), variant, device)
    pixels = inputs((1, 3, 224, 224), variant, device)
    noisy = inputs((1, frames, 8, height, width), variant, device)
    embeds, ids = inputs((1, 1, 1024), variant, device), inputs((1, 3), variant, device)
    return {
        "image encoder": ([lambda: CLIPVisionModelWithProjection(CLIP_H)], lambda model: model(pixels)),
        "VAE encoder": ([lambda: VAES["original"]().encoder], lambda model: model(image)),
        "U-Net, one step": (
            [lambda: UNetSpatioTemporalConditionModel(**SVD_UNET), VDMiniUNetSpatioTemporalConditionModel],
            lambda model: model(noisy, 1.6378, embeds, added_time_ids=ids),
        ),
        "VAE decoder": (
            [lambda: without_encoder(VAES["original"]()), lambda: without_encoder(VAES["P1"]())],
            lambda model: decode(model, latents, args.chunk_sizes[0]),
        ),
    }


def tera_macs_of(make: Callable[[], nn.Module], work: Callable[[Any], object]) -> float:
    """Counts the work on meta inputs. It would miss the CPU's fused attention; it counts that of the meta device."""
    with torch.device("meta"):
        model = make().to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work(model)
    return counter.get_total_flops() / 2e12


def end_to_end(args: Arguments, kind: Literal["i2v", "t2v"], variant: str) -> None:
    print(f"\n{args.num_frames} x {args.height} x {args.width} pixels, {variant}, best of {args.rounds}\n")
    print(
        "| component | M parameters | VDMini | TMACs | VDMini | fewer | seconds | VDMini | faster |"
        " paper, A100, ms | VDMini | faster |"
    )
    print("| --- " * 12 + "|")
    counted = components(args, variant, "meta")
    sums, paper_sums = [0.0, 0.0], [0.0, 0.0]
    for name, (makers, work) in components(args, variant, args.device).items():
        models = [placed(make(), variant, args.device) for make in makers]
        times: list[list[float]] = [[] for _ in models]
        for round_ in range(-(args.device == "cuda" or args.compile), args.rounds):
            for i, found in enumerate(times):
                if args.compile and round_ < 0:
                    getattr(models[i], "decoder", models[i]).compile()
                seconds = measure(partial(work, models[i]), args.device)[0]
                if round_ >= 0:
                    found.append(seconds)
        sizes = [num_values(model) / 1e6 for model in models]
        macs = [tera_macs_of(make, counted[name][1]) for make in makers]
        (old, new), paper = (min(times[0]), min(times[-1])), PAPER[kind][name]
        steps = STEPS[kind] if name.startswith("U-Net") else 1
        sums = [sums[0] + steps * old, sums[1] + steps * new]
        paper_sums = [total + steps * value for total, value in zip(paper_sums, paper, strict=True)]
        print(
            f"| {name} | {sizes[0]:.2f} | {sizes[-1]:.2f} | {macs[0]:.3f} | {macs[-1]:.3f} | {macs[0] / macs[-1]:.2f}"
            f" | {old:.3f} | {new:.3f} | {old / new:.2f}"
            f" | {paper[0]:.1f} | {paper[1]:.1f} | {paper[0] / paper[1]:.2f} |",
            flush=True,
        )
        del models
    print(
        f"| sum, {STEPS[kind]} steps | | | | | | {sums[0]:.3f} | {sums[1]:.3f} | {sums[0] / sums[1]:.2f}"
        f" | {paper_sums[0]:.1f} | {paper_sums[1]:.1f} | {paper_sums[0] / paper_sums[1]:.2f} |"
    )


def main(args: Arguments) -> None:
    if args.end_to_end is None:
        decoders(args)
        return
    for variant in args.variants:
        end_to_end(args, args.end_to_end, variant)


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
