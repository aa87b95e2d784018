"""Training state on disk, such that a kill at any moment costs no more than the steps since the last checkpoint."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from safetensors import SafetensorError


logger = get_logger(__name__, log_level="INFO")

STATE = "state.pt"
MANIFEST = "files.json"  # written last: a folder without it, or that disagrees with it, is not a checkpoint


class Stateful(Protocol):
    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> Any: ...


@dataclass
class Progress:
    """How far training is: optimiser steps done, and the place in the data."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches of this epoch that this process has taken

    def state_dict(self) -> dict[str, int]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class Checkpoints:
    """Folders `checkpoint-<step>` in `output_dir`, each with all that `accelerator` has prepared, and `others`.

    `others` are alike on all processes, but for the progress. They are written as tensors and plain values, which is
    all that is read back.

    Args:
        resume_from: `"latest"`, a checkpoint's folder, or None to start anew.
        total_limit: keep that many, the newest.
    """

    def __init__(self, output_dir: Path, resume_from: str | None = "latest", total_limit: int | None = None):
        if total_limit is not None and total_limit < 1:
            raise ValueError(f"`checkpoints_total_limit` must be at least 1, not {total_limit}.")
        self.output_dir = output_dir
        self.resume_from = resume_from
        self.total_limit = total_limit

    def resume(self, accelerator: Accelerator, others: Mapping[str, Stateful]) -> Progress:
        """Load the checkpoint to go on from, if there is one.

        Raises:
            ValueError: if the checkpoint that was asked for is missing or damaged, or holds other things; or if
                training would not start from the latest, and so mix with what is there.
        """
        progress = Progress()
        self.others = {"progress": progress, **others}
        folder = self._chosen()
        if self.resume_from != "latest" and (later := self._later_than(folder)):
            raise ValueError(
                f"{self.output_dir} holds {later[0].name}, which is later than where training would start. Remove it,"
                " choose another `--output_dir`, or go on from 'latest'."
            )
        if folder is not None:
            logger.info("going on from %s", folder)
            accelerator.load_state(str(folder))
            accelerator.step = 0  # of accumulation, whose number of batches may be another now
            state = torch.load(folder / STATE, weights_only=True, map_location="cpu")
            if set(state) != set(self.others):
                raise ValueError(
                    f"{folder} holds {', '.join(sorted(state))}, and this run needs {', '.join(sorted(self.others))}:"
                    " resume with the settings it was made with, or choose another `--output_dir`."
                )
            positions = state["progress"]  # of each process: streams are not of one length
            rank = accelerator.process_index
            progress.load_state_dict(positions[rank if rank < len(positions) else 0])
            for name, other in others.items():
                other.load_state_dict(state[name])
        return progress

    def save(self, accelerator: Accelerator, progress: Progress) -> Path:
        """Write a checkpoint aside, rename it, then remove the oldest beyond the limit.

        Raises:
            OSError: if it cannot be written; earlier checkpoints are left as they are.
        """
        folder = self.output_dir / f"checkpoint-{progress.step:06d}"
        aside = self.output_dir / f".{folder.name}.tmp"
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        accelerator.wait_for_everyone()
        try:
            accelerator.save_state(str(aside))
            state = {name: other.state_dict() for name, other in self.others.items()}  # gathered, where it is sharded
            state["progress"] = gather_object([state["progress"]])
            if accelerator.is_main_process:
                torch.save(state, aside / STATE)
        except (OSError, RuntimeError, SafetensorError) as error:  # of Python, torch and safetensors, for a full disk
            shutil.rmtree(aside, ignore_errors=True)
            last = next(iter(self.complete()), None)
            raise OSError(
                f"The checkpoint of step {progress.step} could not be written to {self.output_dir}: {error}. The last"
                f" good one is {last or 'none'}; mend what is wrong (a full disk?) and run the same command again."
            ) from error
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (aside / MANIFEST).write_text(json.dumps(_sizes(aside), indent=2), encoding="utf-8")
            for file in aside.rglob("*"):  # on the disk before the name says so
                _flush(file)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(aside, folder)
            if self.total_limit is not None:
                for old in self.complete()[self.total_limit :]:
                    shutil.rmtree(old)
        accelerator.wait_for_everyone()
        return folder

    def complete(self) -> list[Path]:
        """Whole checkpoints, newest first."""
        found = sorted(self.output_dir.glob("checkpoint-*"), key=lambda path: path.name, reverse=True)
        return [folder for folder in found if damage(folder) is None]

    def _later_than(self, folder: Path | None) -> list[Path]:
        start = _step(folder) if folder is not None else 0
        return [found for found in self.complete() if _step(found) > start]

    def _chosen(self) -> Path | None:
        if self.resume_from is None:
            return None
        if self.resume_from != "latest":
            folder = Path(self.resume_from)
            if (what := damage(folder)) is not None:
                raise ValueError(f"{folder} cannot be resumed from: {what}. Use 'latest' for the newest whole one.")
            return folder
        for folder in sorted(self.output_dir.glob("checkpoint-*"), key=lambda path: path.name, reverse=True):
            if (what := damage(folder)) is None:
                return folder
            logger.warning("%s is skipped: %s", folder, what)
        return None


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    if not (folder / MANIFEST).is_file():
        return f"it has no {MANIFEST}, so it was not written to its end"
    try:
        expected: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError:
        return f"its {MANIFEST} cannot be read"
    found = _sizes(folder)
    for name in sorted(set(expected) | set(found)):
        if expected.get(name) != found.get(name):
            return f"{name} has {found.get(name)} bytes instead of {expected.get(name)}"
    return None


def _sizes(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
