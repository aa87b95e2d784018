"""How the demo teachers' VAEs are trained: a small one on pixels, one of a stage more inside it on its features.

Layers at full resolution cost the most by far. A VAE of two downsamplers is trained on pixels first; the innermost
stage of the final one, of three downsamplers, then learns to pass that VAE's features on through fewer latents, at a
twentieth of the cost. Last, the decoder is tuned on pixels.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from torch import Tensor, nn


FEATURE_KL_WEIGHT, PIXEL_KL_WEIGHT = 1e-3, 1e-4  # of means over latent values


def to_tensor(frames: np.ndarray) -> Tensor:
    """uint8 `(..., height, width, 3)` to float `(..., 3, height, width)` in [-1, 1]."""
    return torch.from_numpy(frames).movedim(-1, -3).float() / 127.5 - 1


def decode(vae: AutoencoderKL | AutoencoderKLTemporalDecoder, latents: Tensor, num_frames: int) -> Tensor:
    """Frames of whole clips, as the pipelines of either VAE decode them."""
    frames: dict[str, Any] = {"num_frames": num_frames} if isinstance(vae, AutoencoderKLTemporalDecoder) else {}
    return vae.decode(latents, **frames).sample  # pyright: ignore[reportArgumentType] - any tensor


def edge_aware_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """L1 on pixels, and half of that on their gradients, which keeps edges; `(n, 3, height, width)` each."""
    gradients = [F.l1_loss(decoded.diff(dim=dim), pixels.diff(dim=dim)) for dim in (-1, -2)]
    return F.l1_loss(decoded, pixels) + 0.5 * (gradients[0] + gradients[1])


def reconstruction_loss(vae: Any, pixels: Tensor, num_frames: int, autocast: AbstractContextManager) -> Tensor:
    """The pixel loss of frames `(n, 3, height, width)`, with a light KL that keeps latents near unit scale.

    An encoder that requires no gradient is left alone.
    """
    with autocast:
        with torch.set_grad_enabled(next(vae.encoder.parameters()).requires_grad):
            posterior = vae.encode(pixels).latent_dist
        decoded = decode(vae, posterior.sample(), num_frames).float()
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    return edge_aware_loss(decoded, pixels) + PIXEL_KL_WEIGHT * kl


class InnerStage(nn.Module):
    """The parts of a VAE that one with a stage less does not have: from the encoder's features to the decoder's."""

    def __init__(self, vae: AutoencoderKLTemporalDecoder):
        super().__init__()
        encoder: Any = vae.encoder
        decoder: Any = vae.decoder
        self.encoder = nn.Sequential(
            *(encoder.down_blocks[-2].downsamplers[0], encoder.down_blocks[-1], encoder.mid_block),
            *(encoder.conv_norm_out, encoder.conv_act, encoder.conv_out, vae.quant_conv),
        )
        self.decoder = nn.ModuleList([decoder.conv_in, decoder.mid_block, decoder.up_blocks[0]])

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's features of single frames, and the mean KL of the latents they come from."""
        mean, log_variance = self.encoder(features).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        images = torch.zeros(len(latents), 1, device=latents.device)  # as of the decoder: frames that are not a clip
        conv_in, mid_block, up_block = self.decoder
        hidden = mid_block(conv_in(latents), image_only_indicator=images)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        return up_block(hidden, image_only_indicator=images), kl


@torch.no_grad()
def features_of(vae: AutoencoderKLTemporalDecoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """What the last stage of an encoder gives, and what the first stage of the decoder is given, of single frames."""
    seen: dict[str, Tensor] = {}
    last_stage: Any = vae.encoder.down_blocks[-1]
    hook = last_stage.register_forward_hook(lambda module, inputs, output: seen.update(encoded=output))
    latents = vae.encode(pixels).latent_dist.mean  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    hook.remove()
    decoder: Any = vae.decoder
    images = torch.zeros(len(latents), 1, device=latents.device)
    return seen["encoded"], decoder.mid_block(decoder.conv_in(latents), image_only_indicator=images)


def feature_loss(inner: InnerStage, encoded: Tensor, wanted: Tensor, scale: Tensor) -> Tensor:
    """Squared error of the decoder's features in units of `scale`, the deviation of each channel."""
    given, kl = inner(encoded)
    return ((given.float() - wanted) / scale).square().mean() + FEATURE_KL_WEIGHT * kl


def crops(clips: Iterable[np.ndarray], rng: np.random.Generator, side: int) -> np.ndarray:
    """Squares of four frames of each clip, in any order."""
    drawn = []
    for clip in clips:
        top, left = rng.integers(clip.shape[1] - side + 1, size=2)
        drawn.append(clip[rng.permutation(len(clip))[:4], top : top + side, left : left + side])
    return np.concatenate(drawn)


def runs_of_frames(clips: Iterable[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Four consecutive frames of each clip."""
    starts = ((clip, int(rng.integers(len(clip) - 3))) for clip in clips)
    return np.concatenate([clip[start : start + 4] for clip, start in starts])
