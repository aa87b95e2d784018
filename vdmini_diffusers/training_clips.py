"""Latents of the clips that embedded models are trained on, as the training scripts read them."""

import os
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from vdmini_diffusers.data.latents import LatentShards, encode_image_to_video
from vdmini_diffusers.data.moving_pictures import FPS, TRAIN_PHOTOS, MovingPictures
from vdmini_diffusers.evaluation.i3d import weights_sha256
from vdmini_diffusers.pipelines import VDMiniI2VPipeline


CLIPS_PER_SHARD = 32


def write_training_latents(
    folder: str | os.PathLike, teacher: str | os.PathLike, num_clips: int, seed: int = 0
) -> Path:
    """Draw clips, encode them with the teacher's VAE and image encoder, and return the folder, for
    `--precomputed_data_dir`. Shards that are there from an earlier start are kept.

    Raises:
        ImportError: without the packages that the photographs come with (extra `teacher`).
        ValueError: if the folder holds latents of other encoders, another number or seed.
    """
    pictures = MovingPictures(TRAIN_PHOTOS, recolour=True)
    pipe = VDMiniI2VPipeline.from_pretrained(teacher, unet=None, dtype=torch.float32)
    encoders = [weights_sha256(model) for model in (pipe.vae, pipe.image_encoder)]
    shards = LatentShards(folder, {"num_clips": num_clips, "seed": seed, "encoders": encoders})
    bar = tqdm(total=num_clips, desc="latents", unit="clip")
    for shard, start in enumerate(range(0, num_clips, CLIPS_PER_SHARD)):
        rows = range(start, min(start + CLIPS_PER_SHARD, num_clips))
        if not shards.is_finished(shard):
            samples, infos = [], []
            for i in rows:
                clip = pictures.clip(np.random.default_rng((seed, 11, i)))
                batch = {
                    "pixel_values": torch.from_numpy(clip.frames).movedim(-1, 1)[None] / 127.5 - 1,
                    "fps": [FPS],
                    "motion_bucket_id": [clip.motion_bucket_id],
                }
                encoded = encode_image_to_video(
                    batch,
                    pipe.vae,
                    pipe.image_encoder,
                    pipe.feature_extractor,
                    generators=[torch.Generator().manual_seed(i)],
                )
                samples.append({name: tensor[0] for name, tensor in encoded.items()})
                infos.append({"name": str(i), "caption": clip.caption})
                bar.update()
            shards.write(shard, samples, infos)
        else:
            bar.update(len(rows))
    bar.close()
    shards.finish([])
    return Path(folder)
