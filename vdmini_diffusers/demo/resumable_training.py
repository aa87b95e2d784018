"""The loop that trains the demo teachers' networks: it stops when its time is over, and goes on where it stopped."""

import contextlib
import io
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from vdmini_diffusers.serialization.atomic import write_file


logger = logging.getLogger(__name__)

ROWS_PER_FILE = 64


class OutOfTimeError(Exception):
    """The time that a run was given is over. Its state is saved."""


class Deadline:
    """So many seconds from now on, or any number of them (`None`)."""

    def __init__(self, seconds: float | None):
        self.end = None if seconds is None else time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        return self.end is not None and time.monotonic() > self.end

    def check(self) -> None:
        """Raises `OutOfTimeError` if it is over."""
        if self.is_over:
            raise OutOfTimeError


def train_steps(
    path: Path,
    networks: Mapping[str, nn.Module],
    loss_at: Callable[[int], Tensor],
    *,
    num_steps: int,
    learning_rate: float,
    deadline: Deadline,
    ema_decay: float | None = None,
    checkpointing_steps: int = 100,
) -> None:
    """Train networks together by AdamW with a cosine schedule, and leave the averaged weights in them.

    What is drawn in a step depends on the step only, so that a run that was stopped ends where another does.

    Args:
        path: file of the state, which is read if it is there.
        loss_at: the loss of a step, counted from 0.
        deadline: the state is saved, and `OutOfTimeError` raised, when it is over.
        ema_decay: decay rate of the weights' average; without it the last weights stay.
    """
    device = next(next(iter(networks.values())).parameters()).device
    parameters = [p for network in networks.values() for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-3, fused=True)
    lr_scheduler = get_cosine_schedule_with_warmup(optimizer, 100, num_steps)
    parts: dict[str, Any] = {**networks, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
    ema = None if ema_decay is None else EMAModel(parameters, decay=ema_decay)
    if ema is not None:
        parts["ema"] = ema
    start = load_state(path, parts, device)
    losses, started = [], time.monotonic()
    for step in tqdm(range(start, num_steps), initial=start, total=num_steps, desc=path.stem):
        torch.manual_seed(1_000_003 * (step + 1))
        with quick_attention(device):
            loss = loss_at(step)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.step(parameters)
        losses.append(loss.item())
        if (step + 1) % checkpointing_steps == 0 or step + 1 == num_steps or deadline.is_over:
            pace = (time.monotonic() - started) / (step + 1 - start)
            logger.info("%s step %d: loss %.4f, %.2f s a step", path.stem, step + 1, np.mean(losses), pace)
            losses.clear()
            save_state(path, step + 1, parts)
            if step + 1 < num_steps:
                deadline.check()
    if ema is not None:
        ema.copy_to(parameters)


def cached_rows(
    folder: Path, num_rows: int, make: Callable[[Sequence[range]], Iterable[Mapping[str, Any]]], deadline: Deadline
) -> dict[str, Any]:
    """Columns, tensors or lists, of so many rows. Those that are made stay in `folder`, for the next start.

    Args:
        make: the columns of each of these ranges of rows, one after the other.

    Raises:
        OutOfTimeError: if the deadline is over before all are made.
    """
    starts = range(0, num_rows, ROWS_PER_FILE)
    ranges = {folder / f"{start:06}.pt": range(start, min(start + ROWS_PER_FILE, num_rows)) for start in starts}
    missing = {file: rows for file, rows in ranges.items() if not file.exists()}
    folder.mkdir(parents=True, exist_ok=True)
    made = zip(missing, make(list(missing.values())), strict=True)
    for file, columns in tqdm(made, total=len(missing), desc=folder.name, unit="file"):
        write_tensors(columns, file)
        deadline.check()
    parts = [torch.load(file, weights_only=True) for file in ranges]
    return {name: joined([part[name] for part in parts]) for name in parts[0]}


def joined(columns: Sequence[Any]) -> Any:
    if isinstance(columns[0], Tensor):
        return torch.cat(list(columns))
    return [value for column in columns for value in column]


def quick_attention(device: torch.device) -> Any:
    """On a CPU the fused kernel's backward pass took a third of a step in bfloat16, at 16 frames a sequence."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()


def write_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    """Written aside and renamed, so that a kill leaves the last whole file."""
    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer)
    write_file(path, buffer.getvalue())


def save_state(path: Path, step: int, parts: Mapping[str, Any]) -> None:
    """The step and the state dict of each part: networks, optimiser, schedule, average."""
    write_tensors({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, path)


def load_state(path: Path, parts: Mapping[str, Any], device: torch.device) -> int:
    """Load what `save_state` wrote into the parts, and return the step; 0 if there is no such file."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location=device)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]
