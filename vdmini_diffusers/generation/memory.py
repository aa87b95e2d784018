"""Which means of saving memory a clip needs: a table of them, tried in order against what is free."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch


SHARE = 0.95  # of the free memory that is used
GIB = 2**30
# What a process takes for the tensors that are counted, with workspaces of convolutions and fragments of memory: a
# multiple that grows with the clip, and bytes that do not. Measured on a CPU, in MiB counted and grown by, on the demo
# teacher and on a network of random weights four times as wide (`pytest tests/generation/test_memory.py -m slow -s`):
# denoising 13 to 33, 52 to 63, 118 to 155; 24 to 54, 95 to 173, 1.6 times in calls after the first; decoding 84 to
# 121, 338 to 334, 759 to 660; 227 to 345, 907 to 832; whole clips 138 above the count at most. Not measured on a GPU.
DENOISING, DECODING = 1.6, 1.1
OVERHEAD = 160 * 2**20


@dataclass(frozen=True)
class MemoryNeed:
    """What making a clip takes, in bytes.

    Args:
        weights: by component.
        denoiser, vae: names of these components.
        denoising: activations of one step of the denoiser.
        decoding_per_pixel: activations of the VAE's decoder for each pixel of each frame that it decodes at once.
        num_frames, height, width: of the clip.
        tile: pixels of all frames of a tile, or None for a VAE that has no tiles.
        chunks: whether the pipeline can decode some frames at a time.
        tiles_in_time: whether tiles are of some frames as well, so that a clip in tiles is not decoded in chunks.
    """

    weights: Mapping[str, int]
    denoiser: str
    denoising: int
    vae: str
    decoding_per_pixel: int
    num_frames: int
    height: int
    width: int
    tile: int | None = None
    chunks: bool = False
    tiles_in_time: bool = False


@dataclass(frozen=True)
class MemorySaving:
    """Args:
    offload: components are on the device only while they run.
    decode_chunk_size: frames that the VAE decodes at once; None for all.
    tiling: the VAE decodes tiles.
    """

    offload: bool = False
    decode_chunk_size: int | None = None
    tiling: bool = False

    def __str__(self) -> str:
        parts = ["model offload"] * self.offload
        parts += [f"decoding {self.decode_chunk_size} frames at once"] if self.decode_chunk_size else []
        return ", ".join([*parts, *(["VAE tiling"] * self.tiling)]) or "no memory needs to be saved"


# In this order the first that fits is taken: what changes no pixel first, and of that what costs least time; then
# fewer frames at once, which video decoders see less of, and tiles, whose seams are small and not nothing.
SAVINGS = (
    MemorySaving(),
    MemorySaving(decode_chunk_size=8),
    MemorySaving(offload=True),
    MemorySaving(offload=True, decode_chunk_size=8),
    MemorySaving(offload=True, decode_chunk_size=2),
    MemorySaving(tiling=True),
    MemorySaving(tiling=True, decode_chunk_size=2),
    MemorySaving(offload=True, tiling=True),
    MemorySaving(offload=True, tiling=True, decode_chunk_size=2),
)


def choose_saving(need: MemoryNeed, free: int, can_offload: bool) -> MemorySaving:
    """The first of `SAVINGS` that the pipeline has and with which the clip fits.

    Args:
        free: bytes that are free on the device.
        can_offload: whether the weights can be elsewhere than on the device.

    Raises:
        ValueError: if it fits with none of them.
    """
    possible = [
        saving
        for saving in SAVINGS
        if (can_offload or not saving.offload)
        and (need.chunks or saving.decode_chunk_size is None)
        and (need.tile is not None or not saving.tiling)
        and not (need.tiles_in_time and saving.tiling and saving.decode_chunk_size is not None)
    ]
    for saving in possible:
        if peak_bytes(need, saving) <= SHARE * free:
            return saving
    least = min(peak_bytes(need, saving) for saving in possible)
    raise ValueError(
        f"{need.num_frames} frames of {need.width} x {need.height} pixels need about {least / GIB:.1f} GiB, however"
        f" much is saved, and {SHARE * free / GIB:.1f} GiB can be used: make the clip smaller or shorter (--height,"
        " --width, --frames), or choose another --dtype or --device. The count is cautious: --memory overrides it."
    )


def peak_bytes(need: MemoryNeed, saving: MemorySaving) -> int:
    """The most bytes at once: while the denoiser runs, while the VAE does, or, with offloading, any other part."""
    frame = need.height * need.width
    frames = min(need.num_frames, saving.decode_chunk_size or need.num_frames)
    at_once = min(frames * frame, need.tile or 0) if saving.tiling else frames * frame
    video = 12 * need.num_frames * frame  # float32, of three colours
    decoding = need.decoding_per_pixel * at_once + video
    activations = {
        need.denoiser: round(DENOISING * need.denoising) + OVERHEAD,
        need.vae: round(DECODING * decoding) + OVERHEAD,
    }
    if not saving.offload:
        return sum(need.weights.values()) + max(activations.values())
    running = {**dict.fromkeys(need.weights, 0), **activations}
    return max(need.weights.get(name, 0) + running[name] for name in running)


def free_bytes(device: str) -> int:
    """Memory of a device that nobody uses."""
    kind = torch.device(device).type
    if kind == "cpu":
        return psutil.virtual_memory().available
    if kind == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    module: Any = torch.get_device_module(device)
    return module.mem_get_info(device)[0]


def save_memory(pipe: Any, saving: MemorySaving, device: str) -> dict[str, int]:
    """Move a pipeline to the device, or let it move its parts; the arguments of its calls that go with it."""
    if saving.tiling:
        pipe.vae.enable_tiling()
    if saving.offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    return {"decode_chunk_size": saving.decode_chunk_size} if saving.decode_chunk_size is not None else {}
