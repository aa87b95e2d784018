"""A mixture of rewards on decoded frames (T2V-Turbo-v2; section 3.1): what is decoded, and how gradients come back.

A reward is any callable that maps frames `(n, frames, 3, height, width)`, 0 to 1, and `n` captions to `(n,)`,
differentiably by the frames. Those from CLIP-like models are in `reward_models.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch.utils.checkpoint import checkpoint

from vdmini_diffusers.distillation.tasks.base import Generators


Reward = Callable[[torch.Tensor, list[str]], torch.Tensor]
WeightedRewards = Sequence[tuple[float, Reward]]


@dataclass(frozen=True)
class RewardMixture:
    """`-beta_img J_img - beta_vid J_vid`, to be added to the loss.

    Every sample with a short caption counts, so that what a sample gets does not depend on its neighbours;
    T2V-Turbo-v2 takes one per process. Samples with long captions get the consistency loss alone, as there, because
    rewards read little text.

    Memory: samples go through decoder and rewards one after the other, forward and backward, before the student's own
    backward pass begins, and within a sample the decoder holds the activations of one frame at a time.

    Attributes:
        vae: frozen; decodes frame by frame, as `AutoencoderKL`.
        image_rewards, video_rewards: with weights within the sum.
        image_weight, video_weight: beta_img and beta_vid.
        num_image_frames: drawn at random, for the image rewards.
        num_video_frames: evenly spaced from a random one on, for the video rewards.
        max_caption_words: greatest number of words of a short caption.
    """

    vae: AutoencoderKL
    image_rewards: WeightedRewards = ()
    video_rewards: WeightedRewards = ()
    image_weight: float = 0.2
    video_weight: float = 0.5
    num_image_frames: int = 2
    num_video_frames: int = 4
    max_caption_words: int = 40

    def draw_frames(self, num_frames: int, generators: Generators) -> dict[str, torch.Tensor]:
        """Draw the frames of clips of `num_frames` that each kind of reward will see, `(batch, n)`.

        Raises:
            ValueError: if there are fewer frames than a reward needs.
        """
        drawn = {}
        needed = max(
            self.num_image_frames if self.image_rewards else 0, self.num_video_frames if self.video_rewards else 0
        )
        if num_frames < needed:
            raise ValueError(f"A reward needs {needed} frames, and clips have {num_frames}.")
        if self.image_rewards:
            orders = [torch.randperm(num_frames, generator=generator) for generator in generators]
            drawn["image"] = torch.stack([order[: self.num_image_frames] for order in orders])
        if self.video_rewards:
            stride = num_frames // self.num_video_frames
            num_starts = num_frames - stride * (self.num_video_frames - 1)
            starts = [torch.randint(num_starts, (1,), generator=generator) for generator in generators]
            drawn["video"] = torch.cat(starts)[:, None] + stride * torch.arange(self.num_video_frames)
        return drawn

    def losses(
        self, denoised: torch.Tensor, captions: Sequence[str], frames: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The mean over the batch of the negative, weighted rewards.

        Args:
            denoised: `(batch, frames, channels, h, w)`, scaled as U-Nets see latents.
        """
        kinds = {"image": (self.image_weight, self.image_rewards), "video": (self.video_weight, self.video_rewards)}
        losses = {}
        for kind, indices in frames.items():
            weight, rewards = kinds[kind]
            total = denoised.new_zeros(())
            for latents, caption, index in zip(denoised, captions, indices, strict=True):
                if 0 < len(caption.split()) <= self.max_caption_words:
                    total = total + self.reward(latents[index.to(latents.device)], caption, rewards)
            losses[f"{kind}_reward"] = -weight / len(denoised) * total
        return losses

    def reward(self, latents: torch.Tensor, caption: str, rewards: WeightedRewards) -> torch.Tensor:
        """The reward of one sample's frames, with its gradient by the latents; the decoder's graph is freed."""
        leaf = latents.detach().requires_grad_()
        decoded = self.decode(leaf)[None]
        reward = torch.stack([factor * rate(decoded, [caption]).float().sum() for factor, rate in rewards]).sum()
        # A pixel's share of a reward is too small for float16; on its way, accelerate's scaler does not reach it.
        scale = 1024 if self.vae.dtype == torch.float16 else 1
        (gradient,) = torch.autograd.grad(scale * reward, leaf)
        return reward.detach() + ((latents - leaf.detach()) * gradient / scale).sum()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """`(n, channels, h, w)` to `(n, 3, height, width)`, 0 to 1."""
        latents = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        pictures = [checkpoint(self._decode_one, frame[None], use_reentrant=False) for frame in latents]
        return (torch.cat(pictures).float() / 2 + 0.5).clamp(0, 1)

    def _decode_one(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents, return_dict=False)[0]  # pyright: ignore[reportArgumentType] - any tensor
