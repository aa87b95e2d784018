"""Memory and time of pruning a full-size HunyuanVideo transformer, against `cp` of the kept bytes; and kills.

    python benchmarks/convert_video_transformer.py --work_dir DISK_TO_MEASURE

Writes the 25.6 GB of its weights in six shards, as on the Hub: random bf16 numbers where the tensors are kept, and
holes where they are not, which take no room on the disk and no time to copy. So 34 GB must be free. All is removed at
the end.

- Each round prunes the transformer and copies the shards with `cp`, one after the other, in turns; both read from
  disk, and `cp` skips the holes. Times start after the imports. Memory is the peak of the resident set beyond what it
  was before.
- Then a conversion is killed at random moments and started again, until it is complete: how much it has written in
  all, and whether every tensor is the teacher's, bit for bit.
"""

import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import HunyuanVideoTransformer3DModel
from huggingface_hub import split_state_dict_into_shards_factory

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.pruning import VDMINI_HY
from vdmini_diffusers.serialization.safetensors_reader import StoredTensor, read_checkpoint


STEM = "diffusion_pytorch_model"
KILLED_RUN = """
import sys
from vdmini_diffusers import prune_pipeline
prune_pipeline(sys.argv[1], sys.argv[2], denoisers_only=True, max_shard_size="5GB")
"""
# In a process of its own, whose memory nothing else has touched. Before each turn, what the one before has written is
# removed, and all that is still to go to the disk is there.
MEASURE = """
import json, os, re, shutil, subprocess, sys, time
from pathlib import Path
from vdmini_diffusers import prune_pipeline

work, rounds = Path(sys.argv[1]), int(sys.argv[2])

def resident(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def prepare():
    shutil.rmtree(work / "student", ignore_errors=True)
    shutil.rmtree(work / "copied", ignore_errors=True)
    os.sync()
    for file in (work / "teacher/transformer").iterdir():
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

def prune():
    prune_pipeline(work / "teacher", work / "student", denoisers_only=True, max_shard_size="5GB")

def copy():
    subprocess.run(["cp", "-r", "--sparse=auto", work / "teacher/transformer", work / "copied"], check=True)

for number in range(rounds):
    times = {}
    for turn in (prune, copy) if number % 2 else (copy, prune):
        prepare()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, start = resident("VmRSS"), time.perf_counter()
        turn()
        times[turn.__name__] = time.perf_counter() - start
        if turn is prune:
            peak = resident("VmHWM") - before
    print(json.dumps([times["prune"], times["copy"], peak]), flush=True)
prepare()
"""


@dataclass
class BenchmarkArguments:
    work_dir: str = field(metadata={"help": "A folder on the disk to measure, with 40 GB free."})
    rounds: int = field(default=3, metadata={"help": "Rounds of pruning and `cp`."})
    kills: int = field(default=5, metadata={"help": "How often the last conversion is killed."})
    seed: int = field(default=0, metadata={"help": "Seed of the moments at which it is killed."})


def write_teacher(folder: Path) -> None:
    """A pipeline folder with a full-size transformer and nothing else: of the rest, only the names are read."""
    with torch.device("meta"):
        transformer = HunyuanVideoTransformer3DModel()
    transformer.save_config(folder / "transformer")
    components = {
        "text_encoder": ("transformers", "LlamaModel"),
        "tokenizer": ("transformers", "LlamaTokenizerFast"),
        "text_encoder_2": ("transformers", "CLIPTextModel"),
        "tokenizer_2": ("transformers", "CLIPTokenizer"),
        "transformer": ("diffusers", "HunyuanVideoTransformer3DModel"),
        "vae": ("diffusers", "AutoencoderKLHunyuanVideo"),
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    }
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "HunyuanVideoPipeline", **components}))
    shapes = {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}
    with torch.device("meta"):
        student = HunyuanVideoTransformer3DModel.from_config(VDMINI_HY.student_config(transformer.config))
    kept = set(VDMINI_HY.weight_map(student.state_dict()).values())
    sizes = {name: 2 * torch.Size(shape).numel() for name, shape in shapes.items()}
    shards = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        max_shard_size="5GB",
        filename_pattern=f"{STEM}{{suffix}}.safetensors",
    )
    numbers = np.random.default_rng(0).standard_normal(2**24, dtype=np.float32)
    numbers = torch.from_numpy(numbers).bfloat16().view(torch.uint8).numpy().tobytes()
    for file, names in shards.filename_to_tensors.items():
        write_shard(folder / "transformer" / file, {name: shapes[name] for name in sorted(names)}, kept, numbers)
    index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
    (folder / "transformer" / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))


