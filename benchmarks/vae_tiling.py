#!/usr/bin/env python
"""What tiles change in a decoded clip: its difference to the whole, and the seams, as a table and a picture.

    python benchmarks/vae_tiling.py

The demo teacher's VAE decodes a camera movement over photographs, larger than its training clips; whole, and in
tiles whose norms go by

- each tile's own statistics, as tiling does elsewhere;
- those of the small version of the clip, as `VDMiniAutoencoderKLTemporalDecoder.tiled_decode` does;
- the averages over disjoint tiles, which costs a second decoding;
- those of the whole clip, which nobody has who needs tiles: what is left is the tiles' shortened sight.

Seams: how far overlapping tiles are apart where they blend, root mean square. All figures are in grey levels of 255.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor

from vdmini_diffusers import VDMiniAutoencoderKLTemporalDecoder
from vdmini_diffusers.cli.plots import import_figure
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.scenes import load_photo
from vdmini_diffusers.demo.teachers import I2V_TEACHER
from vdmini_diffusers.models.autoencoder_kl_vdmini import Span, tile_spans


@dataclass
class Arguments:
    photos: list[str] = field(
        default_factory=lambda: ["coffee", "flower.jpg", "astronaut"], metadata={"help": "Names."}
    )
    num_frames: int = field(default=8, metadata={"help": "Frames in a clip."})
    height: int = field(default=128, metadata={"help": "Pixels."})
    width: int = field(default=192, metadata={"help": "Pixels."})
    tile: int = field(default=80, metadata={"help": "Pixels, in height and width."})
    stride: int = field(default=56, metadata={"help": "Pixels."})
    tile_frames: int = field(default=8, metadata={"help": "Frames of a tile."})
    stride_frames: int = field(default=8, metadata={"help": "Frames."})
    output: Path = field(default=Path("outputs/vae_tiling.png"), metadata={"help": "The picture."})


def camera_movement(name: str, args: Arguments) -> Tensor:
    """`(num_frames, 3, height, width)` in `[-1, 1]`."""
    photo = load_photo(name)
    frames = []
    for index in range(args.num_frames):
        corner = 10 + 4 * index, 10 + 2 * index
        box = (*corner, corner[0] + 3 * args.width // 2, corner[1] + 3 * args.height // 2)
        pixels = torch.frombuffer(
            bytearray(photo.resize((args.width, args.height), box=box).tobytes()), dtype=torch.uint8
        )
        frames.append(pixels.view(args.height, args.width, 3).permute(2, 0, 1) / 127.5 - 1)
    return torch.stack(frames)


def start(vae: VDMiniAutoencoderKLTemporalDecoder, latents: Tensor) -> None:
    for norm in vae._norms:
        norm.start_clip(len(latents), latents.device)


def by_disjoint_tiles(vae: VDMiniAutoencoderKLTemporalDecoder, latents: Tensor, *spans: list[Span]) -> None:
    start(vae, latents)
    disjoint = []
    for size, tiles in zip((len(latents), *latents.shape[2:]), spans, strict=True):
        disjoint.append(tile_spans(size, tiles[0].latents.stop, tiles[0].latents.stop))
    for frames, rows, columns in product(*disjoint):
        vae._decode_part(latents[frames.latents, :, rows.latents, columns.latents], frames, measuring=True)


def by_the_whole(vae: VDMiniAutoencoderKLTemporalDecoder, latents: Tensor, *spans: list[Span]) -> None:
    start(vae, latents)
    vae._decode_part(latents, tile_spans(len(latents), len(latents), 1)[0], measuring=True)


class Blend:
    """The weighted sum of tiles, and how far they are apart where more than one has weight."""

    def __init__(self, like: Tensor):
        self.total, self.squares, self.most = (torch.zeros_like(like) for _ in range(3))

    def add(self, tile: Tensor, frames: Span, rows: Span, columns: Span) -> None:
        weights = frames.weights[:, None, None, None] * rows.weights[:, None] * columns.weights
        place = frames.pixels, slice(None), rows.pixels, columns.pixels
        self.total[place] += weights * tile
        self.squares[place] += weights * tile**2
        self.most[place] = torch.maximum(self.most[place], weights.expand_as(tile))

    def seams(self) -> float:
        apart = (self.squares - self.total**2).clamp(min=0)[self.most < 0.999]
        return apart.mean().sqrt().item() if len(apart) else 0.0


def decode_tiles(
    vae: VDMiniAutoencoderKLTemporalDecoder, latents: Tensor, whole: Tensor, measure: Callable | None
) -> Blend:
    blend = Blend(whole)
    spans = vae._spans(len(latents), *latents.shape[2:])
    if measure is not None:
        measure(vae, latents, *spans)
    for frames, rows, columns in product(*spans):
        part = latents[frames.latents, :, rows.latents, columns.latents]
        tile = vae._decode_part(part, frames) if measure is not None else vae.decode(part, len(part)).sample
        blend.add(tile, frames, rows, columns)
    for norm in vae._norms:
        norm.frames = None
    return blend


WAYS: dict[str, Callable | None] = {
    "each tile's own": None,
    "of the small clip": VDMiniAutoencoderKLTemporalDecoder._measure,
    "averages of disjoint tiles": by_disjoint_tiles,
    "of the whole clip": by_the_whole,
}


def draw(pictures: dict[str, Tensor], path: Path) -> None:
    """The middle frame of each, and eight times its difference to the first."""
    whole = next(iter(pictures.values()))
    figure = import_figure()(figsize=(4 * len(pictures), 6), layout="tight")
    axes = figure.subplots(2, len(pictures))
    for (name, picture), (above, below) in zip(pictures.items(), axes.T, strict=True):
        above.imshow((picture / 2 + 0.5).clamp(0, 1).permute(1, 2, 0))
        below.imshow((4 * (picture - whole) + 0.5).clamp(0, 1).permute(1, 2, 0))
        above.set_title(name)
        below.set_title("eight times the difference")
        above.axis("off")
        below.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def whole_decoder(config: dict[str, Any]) -> VDMiniAutoencoderKLTemporalDecoder:
    """A decoder that has every layer and width of the stock one of the config."""
    widths, num_layers = config["block_out_channels"], config["layers_per_block"]
    return VDMiniAutoencoderKLTemporalDecoder(
        **config,
        decoder_block_out_channels=widths,
        decoder_layers_per_block=(num_layers + 1,) * len(widths),
        decoder_upsample_out_channels=widths[1:],
        decoder_mid_layers=num_layers,
        decoder_mid_attention=num_layers > 1,
    )


@torch.no_grad()
def main(args: Arguments) -> None:
    import_figure()
    teacher = AutoencoderKLTemporalDecoder.from_pretrained(I2V_TEACHER, subfolder="vae")
    config = {name: value for name, value in teacher.config.items() if not name.startswith("_")}
    vae = whole_decoder(config).eval()
    tensors = teacher.state_dict()  # with an attention that never runs
    vae.load_state_dict({name: tensors[name] for name in vae.state_dict()})
    vae.enable_tiling(args.tile, args.tile, args.tile_frames, args.stride, args.stride, args.stride_frames)
    vae.disable_tiling()  # its settings stay
    print("| clip | statistics of the norms | PSNR to the whole, dB | mean | largest | seams |")
    print("| --- " * 6 + "|")
    pictures: dict[str, Tensor] = {}
    for photo in args.photos:
        latents = vae.encode(camera_movement(photo, args)).latent_dist.mode()
        whole = vae.decode(latents, len(latents)).sample
        shown = {"whole": whole[args.num_frames // 2]}
        for name, measure in WAYS.items():
            blend = decode_tiles(vae, latents, whole, measure)
            error = ((blend.total - whole) * 127.5).abs()
            psnr = 20 * torch.log10(255 / error.square().mean().sqrt())
            figures = f"{psnr:.2f} | {error.mean():.2f} | {error.max():.1f} | {127.5 * blend.seams():.2f}"
            print(f"| {photo} | {name} | {figures} |", flush=True)
            shown[name] = blend.total[args.num_frames // 2]
        pictures = pictures or shown
    draw(pictures, args.output)
    tile = f"{args.tile_frames} x {args.tile} x {args.tile}"
    print(f"\n{args.num_frames} x {args.height} x {args.width} pixels in tiles of {tile}; picture: {args.output}")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
