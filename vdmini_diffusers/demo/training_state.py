"""What the scripts that train the demo teachers have in common."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vdmini_diffusers.serialization.atomic import write_file


def to_tensor(frames: np.ndarray) -> torch.Tensor:
    """uint8 `(..., height, width, 3)` to float `(..., 3, height, width)` in [-1, 1]."""
    return torch.from_numpy(frames).movedim(-1, -3).float() / 127.5 - 1


def save_state(state: dict[str, Any], path: Path) -> None:
    """Written aside and renamed, so that a kill leaves the last whole state."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_file(path, buffer.getvalue())
