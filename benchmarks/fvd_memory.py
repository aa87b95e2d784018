#!/usr/bin/env python
"""Peak memory of the features of a set of clips for FVD, which must not grow with the number of clips.

    python benchmarks/fvd_memory.py --num_clips 2048

Synthetic clips of 16 x 240 x 320 are drawn one by one, stored as JPEG and read again, and pass through a detector into
`FeatureStatistics`, as `fvd.py` does it. The detector is I3D with random weights, whose memory is that of the trained
one; `--detector mean_colours` takes 400 means over regions instead, which shows what is held besides at a fraction of
the time. Prints by how much the process grew at its peak, in MiB (Linux only), and what all clips together would take.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.evaluation.detectors import I3DDetector, feature_batches
from vdmini_diffusers.evaluation.feature_statistics import FeatureStatistics
from vdmini_diffusers.evaluation.frechet_video_distance import frechet_distance_of_moments, kernel_distance
from vdmini_diffusers.evaluation.fvd_protocol import FVDProtocol
from vdmini_diffusers.evaluation.i3d import I3D
from vdmini_diffusers.evaluation.live_bytes import grown_by


@dataclass
class Arguments:
    num_clips: int = field(default=2048, metadata={"help": "Clips of the set."})
    num_frames: int = field(default=16, metadata={"help": "Frames of a clip."})
    height: int = field(default=240, metadata={"help": "Height of the frames."})
    width: int = field(default=320, metadata={"help": "Width of the frames."})
    batch_size: int = field(default=8, metadata={"help": "Clips in the detector at once."})
    detector: Literal["i3d", "mean_colours"] = field(default="i3d", metadata={"help": "What gives the features."})


class MeanColours:
    """Mean values of 400 regions of the clip, of one colour each."""

    name, min_frames, max_frames, dimension, sha256 = "mean_colours", 1, None, 400, ""

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        colours = [torch.nn.functional.adaptive_avg_pool3d(clips[..., k].float(), (4, 10, 10)) for k in range(3)]
        return colours[0].flatten(1) + colours[1].flatten(1) / 2 + colours[2].flatten(1) / 4


def clips(protocol: FVDProtocol, num_clips: int) -> Iterator[np.ndarray]:
    """Coarse noise that moves, by way of JPEG."""
    for index in tqdm(range(num_clips), unit="clip"):
        rng = np.random.default_rng(index)
        coarse = rng.integers(0, 256, (protocol.height // 20, protocol.width // 20, 3), dtype=np.uint8)
        picture = coarse.repeat(20, axis=0).repeat(20, axis=1)
        frames = [np.roll(picture, 3 * step, axis=1) for step in range(protocol.num_frames)]
        yield np.stack([protocol.as_stored(frame) for frame in frames])


def main(args: Arguments) -> None:
    protocol = FVDProtocol(args.num_clips, args.num_frames, args.height, args.width)
    detector: Any = I3DDetector(I3D()) if args.detector == "i3d" else MeanColours()
    statistics = FeatureStatistics(detector.dimension)

    def accumulate() -> None:
        first = 0
        for features in feature_batches(clips(protocol, args.num_clips), detector, args.batch_size):
            statistics.add(features, np.arange(first, first + len(features)))
            first += len(features)

    def measure() -> None:
        moments = statistics.mean, statistics.covariance(ddof=0)
        frechet_distance_of_moments(*moments, *moments)
        kernel_distance(statistics.features, statistics.features)

    start = time.perf_counter()
    accumulated = grown_by(accumulate) / 2**20
    seconds = time.perf_counter() - start
    measured = grown_by(measure) / 2**20
    all_clips = args.num_clips * args.num_frames * args.height * args.width * 3 / 2**20
    print(
        f"{args.num_clips} clips of {args.num_frames} x {args.height} x {args.width}, {detector.name}, batches of"
        f" {args.batch_size}, {seconds:.0f} s: features {accumulated:.0f} MiB, then FVD and KVD {measured:.0f} MiB."
        f" All clips would be {all_clips:.0f} MiB."
    )


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
