"""Memory and time of pruning a full-size teacher, against `cp` of the kept bytes.

    python benchmarks/convert_svd.py --work_dir DISK_TO_MEASURE [--teacher t2v]

Writes a teacher of 3 GB (random fp16 weights, tiny other components), Stable Video Diffusion or T2V-Turbo-v2, and
removes it at the end. Each round converts it and copies the student's U-Net with `cp`, one after the other, in turns:

- from memory (the teacher and the copied file are in the page cache), or from disk (they are dropped from it first);
- with the teacher's hashes computed (a local folder), or known (the same folder laid out as the Hub's cache, where
  file names tell them).

Times start after the imports. Memory is the peak of the resident set during the conversion beyond what it was before.
"""

import hashlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    LCMScheduler,
    ModelMixin,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from vdmini_diffusers import VDMiniT2VPipeline, VDMiniUNet3DConditionModel
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


UNET_FILE = "unet/diffusion_pytorch_model.fp16.safetensors"
COMMIT = "0" * 40
# In a process of its own, whose memory nothing else has touched. Before each turn a file of the same size is removed:
# both then write to memory that was freed just before, as fresh memory can cost several times as much.
MEASURE = """
import json, os, re, shutil, subprocess, sys, time
from pathlib import Path
from vdmini_diffusers import prune_pipeline

name, options, work, weights, rounds, cached = json.loads(sys.argv[1])
work = Path(work)

def resident(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def prepare(file):
    with open(file, "rb", buffering=0) as stream:
        if not cached:
            os.fsync(stream.fileno())  # what is not on the disk yet cannot be dropped from memory
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while cached and stream.read(2**20):
            pass
    shutil.rmtree(work / "student", ignore_errors=True)
    (work / "copied").unlink(missing_ok=True)

shutil.copyfile(work / "kept", work / "copied")
results = []
for _ in range(rounds):
    prepare(work / "teacher" / weights)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = resident("VmRSS"), time.perf_counter()
    prune_pipeline(name, work / "student", variant="fp16", **options)
    converted, peak = time.perf_counter() - start, resident("VmHWM") - before
    prepare(work / "kept")
    start = time.perf_counter()
    subprocess.run(["cp", work / "kept", work / "copied"], check=True)
    results.append((converted, time.perf_counter() - start, peak))
print(json.dumps(results))
"""


@dataclass
class BenchmarkArguments:
    work_dir: str = field(metadata={"help": "A folder on the disk to measure, with 10 GB free."})
    rounds: int = field(default=7, metadata={"help": "Rounds per setting."})
    teacher: Literal["svd", "t2v"] = field(default="svd", metadata={"help": "Kind of teacher."})


def write_svd(folder: Path) -> ModelMixin:
    """The folder with a tiny U-Net, and SVD's own U-Net on the meta device."""
    clip = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        patch_size=56,
        projection_dim=16,
    )
    StableVideoDiffusionPipeline(
        vae=AutoencoderKLTemporalDecoder(block_out_channels=(32,), layers_per_block=1).half(),
        image_encoder=CLIPVisionModelWithProjection(clip).half(),
        unet=UNetSpatioTemporalConditionModel(block_out_channels=(32,) * 4, num_attention_heads=(1, 1, 1, 1)),
        scheduler=EulerDiscreteScheduler(),
        feature_extractor=CLIPImageProcessor(),
    ).save_pretrained(folder, variant="fp16")
    with torch.device("meta"):
        return UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20), num_frames=25, sample_size=96)


