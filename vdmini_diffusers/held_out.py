"""Held-out clips for the embedded models, and what a pipeline makes of their first frames."""

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from vdmini_diffusers.data.moving_pictures import DEFAULT_MOTION_BUCKET_ID, HELD_OUT_PHOTOS, Clip, MovingPictures
from vdmini_diffusers.pipelines import VDMiniI2VPipeline


KINDS = ("drive", "push-in")


def held_out_clips(num_clips: int, seed: int) -> list[Clip]:
    """Clips of photographs that no embedded model was trained on, half of each kind, at the default speed."""
    pictures = MovingPictures(HELD_OUT_PHOTOS)
    return [
        pictures.clip(np.random.default_rng((seed, 3, i)), DEFAULT_MOTION_BUCKET_ID, KINDS[i % 2])
        for i in range(num_clips)
    ]


def continue_clips(
    pipe: VDMiniI2VPipeline, clips: list[Clip], num_inference_steps: int, seed: int, batch_size: int = 8
) -> np.ndarray:
    """Generate from the first frames: uint8 `(n, frames, height, width, 3)`. Clip `i` has the noise of `seed + i`."""
    videos = []
    for start in tqdm(range(0, len(clips), batch_size), desc="clips", unit="batch", leave=False):
        batch = clips[start : start + batch_size]
        frames = pipe(
            [Image.fromarray(clip.frames[0]) for clip in batch],
            num_inference_steps=num_inference_steps,
            motion_bucket_id=batch[0].motion_bucket_id,
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))],
            output_type="np",
            return_dict=False,
        )
        videos.append((np.asarray(frames) * 255).round().astype(np.uint8))
    return np.concatenate(videos)