def write_shard(file: Path, shapes: Mapping[str, tuple[int, ...]], kept: set[str], numbers: bytes) -> None:
    stops = list(itertools.accumulate((2 * torch.Size(shape).numel() for shape in shapes.values()), initial=0))
    header = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": offsets}
        for (name, shape), offsets in zip(shapes.items(), itertools.pairwise(stops), strict=True)
    }
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for number, name in enumerate(shapes):
            start, stop = (8 + len(text) + stops[number + i] for i in (0, 1))
            stream.seek(start)
            skip = 2 * (hash_of(name) % 2**20)  # so that no two tensors begin with the same numbers
            while name in kept and stream.tell() < stop:
                stream.write(numbers[skip : skip + stop - stream.tell()])
                skip = 0
        stream.truncate(8 + len(text) + stops[-1])
        os.fsync(stream.fileno())


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode()[-16:], "little") * 2_654_435_761 >> 16


def measure(work: Path, rounds: int) -> None:
    command = [sys.executable, "-c", MEASURE, str(work), str(rounds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        results = []
        for line in process.stdout:
            results.append(json.loads(line))
            pruned, copied, peak = results[-1]
            print(f"prune {pruned:.1f} s, cp {copied:.1f} s, peak {peak / 2**20:.1f} MiB", flush=True)
    if process.returncode:
        raise RuntimeError("the measured process failed")
    ratios = [pruned / copied for pruned, copied, _ in results]
    print(
        f"median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), peak memory"
        f" {max(peak for _, _, peak in results) / 2**20:.1f} MiB beyond the interpreter"
    )


def kill_and_go_on(work: Path, kills: int, seed: int) -> None:
    """Prune in processes that are killed, one after the other, and in a last one that is not."""
    generator = random.Random(seed)
    written = 0
    for number in range(kills + 1):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED_RUN, work / "teacher", work / "student"], stderr=subprocess.DEVNULL
        )
        begun, written_now = None, 0
        seconds = generator.uniform(0.5, 8)
        while process.poll() is None:
            written_now = int(Path(f"/proc/{process.pid}/io").read_text().split("wchar: ")[1].split()[0])
            if begun is None and written_now > 2**20:
                begun = time.monotonic()
            if number < kills and begun is not None and time.monotonic() - begun > seconds:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.05)
        process.wait()
        written += written_now
        how = f"killed after {seconds:.1f} s" if process.returncode else "complete"
        print(f"run {number + 1}: {how}, wrote {written_now / 1e9:.2f} GB", flush=True)
        if not process.returncode:
            break
    kept = sum(file.stat().st_size for file in (work / "student/transformer").glob("*.safetensors"))
    print(f"{written / 1e9:.2f} GB were written in all for the {kept / 1e9:.2f} GB of the student")


def compare(work: Path) -> None:
    teacher = read_checkpoint(work / "teacher/transformer", STEM)
    student = read_checkpoint(work / "student/transformer", STEM)
    differ = [
        name
        for name, source in VDMINI_HY.weight_map(student).items()
        if any(a != b for a, b in zip(chunks(student[name]), chunks(teacher[source]), strict=True))
    ]
    print(f"{len(student) - len(differ)} of {len(student)} tensors are the teacher's, bit for bit")
    if differ:
        raise RuntimeError(f"{differ[0]} differs")


def chunks(tensor: StoredTensor) -> Iterator[bytes]:
    assert isinstance(tensor.file, Path)
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        for start in range(tensor.start, tensor.stop, 2**22):
            yield file.read(min(2**22, tensor.stop - start))


def main(args: BenchmarkArguments) -> None:
    work = (Path(args.work_dir) / "convert_video_transformer_benchmark").absolute()
    work.mkdir(parents=True)
    try:
        write_teacher(work / "teacher")
        files = sorted((work / "teacher/transformer").glob("*.safetensors"))
        whole, there = (
            sum(f.stat().st_size for f in files) / 1e9,
            sum(512 * f.stat().st_blocks for f in files) / 1e9,
        )
        print(f"teacher {whole:.2f} GB in {len(files)} shards, of which {there:.2f} GB are kept", flush=True)
        if args.rounds:
            measure(work, args.rounds)
        kill_and_go_on(work, args.kills, args.seed)
        compare(work)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((BenchmarkArguments,))))
