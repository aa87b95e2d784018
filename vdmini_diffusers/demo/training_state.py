"""What the scripts that train the demo teachers have in common."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch


def to_tensor(frames: np.ndarray) -> torch.Tensor:
    """uint8 `(..., height, width, 3)` to float `(..., 3, height, width)` in [-1, 1]."""
    return torch.from_numpy(frames).movedim(-1, -3).float() / 127.5 - 1


def save_state(state: dict[str, Any], path: Path) -> None:
    """Written aside and renamed, so that a kill leaves the last whole state."""
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)
