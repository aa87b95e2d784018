"""Noise levels: EDM's coefficients (Eq. 2), Karras' levels, and the instance noise of the critics (Eq. 5).

Draws come from one generator per sample, so that what a sample gets does not depend on its neighbours in the batch,
nor on how many processes share a batch.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.utils.torch_utils import randn_tensor


SIGMA_MIN, SIGMA_MAX = 0.002, 700.0  # SVD's
NUM_INSTANCE_LEVELS = 1000  # SF-V's T_d; t' runs over 1 to 999


class EDMCoefficients(NamedTuple):
    """`D(x; sigma) = skip * x + out * f(in_ * x; noise)`: the paper's c_0, c_1, c_2, c_3. Each of sigma's shape."""

    skip: torch.Tensor
    out: torch.Tensor
    in_: torch.Tensor
    noise: torch.Tensor


def edm_coefficients(sigmas: torch.Tensor) -> EDMCoefficients:
    """Eq. 2 with SVD's values: a v-prediction network, conditioned on a quarter of ln sigma."""
    scale = (sigmas**2 + 1).sqrt()
    return EDMCoefficients(skip=1 / scale**2, out=-sigmas / scale, in_=1 / scale, noise=0.25 * sigmas.log())


def karras_sigmas(num_levels: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> torch.Tensor:
    """`num_levels` noise levels, evenly spaced in the seventh root, largest first; float64."""
    low, high = sigma_min ** (1 / 7), sigma_max ** (1 / 7)
    return torch.linspace(high, low, num_levels, dtype=torch.float64) ** 7


def instance_noise_probabilities(p_mean: float = -1.0, p_std: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The levels sigma_t' for t' = 1 to 999, smallest first, and their probabilities (SF-V, followed by Eq. 5).

    The log-normal's mass between neighbouring levels: `erf(z(sigma_t')) - erf(z(sigma_{t'-1}))`, normalised. SF-V
    prints `P_std = -1`; its sign drops out, so a positive one is expected here.

    Raises:
        ValueError: if `p_std` is not positive, or the log-normal lies beside all levels.
    """
    if p_std <= 0:
        raise ValueError(f"`p_std` is a standard deviation and must be positive, not {p_std}.")
    sigmas = karras_sigmas(NUM_INSTANCE_LEVELS).flip(0)
    edges = torch.erf((sigmas.log() - p_mean) / (math.sqrt(2) * p_std))
    mass = edges.diff()
    if not mass.sum() > 0:
        raise ValueError(
            f"`p_mean` {p_mean} and `p_std` {p_std} leave no noise level from {SIGMA_MIN} to {SIGMA_MAX}."
        )
    return sigmas[1:], mass / mass.sum()


def choose(
    values: torch.Tensor, probabilities: torch.Tensor | None, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """One of `values` per generator, by `probabilities` (uniform if None); float32, on the CPU."""
    weights = torch.ones(len(values)) if probabilities is None else probabilities
    rows = [torch.multinomial(weights, 1, generator=generator) for generator in generators]
    return values[torch.cat(rows)].float()


def gaussian_like(latents: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Standard normal noise of `latents`' shape, device and dtype; one generator (CPU) per sample."""
    return randn_tensor(latents.shape, generator=list(generators), device=latents.device, dtype=latents.dtype)


def per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`(batch,)` to `(batch, 1, ...)` on `like`'s device, to be multiplied with it."""
    return values.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))
