"""Means of named losses over steps and processes."""

import json
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger


logger = get_logger(__name__, log_level="INFO")


class LossLog:
    """Sums losses on the device, so that nothing waits for it between reports."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0) + loss.detach().float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def report(self, step: int, **others: float) -> None:
        """Log the means since the last report, here and with the trackers."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        reduced: Any = self.accelerator.reduce(means, "mean")
        values = {name: float(mean) for name, mean in reduced.items()} | others
        self.accelerator.log({f"train/{name}": value for name, value in values.items()}, step=step)
        logger.info("step %d: %s", step, json.dumps(values))
        self.sums, self.counts = {}, {}
