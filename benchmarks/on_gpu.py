#!/usr/bin/env python
"""What a GPU must show, in order of importance, for a GPU that is there for minutes only.

    python benchmarks/on_gpu.py --seconds 540
    python benchmarks/on_gpu.py --device cpu --tiny --output_dir outputs/on_cpu

Each of `ITEMS` runs in a process of its own, which ends with the item's time box or with `--seconds`. Afterwards the
output folder has `results.md` and `results.json`, and of each item a JSON file and a folder with its log. Run again
with the same folder, items that are done are left out, those that failed come last, and those that ran out of time go
on where they keep rows or states. A bare machine needs torch, transformers, accelerate and peft; `--wheels` may bring
the rest (diffusers, ftfy, pytest, hypothesis, ...). They are unpacked before the seconds begin to count. Nothing is
downloaded.
"""

import hashlib
import importlib.metadata
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

# Nothing of the package, and no diffusers, before `put_on_path` has found them.
from transformers import HfArgumentParser


ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Item:
    """A command, and the seconds that it may take. `after` names the item whose results it goes on from.

    `{python}`, `{device}`, `{tiny}` (`tiny` or nothing), `{folder}` (the item's own, which stays) and `{folders}`
    (that of all items) are filled in. Rows that the command writes to `{folder}/rows.json` become a table of the
    results.
    """

    name: str
    seconds: float
    command: str
    tiny: str = "--tiny"
    after: str | None = None


TESTS = "env VDMINI_TEST_DEVICE={device} {python} -m pytest tests/gpu -m gpu -q -p no:cacheprovider"
LATENCY = "{python} benchmarks/latency_tables.py --device {device} {tiny} --output {folder}/rows.json"
# The demo teachers of the next kind (training/README.md), by larger batches than on a CPU, with the VAE that ships.
# A teacher's boxes, with latents, distillation and gates, are ten minutes together; only gates begin anew if cut off.
TEACHER = "{python} training/train_demo_teacher.py --output_dir {folder} --seconds 290 --num_workers 14"
BATCHES = "--train_batch_size 128 --num_clips 20000 --unet_steps 3000"
TINY_BATCHES = "--num_workers 0 --train_batch_size 2 --vae_batch_size 4 --num_clips 4 --unet_steps 2 --decoder_steps 1"
TINY_BATCHES += " --mixed_precision False"  # which is slow on most CPUs
TINY_PAIRS = "--num_pairs 2 --num_pair_steps 2 --one_step_steps 1"
# Few-step ones of them, with what is not a matter of size as their cards have it, and the gates.
LATENTS = "{python} training/write_demo_latents.py --num_clips 2048 --output_dir {folder}"
FEW_STEPS = "--output_dir {folder} --max_train_steps 600 --train_batch_size 16 --gradient_accumulation_steps 1"
FEW_STEPS += " --mixed_precision bf16 --checkpointing_steps 100 --checkpoints_total_limit 1"
SF_V = f"{{python}} training/train_sf_v.py {FEW_STEPS} --learning_rate 5e-5 --discriminator_learning_rate 3e-4"
T2V_TURBO = f"{{python}} training/train_t2v_turbo.py {FEW_STEPS} --learning_rate 3e-5 --lr_scheduler cosine --use_ema"
T2V_TURBO += " --ema_decay 0.97 --w_min 0 --w_max 2 --num_ddim_steps 20 --temporal_dropout 0"
TINY_FEW_STEPS = "--max_train_steps 1 --train_batch_size 1 --mixed_precision no"
GATES = "{python} benchmarks/demo_teacher_gates.py --output_dir {folder}"
# The rows of Tables 4 and 5 on the demo teachers of the package; what is finished stays.
ABLATION = "{python} benchmarks/recovery_ablation.py --output_dir {folder} --num_parallel 6 --mixed_precision bf16"
ABLATION += " --max_train_steps 400 --train_batch_size 4 --num_train_clips 2048 --num_decoded_clips 64"
ABLATION += " --learning_rates 1e-4 3e-4 1e-3 {tiny}"
TINY_ABLATION = "--max_train_steps 2 --train_batch_size 2 --num_train_clips 4 --num_clips 2 --num_decoded_clips 2"
TINY_ABLATION += " --mixed_precision no --seeds 0 --sensitivity_seeds 0 --learning_rates 1e-4 3e-4 --num_parallel 1"
ITEMS = (
    Item("gpu_tests", 240, TESTS),
    Item("a1_bf16", 90, f"{LATENCY} --table A1 --dtype bf16 --pipeline --optimize --rounds 5"),
    Item("a3_bf16", 90, f"{LATENCY} --table A3 --dtype bf16 --pipeline --optimize --rounds 5"),
    Item("a1_bf16_compiled", 180, f"{LATENCY} --table A1 --dtype bf16 --compile --rounds 5"),
    Item("a3_bf16_compiled", 180, f"{LATENCY} --table A3 --dtype bf16 --compile --rounds 5"),
    Item("a1_fp16", 90, f"{LATENCY} --table A1 --dtype fp16 --pipeline --optimize --rounds 5"),
    Item("a3_fp16", 90, f"{LATENCY} --table A3 --dtype fp16 --pipeline --optimize --rounds 5"),
    Item(
        "teacher_i2v",
        310,
        f"{TEACHER} {BATCHES} --task i2v --vae vdmini_diffusers/demo/i2v_teacher/vae {{tiny}}",
        f"{TINY_BATCHES} {TINY_PAIRS}",
    ),
    Item(
        "teacher_t2v",
        310,
        f"{TEACHER} {BATCHES} --task t2v --image_to_video_teacher vdmini_diffusers/demo/i2v_teacher {{tiny}}",
        TINY_BATCHES,
    ),
    Item(
        "latents_i2v",
        60,
        f"{LATENTS} --teacher {{folders}}/teacher_i2v/pipeline {{tiny}}",
        "--num_clips 2",
        after="teacher_i2v",
    ),
    Item(
        "few_steps_i2v",
        110,
        f"{SF_V} --pretrained_model_name_or_path {{folders}}/teacher_i2v/pipeline"
        " --precomputed_data_dir {folders}/latents_i2v {tiny}",
        TINY_FEW_STEPS,
        after="latents_i2v",
    ),
    Item(
        "gates_i2v",
        120,
        f"{GATES} --task i2v --teacher {{folders}}/few_steps_i2v {{tiny}}",
        "--num_clips 1",
        after="few_steps_i2v",
    ),
    Item(
        "latents_t2v",
        60,
        f"{LATENTS} --latents_for text_to_video --teacher {{folders}}/teacher_t2v/pipeline {{tiny}}",
        "--num_clips 2",
        after="teacher_t2v",
    ),
    Item(
        "few_steps_t2v",
        110,
        f"{T2V_TURBO} --pretrained_model_name_or_path {{folders}}/teacher_t2v/pipeline"
        " --precomputed_data_dir {folders}/latents_t2v {tiny}",
        TINY_FEW_STEPS,
        after="latents_t2v",
    ),
    Item(
        "gates_t2v",
        120,
        f"{GATES} --task t2v --teacher {{folders}}/few_steps_t2v --num_inference_steps 4 {{tiny}}",
        "--num_clips 1",
        after="few_steps_t2v",
    ),
    Item("ablation_i2v", 420, ABLATION, TINY_ABLATION),
    Item("ablation_t2v", 420, f"{ABLATION} --teacher vdmini_diffusers/demo/t2v_teacher", TINY_ABLATION),
    Item("a5_bf16", 120, f"{LATENCY} --table A5 --dtype bf16 --rounds 3"),
    Item("block_costs", 90, "{python} benchmarks/block_costs.py --measure_on {device} --output_dir {folder} {tiny}"),
    Item("a1_fp16_compiled", 180, f"{LATENCY} --table A1 --dtype fp16 --compile --rounds 5"),
    Item("a3_fp16_compiled", 180, f"{LATENCY} --table A3 --dtype fp16 --compile --rounds 5"),
    Item("a5_bf16_compiled", 240, f"{LATENCY} --table A5 --dtype bf16 --compile --rounds 3"),
    Item("a5_fp16", 120, f"{LATENCY} --table A5 --dtype fp16 --rounds 3"),
    Item("a5_fp16_compiled", 240, f"{LATENCY} --table A5 --dtype fp16 --compile --rounds 3"),
)


