"""What the scripts that train the demo teachers have in common."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vdmini_diffusers.serialization.atomic import write_file


def to_tensor(frames: np.ndarray) -> Tensor:
    """uint8 `(..., height, width, 3)` to float `(..., 3, height, width)` in [-1, 1]."""
    return torch.from_numpy(frames).movedim(-1, -3).float() / 127.5 - 1


def picture_loss(decoded: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """L1 on pixels, and half of that on their gradients, which keeps edges; `(n, 3, height, width)` each."""
    gradient_loss = sum(F.l1_loss(decoded.diff(dim=dim), pixels.diff(dim=dim)) for dim in (-1, -2))
    return F.l1_loss(decoded, pixels), torch.as_tensor(0.5 * gradient_loss)


def write_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    """Written aside and renamed, so that a kill leaves the last whole file."""
    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer)
    write_file(path, buffer.getvalue())


def save_state(path: Path, step: int, parts: Mapping[str, Any]) -> None:
    """The step and the state dict of each part: models, optimiser, schedule, average."""
    write_tensors({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, path)


def load_state(path: Path, parts: Mapping[str, Any], device: torch.device) -> int:
    """Load what `save_state` wrote into the parts, and return the step; 0 if there is no such file."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location=device)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]
