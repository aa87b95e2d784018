"""Short distillations of demo students, each in a process of its own and by one recipe: what benchmarks compare."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

from tqdm.auto import tqdm

from vdmini_diffusers.demo.teachers import T2V_DISTILLATION


Job = TypeVar("Job")


def as_trained(jobs: Sequence[Job], train: Callable[[Job], object], num_parallel: int) -> Iterator[Job]:
    """Train some at once, and yield each as it is done. After an error no further one begins."""
    with ThreadPoolExecutor(num_parallel) as pool:
        futures = {pool.submit(train, job): job for job in jobs}
        try:
            for future in tqdm(as_completed(futures), total=len(jobs), desc="runs"):
                future.result()
                yield futures[future]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def recipe_flags(
    *,
    teacher: Path,
    student: Path,
    latents: Path,
    output_dir: Path,
    seed: int,
    max_train_steps: int,
    train_batch_size: int,
    learning_rate: float,
    discriminator_learning_rate: float,
    mixed_precision: str,
    ode_teacher: Path | None = None,
) -> dict[str, object]:
    """Flags of `training/train_icmd.py`, by name. MCA starts after 30 % of the steps, as in section 4.2.

    Args:
        ode_teacher: for text to video: the multi-step pipeline that the teacher was made of.
    """
    of_task: dict[str, object] = {}
    if ode_teacher is not None:
        of_task = {"task": "t2v", "ode_teacher_model_name_or_path": ode_teacher, "temporal_dropout": 0.0}
        of_task |= T2V_DISTILLATION
    return {
        **of_task,
        "pretrained_teacher_model_name_or_path": teacher,
        "pretrained_student_model_name_or_path": student,
        "precomputed_data_dir": latents,
        "output_dir": output_dir,
        "seed": seed,
        "max_train_steps": max_train_steps,
        "train_batch_size": train_batch_size,
        "gradient_accumulation_steps": 1,
        "learning_rate": learning_rate,
        "lr_scheduler": "cosine",
        "discriminator_learning_rate": discriminator_learning_rate,
        "mca_start_step": round(0.3 * max_train_steps),
        "critic_warmup_steps": round(0.2 * max_train_steps),
        "mixed_precision": mixed_precision,
        "checkpointing_steps": 100,
        "checkpoints_total_limit": 1,
    }


def complete_run(script: Path, flags: Mapping[str, object], folder: Path) -> None:
    """Run a training script that writes into `folder`. Goes on if it was stopped, and does nothing if it is done.

    What it prints is appended to `log.txt` in the folder. Its checkpoints go once it is done.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    if (folder / "model_index.json").exists():
        return
    given = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        subprocess.run([sys.executable, str(script), *given], check=True, stdout=log, stderr=subprocess.STDOUT)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