@dataclass
class Arguments:
    seconds: float = field(default=540, metadata={"help": "Seconds after which the run ends."})
    output_dir: Path = field(default=Path("outputs/on_gpu"), metadata={"help": "Where results go, and are found."})
    device: Literal["cuda", "cpu"] = field(default="cuda", metadata={"help": "What the items run on."})
    tiny: bool = field(default=False, metadata={"help": "Tiny networks and clips, to try the list itself."})
    only: list[str] = field(
        default_factory=lambda: [item.name for item in ITEMS],
        metadata={"help": "Items to run; default: all.", "choices": [item.name for item in ITEMS]},
    )
    wheels: Path | None = field(
        default=None, metadata={"help": "Folder with wheels; packages that are not installed are taken from it."}
    )


def put_on_path(args: Arguments) -> None:
    """Restart with this repository and the packages of `--wheels` on Python's path, unless they are on it."""
    wanted = [str(ROOT)] if find_spec("vdmini_diffusers") is None else []
    if args.wheels is not None:
        target = folder_of(args.wheels, args.output_dir.resolve())
        wanted.append(str(target))
        if not target.exists():
            unpack_missing(args.wheels, target)
    if set(wanted) <= set(sys.path):
        return
    os.environ["PYTHONPATH"] = os.pathsep.join([*wanted, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.execv(sys.executable, [sys.executable, *sys.argv])


def folder_of(wheels: Path, output_dir: Path) -> Path:
    """Where these wheels are unpacked; further ones are in another folder."""
    names = "\n".join(sorted(wheel.name for wheel in wheels.glob("*.whl")))
    return output_dir / f"wheels-{hashlib.sha256(names.encode()).hexdigest()[:8]}"


def unpack_missing(wheels: Path, target: Path) -> None:
    """Unpack the wheels of packages that are not installed; `target` appears when all of them are in it."""
    missing = []
    for wheel in sorted(wheels.glob("*.whl")):
        try:
            importlib.metadata.distribution(wheel.name.split("-")[0])
        except importlib.metadata.PackageNotFoundError:
            missing.append(wheel)
    partial = target.with_name(f"{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    if missing:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
        subprocess.run([*pip, "--target", partial, *missing], check=True)
    partial.rename(target)


class Results:
    """What is known of each item, as files of the output folder."""

    def __init__(self, args: Arguments, items: Sequence[Item]):
        import torch

        from vdmini_diffusers.evaluation.device_name import device_name

        if args.device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("No CUDA device was found. `--device cpu --tiny` tries the list without one.")
        self.folder = args.output_dir.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.machine = {
            "device": device_name(args.device),
            **{name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")},
        }
        self.setting = {"device": args.device, "tiny": args.tiny}
        self.records = {item.name: self._saved(item.name) for item in items}

    def _saved(self, name: str) -> dict[str, Any]:
        file = self.folder / f"{name}.json"
        if not file.exists():
            return {"name": name, "state": "not reached"}
        record = json.loads(file.read_text())
        if record["setting"] != self.setting:
            raise ValueError(
                f"{self.folder} holds results with {record['setting']}, not {self.setting}: choose another folder."
            )
        return record

    def state(self, name: str) -> str:
        return self.records[name]["state"]

    def save(self, item: Item, **found: Any) -> None:
        """Keep what was found of an item, with the rows that its command has written so far."""
        from vdmini_diffusers.serialization.atomic import write_file

        record = {"name": item.name, **found, **self.machine, "setting": self.setting}
        with suppress(OSError, ValueError):  # there are none, or they are damaged, which the item's log says
            record["rows"] = json.loads((self.folder / item.name / "rows.json").read_text())
        self.records[item.name] = record
        write_file(self.folder / f"{item.name}.json", json.dumps(record, indent=2).encode())
        self.write()

    def write(self) -> None:
        """Write `results.json` and `results.md` anew."""
        from vdmini_diffusers.cli.markdown_table import markdown_table
        from vdmini_diffusers.serialization.atomic import write_file

        records = list(self.records.values())
        write_file(self.folder / "results.json", json.dumps(records, indent=2).encode())
        summary = [{k: v for k, v in record.items() if k not in ("rows", "setting")} for record in records]
        parts = [f"# {self.machine['device']}{', tiny networks' * self.setting['tiny']}", markdown_table(summary)]
        for record in records:
            if record.get("rows"):
                parts += [f"## {record['name']}", markdown_table(record["rows"])]
        write_file(self.folder / "results.md", "\n\n".join([*parts, ""]).encode())


def command_of(item: Item, args: Arguments, folder: Path) -> list[str]:
    places = {"python": sys.executable, "folder": str(folder / item.name), "folders": str(folder)}
    quoted = {name: shlex.quote(place) for name, place in places.items()}
    return shlex.split(item.command.format(device=args.device, tiny=item.tiny if args.tiny else "", **quoted))


def run_item(item: Item, args: Arguments, results: Results, seconds: float) -> None:
    """Run an item in a process of its own, and end that after `seconds`."""
    from vdmini_diffusers.cli.script import OUT_OF_TIME

    folder = results.folder / item.name
    folder.mkdir(exist_ok=True)
    command = command_of(item, args, results.folder)
    # Nothing is downloaded, and compiled kernels are kept for the next run.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_CACHE_DIR": str(results.folder / "compiled")}
    log = folder / "log.txt"
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        results.save(item, state="unfinished")  # as it stays if this process is killed
        status = process.wait(max(0.0, start + seconds - time.monotonic()))
        state = {0: "done", OUT_OF_TIME: "timed out"}.get(status, "failed")
    except subprocess.TimeoutExpired:
        state = "timed out"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
        process.wait()
    lines = log.read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    results.save(
        item, state=state, seconds=round(time.monotonic() - start, 1), **{"last line of the log": last[-300:]}
    )


def run_items(items: Sequence[Item], args: Arguments, results: Results, end: float) -> None:
    """Run those that are not done, one after the other, until `end` on the monotonic clock; failed ones come last, and
    those that go on from another's results wait until that is done."""
    for item in sorted(items, key=lambda item: results.state(item.name) == "failed"):
        left = end - time.monotonic()
        may_run = item.after is None or results.state(item.after) == "done"
        if may_run and results.state(item.name) != "done" and left > 0:
            run_item(item, args, results, min(item.seconds, left))
            print(f"{item.name}: {results.state(item.name)}", flush=True)
    results.write()


def main(args: Arguments) -> None:
    end = time.monotonic() + args.seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the item's process as well
    results = Results(args, ITEMS)
    run_items([item for item in ITEMS if item.name in args.only], args, results, end)
    print((results.folder / "results.md").read_text())


if __name__ == "__main__":
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()  # pyright: ignore[reportArgumentType] - a dataclass
    put_on_path(arguments)
    from vdmini_diffusers.cli.script import run

    run(lambda: main(arguments))
