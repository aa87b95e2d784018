"""Short distillations of demo students, each in a process of its own and by one recipe: what benchmarks compare."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm

from vdmini_diffusers.demo.run_results import keep_settings
from vdmini_diffusers.demo.teachers import I2V_TEACHER, T2V_DISTILLATION


Job = TypeVar("Job")


@dataclass(kw_only=True)
class ComparisonArguments:
    """What every student of a comparison is trained with and measured on. By default little, for a CPU."""

    output_dir: Path = field(metadata={"help": "Where runs and results go."})
    teacher: Path = field(default=I2V_TEACHER, metadata={"help": "Pipeline folder of a few-step demo teacher."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "One run per row and seed."})
    max_train_steps: int = field(
        default=100, metadata={"help": "Optimiser steps of each run. MCA starts after 30 %% of them, as in the paper."}
    )
    train_batch_size: int = field(default=2, metadata={"help": "Clips per step."})
    discriminator_learning_rate: float = field(default=1e-4, metadata={"help": "The heads' rate (paper: 1e-5)."})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16."})
    num_train_clips: int = field(default=512, metadata={"help": "Clips to train on."})
    num_clips: int = field(default=512, metadata={"help": "Held-out scenes to measure on."})
    num_decoded_clips: int = field(
        default=24, metadata={"help": "The first of them, which the VAE decodes: for what the latents do not show."}
    )
    num_parallel: int = field(
        default=1, metadata={"help": "Runs at once: on a CPU as many as cores, with OMP_NUM_THREADS=1."}
    )

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`--seeds` are one or more different numbers, not {self.seeds}.")
        if not 1 <= self.num_decoded_clips <= self.num_clips:
            raise ValueError(
                f"`--num_decoded_clips` is between 1 and the {self.num_clips} of `--num_clips`, not"
                f" {self.num_decoded_clips}."
            )
        for name in ("max_train_steps", "train_batch_size", "num_train_clips", "num_parallel"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name}` is 1 at least, not {getattr(self, name)}.")

    def keep_settings(
        self, free: Sequence[str] = (), more: Mapping[str, object] | None = None, growing: Sequence[str] = ()
    ) -> None:
        """Write `settings.json` into the folder, which is made, and refuse one that was begun with other settings.

        Args:
            free: the settings that may change from start to start, beside seeds, of which more are welcome.
            more: what else must not change.
            growing: what of that may get further entries.

        Raises:
            ValueError: if the folder was begun with others.
        """
        self.output_dir.mkdir(parents=True, exist_ok=True)
        free = ("output_dir", "seeds", "num_parallel", *free)
        fixed: dict[str, Any] = {name: value for name, value in asdict(self).items() if name not in free}
        keep_settings(self.output_dir, fixed | dict(more or {}), self.teacher, growing)


def as_trained(jobs: Sequence[Job], train: Callable[[Job], object], num_parallel: int) -> Iterator[Job]:
    """Train some at once, and yield each as it is done. After an error no further one begins."""
    ended = threading.Event()

    def train_unless_ended(job: Job) -> bool:
        if ended.is_set():
            return False
        try:
            train(job)
        except BaseException:
            ended.set()
            raise
        return True

    with ThreadPoolExecutor(num_parallel) as pool:
        futures = {pool.submit(train_unless_ended, job): job for job in jobs}
        try:
            for future in tqdm(as_completed(futures), total=len(jobs), desc="runs"):
                if future.result():
                    yield futures[future]
        finally:
            ended.set()


def recipe_flags(
    args: ComparisonArguments,
    *,
    student: Path,
    latents: Path,
    output_dir: Path,
    seed: int,
    learning_rate: float,
    ode_teacher: Path | None = None,
) -> dict[str, object]:
    """Flags of `training/train_icmd.py`, by name. MCA starts after 30 % of the steps, as in section 4.2.

    Args:
        learning_rate: the denoiser's, before its cosine.
        ode_teacher: for text to video: the multi-step pipeline that the teacher was made of.
    """
    of_task: dict[str, object] = {}
    if ode_teacher is not None:
        of_task = {"task": "t2v", "ode_teacher_model_name_or_path": ode_teacher, "temporal_dropout": 0.0}
        of_task |= T2V_DISTILLATION
    return {
        **of_task,
        "pretrained_teacher_model_name_or_path": args.teacher,
        "pretrained_student_model_name_or_path": student,
        "precomputed_data_dir": latents,
        "output_dir": output_dir,
        "seed": seed,
        "max_train_steps": args.max_train_steps,
        "train_batch_size": args.train_batch_size,
        "gradient_accumulation_steps": 1,
        "learning_rate": learning_rate,
        "lr_scheduler": "cosine",
        "discriminator_learning_rate": args.discriminator_learning_rate,
        "mca_start_step": round(0.3 * args.max_train_steps),
        "critic_warmup_steps": round(0.2 * args.max_train_steps),
        "mixed_precision": args.mixed_precision,
        "checkpointing_steps": 100,
        "checkpoints_total_limit": 1,
    }


def complete_run(script: Path, flags: Mapping[str, object], folder: Path) -> None:
    """Run a training script that writes into `folder`. Goes on if it was stopped, and does nothing if it is done.

    What it prints is appended to `log.txt` in the folder. Its checkpoints go once it is done.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    if not (folder / "model_index.json").exists():
        given = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("a") as log:
            subprocess.run([sys.executable, str(script), *given], check=True, stdout=log, stderr=subprocess.STDOUT)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
