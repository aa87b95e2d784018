#!/usr/bin/env python
"""What precomputed latents save: seconds of data preparation per training batch, by decoding and encoding or reading.

    python benchmarks/precompute_latents.py

Writes synthetic videos, then prepares the same batches both ways, in turns, in one process; all files are then in the
page cache. By default with the demo teacher's VAE and image encoder, at its size. A real teacher:
`--pretrained_model_name_or_path ... --height 448 --width 576 --num_frames 14`.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import torch
from torch.utils.data import default_collate

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.latents import LatentShards, PrecomputedLatents, write_shard
from vdmini_diffusers.data.skipped_videos import SkipLog
from vdmini_diffusers.data.video_dataset import VideoDataset, load_video_dataset
from vdmini_diffusers.demo.teachers import I2V_TEACHER
from vdmini_diffusers.families.svd import encode_image_to_video
from vdmini_diffusers.pipelines import VDMiniI2VPipeline


@dataclass
class Arguments:
    pretrained_model_name_or_path: str = field(
        default=str(I2V_TEACHER), metadata={"help": "Stable Video Diffusion pipeline whose encoders are used."}
    )
    num_frames: int = field(default=16, metadata={"help": "Frames of a clip."})
    height: int = field(default=64, metadata={"help": "Height of a clip in pixels."})
    width: int = field(default=64, metadata={"help": "Width of a clip in pixels."})
    num_batches: int = field(default=8, metadata={"help": "Batches to prepare, each way."})
    batch_size: int = field(default=4, metadata={"help": "Clips of a batch."})
    video_height: int = field(default=360, metadata={"help": "Height of the videos in pixels."})
    video_width: int = field(default=640, metadata={"help": "Width of the videos in pixels."})
    video_seconds: int = field(default=4, metadata={"help": "Length of the videos, of 30 frames a second."})
    device: str = field(
        default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "Where clips are encoded."}
    )


def write_videos(folder: Path, args: Arguments) -> None:
    """A mosaic of random colours that moves to the left; H.264 with a key frame every two seconds."""
    rng = np.random.default_rng(0)
    for index in range(args.num_batches * args.batch_size):
        wide = rng.integers(0, 256, (args.video_height // 8 + 1, args.video_width // 4 + 1, 3), dtype=np.uint8)
        picture = wide.repeat(8, axis=0).repeat(8, axis=1)
        with av.open(str(folder / f"{index:04}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"g": "60", "preset": "ultrafast"})
            stream.height, stream.width, stream.pix_fmt = args.video_height, args.video_width, "yuv420p"
            for shift in range(30 * args.video_seconds):
                view = picture[: args.video_height, shift : shift + args.video_width]
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(view), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def timed(device: str, function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function(*args)
    if device != "cpu":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def load_batch(dataset: VideoDataset | PrecomputedLatents, indices: range) -> dict[str, Any]:
    return default_collate([dataset[index] for index in indices])


def main(args: Arguments) -> None:
    source = args.pretrained_model_name_or_path
    pipe = VDMiniI2VPipeline.from_pretrained(source, unet=None, dtype=torch.float32).to(args.device)
    encode = partial(encode_image_to_video, pipe=pipe)

    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "videos").mkdir()
        write_videos(folder / "videos", args)
        data_args = VideoDataArguments(
            train_data_dir=str(folder / "videos"),
            cache_dir=str(folder / "cache"),
            num_frames=args.num_frames,
            height=args.height,
            width=args.width,
        )
        log = SkipLog(folder / "skipped")
        videos = load_video_dataset(data_args, log)
        shards = LatentShards(folder / "latents", {})
        write_shard(shards, 0, iter(videos.rows), videos.reader, encode, log, batch_size=args.batch_size)
        shards.finish(log.read())
        latents = PrecomputedLatents(folder / "latents")

        times = {name: [] for name in ("decode", "encode", "decode + encode", "read precomputed")}
        for first in range(0, len(latents), args.batch_size):
            indices = range(first, first + args.batch_size)
            batch, decoding = timed(args.device, load_batch, videos, indices)
            batch["pixel_values"] = batch["pixel_values"].to(args.device)
            _, encoding = timed(args.device, encode, batch)
            _, reading = timed(args.device, load_batch, latents, indices)
            for name, spent in zip(times, (decoding, encoding, decoding + encoding, reading), strict=True):
                times[name].append(spent)
        num_bytes = sum(file.stat().st_size for file in latents.files) / len(latents)

    print(
        f"{args.num_batches} batches of {args.batch_size} clips of {args.num_frames} x {args.height} x {args.width}, "
        f"{args.device}, {torch.get_num_threads()} threads; {num_bytes / 2**10:.0f} KiB of latents a clip\n"
    )
    print("| per batch | median s | least s | most s |\n| --- | --- | --- | --- |")
    for name, spent in times.items():
        print(f"| {name} | {statistics.median(spent):.4f} | {min(spent):.4f} | {max(spent):.4f} |")
    ratios = [both / read for both, read in zip(times["decode + encode"], times["read precomputed"], strict=True)]
    print(f"\nReading is {statistics.median(ratios):.0f} times as fast ({min(ratios):.0f} to {max(ratios):.0f}).")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
