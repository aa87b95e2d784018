"""Latents to frames by one matrix: blurred, but a hundred times cheaper than a VAE's decoder.

Which way things move can be told from its frames as from the decoder's, not how sharp they are.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


NEIGHBOURHOOD = 5  # latent positions each way across that a patch of pixels is predicted from


class LinearDecoder:
    """Predicts the pixels below each latent position from the latents around it, by least squares.

    Args:
        latents: `(clips, frames, channels, height, width)`, of some clips.
        frames: the clips, uint8 `(clips, frames, scale * height, scale * width, 3)`.
    """

    def __init__(self, latents: Tensor, frames: np.ndarray):
        self.scale = frames.shape[2] // latents.shape[3]
        pixels = torch.from_numpy(frames).flatten(0, 1).movedim(-1, 1).double() / 255
        patches = F.unfold(pixels, self.scale, stride=self.scale).movedim(1, 2).flatten(0, 1)
        around = self._around(latents).flatten(0, 1).double()
        ridge = 1e-3 * torch.eye(around.shape[1], dtype=torch.float64)
        self.weight = torch.linalg.solve(around.T @ around + ridge, around.T @ patches).float()

    def __call__(self, latents: Tensor) -> np.ndarray:
        """Frames of `(clips, frames, channels, height, width)`, uint8 `(clips, frames, height, width, 3)`."""
        *clips, _, height, width = latents.shape
        patches = (self._around(latents) @ self.weight).movedim(1, 2)
        pixels = F.fold(patches, (self.scale * height, self.scale * width), self.scale, stride=self.scale)
        pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1)
        return pixels.unflatten(0, clips).numpy()

    @staticmethod
    def _around(latents: Tensor) -> Tensor:
        """`(frames of all clips, positions, features)`; the last feature is 1."""
        padded = F.pad(latents.flatten(0, 1).float().cpu(), [NEIGHBOURHOOD // 2] * 4, mode="replicate")
        around = F.unfold(padded, NEIGHBOURHOOD).movedim(1, 2)
        return torch.cat([around, torch.ones_like(around[..., :1])], dim=-1)
