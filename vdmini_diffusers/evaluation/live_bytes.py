"""How much memory a piece of work takes: counted by its tensors, and measured by the process."""

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operators make while they live, at the peak.

    Fake tensors count as real ones do, so that work is counted which no memory would hold.

    Args:
        known: tensors that are left out, as they were there before.

    Attributes:
        peak: the most bytes that lived at once.
    """

    def __init__(self, known: Iterable[torch.Tensor]):
        super().__init__()
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        return made

    def _forget(self, key: int, num_bytes: int) -> None:
        self.seen.discard(key)
        self.live -= num_bytes


def _resident(name: str) -> int:
    """`VmRSS` or `VmHWM`, of Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def grown_by(work: Callable[[], object]) -> int:
    """Bytes by which the process grew at its peak while it did this. On Linux only."""
    # What earlier work has freed would else be kept by the C library and taken again, and nothing would grow.
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before
