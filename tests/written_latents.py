"""Precomputed latents of random videos, for the tiny teacher."""

from pathlib import Path

import torch

from vdmini_diffusers.data.latents import LatentShards


def write_latents(folder: Path, num_samples: int, num_frames: int = 2, size: int = 8) -> Path:
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    shards = LatentShards(folder, {"made_by": "tests"})
    samples = [
        {
            "latents": draw(num_frames, 4, size, size),
            "image_latents": draw(4, size, size),
            "image_embeds": draw(1, 16),
            "added_time_ids": torch.tensor([6.0, 127.0, 0.02]),
        }
        for _ in range(num_samples)
    ]
    shards.write(0, samples, [{"name": str(i), "caption": ""} for i in range(num_samples)])
    shards.finish([])
    return folder


def write_text_to_video_latents(folder: Path, num_samples: int, num_frames: int = 2, size: int = 8) -> Path:
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    shards = LatentShards(folder, {"made_by": "tests"})
    samples = [
        {
            "latents": draw(num_frames, 4, size, size),
            "prompt_embeds": draw(77, 16),
            "pooled_prompt_embeds": draw(16),
            "fps": torch.tensor(8.0),
        }
        for _ in range(num_samples)
    ]
    shards.write(0, samples, [{"name": str(i), "caption": f"a photo of {i} cats"} for i in range(num_samples)])
    shards.finish([])
    return folder
