"""Hyperparameters after a resume: the new ones hold, though optimisers and schedules restore their old ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR


@contextmanager
def keeping_hyperparameters(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """While a state is loaded, the optimiser takes its moments from it, but keeps its learning rate and betas."""
    kept = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    yield
    for group, options in zip(optimizer.param_groups, kept, strict=True):
        group.update(options)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr_scheduler: Any) -> None:
    """Set the rate of the schedule's present step, computed from the optimiser's own initial rates."""
    if not isinstance(lr_scheduler, LambdaLR):  # all of `get_scheduler`'s are
        return
    lr_scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    for group, factor in zip(optimizer.param_groups, lr_scheduler.lr_lambdas, strict=True):
        group["lr"] = group["initial_lr"] * factor(lr_scheduler.last_epoch)
    lr_scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
