#!/usr/bin/env python
"""SVD's own VAE decoder against the compressed ones, side by side.

    python benchmarks/decode_vae.py
    python benchmarks/decode_vae.py --device cuda --compile --num_frames 14 --height 576 --width 1024 --rounds 10

Full width, random weights. The decoders take turns within each round, so that other load on the machine meets all of
them; a time is the least of its rounds. Memory is the allocator's peak on a GPU, elsewhere what the process grew by:
nothing in tiny clips, which fit where others were. Multiply-accumulates are counted on the meta device.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import nn

from vdmini_diffusers import VDMiniAutoencoderKLTemporalDecoder
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.evaluation.device_name import device_name
from vdmini_diffusers.evaluation.live_bytes import grown_by
from vdmini_diffusers.pruning.cost import count_tmacs


DTYPES = {"fp32": torch.float32, "channels_last": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SVD_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
Q2 = {"decoder_block_out_channels": (64, 96, 384, 512), "decoder_upsample_out_channels": (128, 160, 384)}
VAES: dict[str, Callable[[], Any]] = {
    "original": lambda: AutoencoderKLTemporalDecoder(**SVD_VAE),
    "P1": lambda: VDMiniAutoencoderKLTemporalDecoder(),
    "Q2": lambda: VDMiniAutoencoderKLTemporalDecoder(**Q2),
}


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

    def __post_init__(self):
        if self.height % 8 or self.width % 8:
            raise ValueError(f"`--height` and `--width` must be multiples of 8, not {self.height} and {self.width}.")
        if min(self.num_frames, self.rounds, *self.chunk_sizes) < 1:
            raise ValueError("`--num_frames`, `--rounds` and `--chunk_sizes` must be at least 1.")
        strangers = set(self.variants) - set(DTYPES)
        if strangers or not self.variants:
            raise ValueError(f"`--variants` may name {', '.join(DTYPES)}, not {', '.join(sorted(strangers))}.")


@torch.no_grad()
def measure(work: Callable[[], object], device: str) -> tuple[float, int]:
    """Seconds, and bytes at the peak beyond what there was before."""
    gc.collect()
    seconds = 0.0

    def timed() -> None:
        nonlocal seconds
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start

    if device != "cuda":
        grown = grown_by(timed)
        return seconds, grown
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    timed()
    return seconds, torch.cuda.max_memory_allocated() - before


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
    return count_tmacs(lambda: vae.decode(torch.empty(shape, device="meta"), num_frames=shape[0]))


def main(args: Arguments) -> None:
    shape = (args.num_frames, 4, args.height // 8, args.width // 8)
    macs = {name: tera_macs(make, shape) for name, make in VAES.items()}
    clip = f"{args.num_frames} x {args.height} x {args.width}"
    where = device_name(args.device)
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


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
