"""Training state on disk, such that a kill at any moment costs no more than the steps since the last checkpoint."""

import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.tensor import DTensor


logger = get_logger(__name__, log_level="INFO")

NAME = re.compile(r"checkpoint-([0-9]+)")  # a copy under another name, e.g. checkpoint-best, is left alone
STATE = "state.pt"
PARTS = "parts"  # of tensors that are divided over processes, in the format of torch.distributed.checkpoint
IN_PARTS = "in parts"
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
        self.step, self.epoch, self.batch = (int(state[name]) for name in ("step", "epoch", "batch"))


class Checkpoints:
    """Folders `checkpoint-<step>` in `output_dir`, each with all that `accelerator` has prepared, and `others`.

    `others` are alike on all processes, except for the progress. They are written as tensors and plain values, and
    nothing else is read back. Tensors that are divided over processes are written, and read, in parts.

    Args:
        resume_from: `"latest"`, the name of a checkpoint in `output_dir`, a checkpoint's folder, or None to start
            anew.
        total_limit: number of newest checkpoints to keep.
    """

    def __init__(self, output_dir: Path, resume_from: str | None = "latest", total_limit: int | None = None):
        if total_limit is not None and total_limit < 1:
            raise ValueError(f"`checkpoints_total_limit` must be at least 1, not {total_limit}.")
        self.output_dir = output_dir
        self.resume_from = resume_from
        self.total_limit = total_limit

    def choose(self) -> Path | None:
        """The checkpoint to go on from, if there is one. Reads no tensor.

        Raises:
            ValueError: if the requested checkpoint is missing or damaged; or if training would not start from the
                latest, and so mix with what is there.
        """
        whole = self.complete()
        if self.resume_from == "latest":
            return whole[0] if whole else None
        folder = None if self.resume_from is None else self._named(self.resume_from)
        start = _step(folder) if folder is not None else 0
        if later := [found for found in whole if _step(found) > start]:
            raise ValueError(
                f"{self.output_dir} holds {later[0].name}, which is later than where training would start. Remove it,"
                " choose another `--output_dir`, or go on from 'latest'."
            )
        return folder

    def resume(self, accelerator: Accelerator, others: Mapping[str, Stateful]) -> Progress:
        """Load the checkpoint to go on from, if there is one.

        Raises:
            ValueError: as `choose`, or if the checkpoint cannot be read, holds other things than this run needs, or
                weights that are not finite.
        """
        progress = Progress()
        self.others = {"progress": progress, **others}
        folder = self.choose()
        if self.resume_from == "latest":
            for newer in self._found():
                if newer == folder:
                    break
                logger.warning("%s is skipped: %s", newer, damage(newer))
        if folder is not None:
            logger.info("going on from %s", folder)
            self._load(folder, accelerator)
        return progress

    def _load(self, folder: Path, accelerator: Accelerator) -> None:
        try:
            state = torch.load(folder / STATE, weights_only=True, map_location="cpu")
            names = set(state)
        except Exception as error:  # torch and pickle raise nearly anything for a damaged file
            raise ValueError(_unusable(folder, f"{STATE} cannot be read")) from error
        if names != set(self.others):
            raise ValueError(
                f"{folder} holds {', '.join(sorted(map(str, names)))}, and this run needs"
                f" {', '.join(sorted(self.others))}: resume with the settings it was made with, or choose another"
                " `--output_dir`."
            )
        try:
            accelerator.load_state(str(folder))
            accelerator.step = 0  # of accumulation, whose number of batches may be another now
            positions = state["progress"]  # of each process: streams are not of one length
            rank = accelerator.process_index
            state["progress"] = positions[rank if rank < len(positions) else 0]
            parts: dict[str, torch.Tensor] = {}
            for name, other in self.others.items():
                if name != "progress":
                    state[name] = _with_parts(state[name], other.state_dict(), name, parts)
            if parts:
                torch.distributed.checkpoint.load(parts, checkpoint_id=folder / PARTS)  # in place
            for name, other in self.others.items():
                other.load_state_dict(state[name])
        except Exception as error:  # as above, and for weights of another shape
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                _unusable(folder, f"it is damaged, or was made with other settings ({reason})")
            ) from error
        if found := _not_finite(accelerator, state):
            raise ValueError(_unusable(folder, f"{found} hold values that are not finite"))

    def save(self, accelerator: Accelerator, progress: Progress) -> Path:
        """Write a checkpoint aside, rename it, then remove the oldest beyond the limit.

        Raises:
            FloatingPointError: if weights, averages or critics are not finite. Nothing is written.
            OSError: if it cannot be written; earlier checkpoints are left as they are.
        """
        folder = self.output_dir / f"checkpoint-{progress.step:06d}"
        aside = self.output_dir / f".{folder.name}.tmp"
        state = {name: other.state_dict() for name, other in self.others.items()}
        if found := _not_finite(accelerator, state):
            raise FloatingPointError(
                f"After step {progress.step}, {found} hold values that are not finite. Nothing was saved since the"
                " last checkpoint: run the same command again with a lower learning rate; on a GPU, bf16 is safer"
                " than fp16."
            )
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        accelerator.wait_for_everyone()
        try:
            accelerator.save_state(str(aside))
            state["progress"] = gather_object([state["progress"]])
            parts: dict[str, DTensor] = {}
            whole = {name: _without_parts(part, name, parts) for name, part in state.items()}
            if parts:
                torch.distributed.checkpoint.save(parts, checkpoint_id=aside / PARTS)
            if accelerator.is_main_process:
                torch.save(whole, aside / STATE)
        # Of Python, torch and safetensors, for a full disk.
        except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
            shutil.rmtree(aside, ignore_errors=True)
            last = next(iter(self.complete()), None)
            raise OSError(
                f"The checkpoint of step {progress.step} could not be written to {self.output_dir}: {error}. The last"
                f" good one is {last or 'none'}; mend what is wrong (a full disk?) and run the same command again."
            ) from error
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self._publish(aside, folder)
        accelerator.wait_for_everyone()
        return folder

    def _publish(self, aside: Path, folder: Path) -> None:
        """Give a written checkpoint its name, and remove the oldest."""
        (aside / MANIFEST).write_text(json.dumps(_sizes(aside), indent=2), encoding="utf-8")
        for file in aside.rglob("*"):  # on the disk before the name says so
            _flush(file)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(aside, folder)
        if self.total_limit is not None:
            for old in self.complete()[self.total_limit :]:
                shutil.rmtree(old)

    def complete(self) -> list[Path]:
        """Whole checkpoints, newest first."""
        return [folder for folder in self._found() if damage(folder) is None]

    def _found(self) -> list[Path]:
        found = [path for path in self.output_dir.glob("checkpoint-*") if NAME.fullmatch(path.name)]
        return sorted(found, key=_step, reverse=True)

    def _named(self, name: str) -> Path:
        """The whole checkpoint of that path, or of that name in `output_dir`."""
        folder = Path(name) if Path(name).is_dir() else self.output_dir / name
        if not folder.is_dir() and (wanted := NAME.fullmatch(name)):  # however many zeros it is written with
            folder = next((found for found in self._found() if _step(found) == int(wanted[1])), folder)
        if not folder.is_dir():
            there = ", ".join(found.name for found in self.complete()) or "none"
            raise ValueError(f"There is no checkpoint {name}, neither as a folder nor in {self.output_dir} ({there}).")
        if not NAME.fullmatch(folder.resolve().name):
            raise ValueError(f"{folder} is not named as a checkpoint is, checkpoint-<step>.")
        if (what := damage(folder)) is not None:
            raise ValueError(f"{folder} cannot be resumed from: {what}. Use 'latest' for the newest whole one.")
        return folder