def write_t2v(folder: Path) -> ModelMixin:
    """As `write_svd`, T2V-Turbo-v2's with motion guidance."""
    text = CLIPTextConfig(
        vocab_size=3, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    tiny = {"block_out_channels": (32,) * 3, "cross_attention_dim": 16}
    VDMiniT2VPipeline(
        vae=AutoencoderKL(block_out_channels=(32,), layers_per_block=1).half(),
        text_encoder=CLIPTextModel(text).half(),
        tokenizer=CLIPTokenizer(),
        unet=VDMiniUNet3DConditionModel(**tiny),
        scheduler=LCMScheduler(),  # pyright: ignore[reportArgumentType]: no member of an enumeration of names
    ).save_pretrained(folder, variant="fp16")
    with torch.device("meta"):
        return VDMiniUNet3DConditionModel(
            down_block_types=("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
            up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            mid_block_type="UNetMidBlock3DCrossAttn",
        )


TEACHERS = {"svd": write_svd, "t2v": write_t2v}


def write_teacher(folder: Path, write: Callable[[Path], ModelMixin]) -> int:
    """A full-size U-Net with random weights, never held in memory; returns the bytes of its largest tensor."""
    unet = write(folder)
    unet.save_config(folder / "unet")
    state = unet.state_dict()
    names = sorted(state)
    stops = list(itertools.accumulate((2 * state[name].numel() for name in names), initial=0))
    header = {
        name: {"dtype": "F16", "shape": state[name].shape, "data_offsets": offsets}
        for name, offsets in zip(names, itertools.pairwise(stops), strict=True)
    }
    text = json.dumps(header).encode()
    generator = np.random.default_rng(0)
    numbers = (0.02 * generator.standard_normal(2**23, dtype=np.float32)).astype(np.float16).tobytes()
    with (folder / UNET_FILE).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, stops[-1], len(numbers)):  # the same numbers over and over: what they are is no matter
            file.write(numbers[: stops[-1] - start])
        file.flush()
        os.fsync(file.fileno())
    return max(b - a for a, b in itertools.pairwise(stops))


def as_hub_cache(teacher: Path, cache: Path) -> None:
    """The Hub's cache with the teacher as `bench/svd`; its large files are links to the same bytes on disk."""
    repo = cache / "models--bench--svd"
    for file in (path for path in teacher.rglob("*") if path.is_file()):
        with file.open("rb") as stream:
            blob = repo / "blobs" / hashlib.file_digest(stream, "sha256").hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.unlink(missing_ok=True)
        os.link(file, blob)
        link = repo / "snapshots" / COMMIT / file.relative_to(teacher)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)


def measure(name: str, options: dict[str, object], work: Path, rounds: int, cached: bool) -> str:
    setting = json.dumps([name, options, str(work), UNET_FILE, rounds, cached])
    command = [sys.executable, "-c", MEASURE, setting]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    converted, copied, peaks = zip(*json.loads(done.stdout.splitlines()[-1]), strict=True)
    ratios = [a / b for a, b in zip(converted, copied, strict=True)]
    return (
        f"convert {statistics.median(converted):.2f} s, cp {statistics.median(copied):.2f} s,"
        f" median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}),"
        f" peak memory {max(peaks) / 2**20:.1f} MiB beyond the interpreter"
    )


def seconds_to_hash(file: Path, rounds: int = 3) -> float:
    """The floor of a conversion that computes the hash: one file's bytes can only be hashed one after the other."""
    times = []
    for _ in range(rounds + 1):  # the first reads it into memory
        start = time.perf_counter()
        with file.open("rb") as stream:
            hashlib.file_digest(stream, "sha256")
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main(args: BenchmarkArguments) -> None:
    work = (Path(args.work_dir) / "convert_svd_benchmark").absolute()
    work.mkdir(parents=True)
    try:
        largest = write_teacher(work / "teacher", TEACHERS[args.teacher])
        as_hub_cache(work / "teacher", work / "cache")
        prune_pipeline(work / "teacher", work / "student", variant="fp16")
        shutil.move(work / "student" / UNET_FILE, work / "kept")
        print(f"kept {(work / 'kept').stat().st_size / 1e9:.2f} GB, largest tensor {largest / 2**20:.1f} MiB")
        hub = {"cache_dir": str(work / "cache"), "local_files_only": True}
        teachers = {"computed": (str(work / "teacher"), {}), "known": ("bench/svd", hub)}
        for cached, (hashes, (name, options)) in itertools.product((True, False), teachers.items()):
            figures = measure(name, options, work, args.rounds, cached)
            print(f"from {'memory' if cached else 'disk'}, hashes {hashes}: {figures}", flush=True)
        print(
            f"SHA-256 of the teacher's U-Net alone, from memory: {seconds_to_hash(work / 'teacher' / UNET_FILE):.2f} s"
        )
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((BenchmarkArguments,))))
