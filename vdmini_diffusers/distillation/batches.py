"""Endless batches, and random number generators for each of their samples."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from accelerate.data_loader import skip_first_batches
from torch.utils.data import DataLoader

from vdmini_diffusers.distillation.checkpoints import Progress


def endless_batches(dataloader: DataLoader, progress: Progress) -> Iterator[Mapping[str, torch.Tensor]]:
    """Yield epoch after epoch from the position of `progress`, which is updated with every batch.

    Raises:
        ValueError: if an epoch has no batch.
    """
    while True:
        for shuffled in (dataloader, dataloader.dataset):  # the first where accelerate has prepared it
            if hasattr(shuffled, "set_epoch"):
                shuffled.set_epoch(progress.epoch)
        taken = progress.batch
        for batch in skip_first_batches(dataloader, taken) if taken else dataloader:
            progress.batch += 1
            yield batch
        if progress.batch == 0:
            raise ValueError("The data set has fewer samples than one batch takes, over all processes.")
        progress.epoch, progress.batch = progress.epoch + 1, 0


def sample_generators(seed: int, step: int, first: int, count: int) -> list[torch.Generator]:
    """A generator for each of the samples `first`, `first + 1`, ... of a step, counted over all processes.

    One process with a batch of 2 n and two with n thus draw the same, and a resumed run draws what it would have.
    """
    states = [np.random.SeedSequence((seed, step, first + i)).generate_state(1, np.uint64)[0] for i in range(count)]
    return [torch.Generator().manual_seed(int(state) % 2**63) for state in states]