def _without_parts(state: Any, path: str, parts: dict[str, DTensor]) -> Any:
    """The state with a note in the place of each tensor that is divided, which is added to `parts` by its path."""
    if isinstance(state, DTensor):
        parts[path] = state
        return {IN_PARTS: path}
    if isinstance(state, Mapping):
        return {key: _without_parts(value, f"{path}.{key}", parts) for key, value in state.items()}
    if isinstance(state, list):
        return [_without_parts(value, f"{path}.{i}", parts) for i, value in enumerate(state)]
    return state


def _with_parts(state: Any, present: Any, path: str, parts: dict[str, torch.Tensor]) -> Any:
    """A state that was read, with the present tensors in the places of notes; they are added to `parts`."""
    if isinstance(state, Mapping):
        if set(state) == {IN_PARTS}:
            parts[path] = present
            return present
        known = present if isinstance(present, Mapping) else {}  # an optimiser has no moments yet
        return {key: _with_parts(value, known.get(key), f"{path}.{key}", parts) for key, value in state.items()}
    if isinstance(state, list) and isinstance(present, list):
        pairs = itertools.zip_longest(state, present[: len(state)])
        return [_with_parts(value, now, f"{path}.{i}", parts) for i, (value, now) in enumerate(pairs)]
    return state


def _step(folder: Path) -> int:
    return int(folder.resolve().name.rpartition("-")[2])


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    if not (folder / MANIFEST).is_file():
        return f"it has no {MANIFEST}, so it was not written to its end"
    try:
        expected: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return f"its {MANIFEST} cannot be read"
    if not isinstance(expected, dict) or STATE not in expected:
        return f"its {MANIFEST} does not list the files of a checkpoint"
    found = _sizes(folder)
    for name in sorted(set(expected) | set(found)):
        if name not in found or expected.get(name) != found[name]:
            return f"{name} has {found.get(name)} bytes instead of {expected.get(name)}"
    return None


def _unusable(folder: Path, what: str) -> str:
    return f"{folder} cannot be resumed from: {what}. Remove it to go on from an older one, or start anew."


def _not_finite(accelerator: Accelerator, state: Mapping[str, Any]) -> str | None:
    """Which of the trained weights and of `state` hold NaN or infinity on any process, or None."""
    weights = [weight for model in accelerator._models for weight in model.parameters()]
    groups = {"the trained weights": weights, **{f"those of {name}": _tensors(part) for name, part in state.items()}}
    bad = torch.tensor([float(not _finite(group)) for group in groups.values()], device=accelerator.device)
    found: Any = accelerator.reduce(bad, "sum")  # all processes must stop, or none
    return ", ".join(name for name, count in zip(groups, found.tolist(), strict=True) if count) or None


def _finite(tensors: Iterable[torch.Tensor]) -> bool:
    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    return all(bool(tensor.isfinite().all()) for tensor in local if tensor.is_floating_point())


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, (Mapping, list, tuple)):
        for part in state.values() if isinstance(state, Mapping) else state:
            yield from _tensors(part)


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
