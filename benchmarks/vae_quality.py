#!/usr/bin/env python
"""What a pruned VAE decoder costs in quality, before and after fine-tuning (Table A2), on held-out clips.

    python benchmarks/vae_quality.py --pruned outputs/vae-pruned --fine_tuned outputs/vae

Without options it is about the demo VAE. `--data_dir` takes videos instead of the demo clips, whose
photographs no demo model was trained on. All decode the same latents, those of the original's encoder. PSNR and
SSIM (`pip install -e '.[evaluate]'`) are means over clips and frames, of 8-bit pictures; `--lpips` adds LPIPS. Prints
a table and writes it, with the numbers of each clip (`report.json`). Of the clips on which the last decoder loses
most, `worst_frames.png` has the worst frame each: input, original decoder, last decoder, eight times their difference.
"""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.skipped_videos import SkipLog
from vdmini_diffusers.data.vae_clips import decode_clips, encode_for_decoder
from vdmini_diffusers.data.video_dataset import VideoDataset, load_video_dataset
from vdmini_diffusers.demo.measures import HeldOutImages
from vdmini_diffusers.demo.teachers import I2V_TEACHER
from vdmini_diffusers.distillation.decoder_losses import lpips_distance
from vdmini_diffusers.evaluation.frame_quality import frame_quality
from vdmini_diffusers.pruning.cost import counting_flops
from vdmini_diffusers.pruning.vae_folder import find_vae
from vdmini_diffusers.trainers.trained_vae import decoder_inputs, to_uint8


@dataclass
class Arguments:
    original: str = field(default=str(I2V_TEACHER), metadata={"help": "Folder or Hub id of the VAE, or a pipeline."})
    pruned: str | None = field(default=None, metadata={"help": "The same, pruned."})
    fine_tuned: str | None = field(default=None, metadata={"help": "The same, fine-tuned."})
    variant: str | None = field(default=None, metadata={"help": "Variant of the original's weight files, e.g. fp16."})
    output_dir: Path = field(default=Path("outputs/vae_quality"), metadata={"help": "Where report and sheet go."})
    num_clips: int = field(default=48, metadata={"help": "Held-out clips."})
    seed: int = field(default=2, metadata={"help": "The clips' seed."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of videos, instead of the demo clips."})
    num_frames: int = field(default=14, metadata={"help": "Frames of a clip out of --data_dir."})
    height: int = field(default=256, metadata={"help": "Height of such a clip."})
    width: int = field(default=320, metadata={"help": "Width of such a clip."})
    lpips: bool = field(default=False, metadata={"help": "Measure LPIPS (alex) as well."})
    num_worst: int = field(default=6, metadata={"help": "Frames on the sheet."})


def load_clips(args: Arguments) -> list[np.ndarray]:
    """Each uint8 `(frames, height, width, 3)`."""
    if args.data_dir is None:
        return list(HeldOutImages(args.num_clips, args.seed).real.frames)
    data_args = VideoDataArguments(
        train_data_dir=args.data_dir,
        num_frames=args.num_frames,
        height=args.height,
        width=args.width,
        max_train_samples=args.num_clips,
        center_crop=True,
    )
    with tempfile.TemporaryDirectory() as skipped:
        dataset = load_video_dataset(data_args, SkipLog(skipped), seed=args.seed)
        assert isinstance(dataset, VideoDataset)  # it is not streamed
        return [to_uint8(dataset[i]["pixel_values"]) for i in range(len(dataset))]


def as_values(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames).movedim(-1, 1) / 127.5 - 1


def count_macs(vae: Any, latents: Tensor) -> int:
    """Multiply-accumulates of decoding one clip."""
    with counting_flops() as counter:
        decode_clips(vae.decoder, decoder_inputs(vae, latents))
    return counter.get_total_flops() // 2


def write_worst_frames(
    worst: list[tuple[int, int]], clips: list[np.ndarray], videos: dict[str, list[np.ndarray]], path: Path
) -> None:
    rows = []
    for clip, frame in worst:
        original, last = (list(videos.values())[k][clip][frame] for k in (0, -1))
        difference = np.clip(128 + 8 * (last.astype(int) - original), 0, 255).astype(np.uint8)
        rows.append(np.concatenate([clips[clip][frame], original, last, difference], axis=1))
    sheet = Image.fromarray(np.concatenate(rows))
    scale = max(1, 1024 // sheet.width)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST).save(path)


def main(args: Arguments) -> None:
    named = {"original": args.original, "pruned": args.pruned, "fine-tuned": args.fine_tuned}
    vaes = {
        name: find_vae(folder).load(args.variant if name == "original" else None)
        for name, folder in named.items()
        if folder is not None
    }
    perceptual = lpips_distance("alex") if args.lpips else None
    clips = load_clips(args)
    latents = [
        encode_for_decoder({"pixel_values": as_values(frames)[None]}, vaes["original"])["latents"]
        for frames in tqdm(clips, desc="encode", leave=False)
    ]
    videos, report = {}, {}
    for name, vae in vaes.items():
        with torch.no_grad():
            videos[name] = [
                to_uint8(decode_clips(vae.decoder, decoder_inputs(vae, given))[0])
                for given in tqdm(latents, desc=name, leave=False)
            ]
        pairs = zip(videos[name], clips, strict=True)
        report[name] = {
            "decoder_parameters": sum(p.numel() for p in vae.decoder.parameters()),
            "macs_per_clip": count_macs(vae, latents[0]),
            "clips": [frame_quality(decoded, frames, perceptual) for decoded, frames in pairs],
        }
    lines = [
        f"{len(clips)} clips of {' x '.join(map(str, clips[0].shape[:3]))}, seed {args.seed}",
        "",
        "| decoder | parameters | multiplications | PSNR, dB | SSIM | LPIPS |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in report.items():
        means = {
            key: np.mean([clip[key] for clip in found["clips"]])
            for key in ("psnr", "ssim", "lpips")
            if key in found["clips"][0]
        }
        found["means"] = {key: float(value) for key, value in means.items()}
        fewer = report["original"]["macs_per_clip"] / found["macs_per_clip"]
        lines.append(
            f"| {name} | {found['decoder_parameters']:,} | {found['macs_per_clip'] / 1e9:.2f} G, 1/{fewer:.2f} |"
            f" {means['psnr']:.2f} | {means['ssim']:.4f} | {format(means['lpips'], '.4f') if perceptual else '-'} |"
        )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    table = "\n".join(lines) + "\n"
    (args.output_dir / "table.md").write_text(table)
    (args.output_dir / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    # Worst: where the last decoder loses most against the first; one frame a clip.
    first, last = (np.array([clip["psnr"] for clip in list(report.values())[k]["clips"]]) for k in (0, -1))
    gains = last - first
    order = np.argsort(gains.min(axis=1), kind="stable")[: args.num_worst]
    worst = [(int(clip), int(gains[clip].argmin())) for clip in order]
    write_worst_frames(worst, clips, videos, args.output_dir / "worst_frames.png")
    print(table)


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
