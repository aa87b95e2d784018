"""Losses on data by which first-order Taylor importances are computed."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from vdmini_diffusers.distillation.noise import gaussian_like
from vdmini_diffusers.distillation.tasks.single_step import SingleStepTask
from vdmini_diffusers.families import UNetFamily


def reconstruction_losses(
    family: UNetFamily,
    clips: Dataset[Any],
    num_clips: int,
    batch_size: int = 4,
    seed: int = 0,
    device: torch.device | None = None,
) -> Callable[[nn.Module], Iterator[Tensor]]:
    """The losses of SF-V's objective on the first clips, each at every noise level that is trained on.

    They are towards the clips themselves: towards the teacher's own output, the gradient at the teacher is zero.

    Args:
        clips: precomputed latents, as `PrecomputedLatents` reads them.
        device: where the denoiser runs; by default where its weights are, which offloading takes elsewhere.

    Returns:
        Of a denoiser, one loss after another, for `prune_unet_channels`.

    Raises:
        ValueError: if there are fewer clips.
    """
    num_present = len(clips)  # pyright: ignore[reportArgumentType] - of a data set with a length
    if not 1 <= num_clips <= num_present:
        raise ValueError(f"`num_clips` is between 1 and the {num_present} clips that are there, not {num_clips}.")
    task = SingleStepTask(family)

    def losses(denoiser: nn.Module) -> Iterator[Tensor]:
        place = device or next(denoiser.parameters()).device
        for start in range(0, num_clips, batch_size):
            rows = range(start, min(start + batch_size, num_clips))
            batch = default_collate([clips[i] for i in rows])
            batch = {name: value.to(place) for name, value in batch.items() if isinstance(value, Tensor)}
            generators = [torch.Generator().manual_seed(seed + i) for i in rows]
            inputs = task.prepare(batch, generators)
            noise = gaussian_like(inputs.clean_latents, generators)
            for sigma in task.sigmas.tolist():
                levels = torch.full((len(rows),), sigma, device=place)
                noisy = task.add_noise(inputs.clean_latents, noise, levels)
                denoised = task.denoise(denoiser, noisy, levels, inputs.conditioning)
                yield torch.stack(list(task.losses(denoised, inputs).values())).sum()

    return losses
