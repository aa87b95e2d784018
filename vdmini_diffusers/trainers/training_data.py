"""The data set of a run, and the part of it that is held out."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.fastvideo_parquet import FastVideoParquet, holds_parquet
from vdmini_diffusers.data.latents import PrecomputedLatents
from vdmini_diffusers.data.skipped_videos import SkipLog
from vdmini_diffusers.data.video_dataset import load_video_dataset
from vdmini_diffusers.distillation.arguments import DenoiserTrainingArguments
from vdmini_diffusers.distillation.tasks.base import Encode, Generators
from vdmini_diffusers.trainers.teacher_and_student import TeacherAndStudent


def find_data(
    args: DenoiserTrainingArguments, data_args: VideoDataArguments, accelerator: Accelerator
) -> Dataset | None:
    """The data set as far as it opens without models; None for FastVideo's parquet files, which want configs."""
    if data_args.precomputed_data_dir is not None:
        folder = data_args.precomputed_data_dir
        return None if holds_parquet(folder) else PrecomputedLatents(folder)
    return load_video_dataset(
        data_args,
        SkipLog(args.output_dir / "skipped_videos"),
        seed=args.seed,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )


def open_data(
    pair: TeacherAndStudent,
    found: Dataset | None,
    args: DenoiserTrainingArguments,
    data_args: VideoDataArguments,
    accelerator: Accelerator,
) -> tuple[Dataset, Encode | None]:
    """The data set that was `found`, as the pair reads it, and the function that encodes its batches if they are
    videos."""
    if data_args.precomputed_data_dir is not None:
        dataset = pair.precomputed(data_args.precomputed_data_dir)
        is_batched = isinstance(dataset, FastVideoParquet) and args.train_batch_size > 1
        if is_batched and len(shapes := dataset.latent_shapes()) > 1:
            raise ValueError(
                f"{data_args.precomputed_data_dir} holds latents of {len(shapes)} shapes, {sorted(shapes)[:4]}: clips"
                " of a batch need one. Give `--train_batch_size 1`, or clips of one size and length."
            )
        pair.set_clip_shape(dataset[0])
        return dataset, None
    assert found is not None
    pair.set_clip_shape(data_args)

    def encode(batch: Mapping[str, Any], generators: Generators) -> Mapping[str, Any]:
        encoded = pair.encode(batch, generators)
        return {
            name: value.to(accelerator.device) if isinstance(value, torch.Tensor) else value
            for name, value in encoded.items()
        }

    return found, encode


def order_of(dataset: Dataset, seed: int) -> Sampler[int] | None:
    """The random order in which parquet files are read; None for others, any of whose samples is read by itself."""
    samples: Any = dataset  # which has a length, if it is one of these
    whole = samples.dataset if isinstance(samples, Subset) else samples
    return whole.sampler(len(samples), seed) if isinstance(whole, FastVideoParquet) else None


def split_held_out(dataset: Dataset, num_clips: int, batch_size: int) -> tuple[Dataset, DataLoader | None]:
    """The data set without its last clips, and these in their order.

    Raises:
        ValueError: if no clip would be left, or the data set holds videos.
    """
    if num_clips == 0:
        return dataset, None
    if not isinstance(
        dataset, (PrecomputedLatents, FastVideoParquet)
    ):  # videos that cannot be decoded are replaced by others
        raise ValueError("`--num_held_out_clips` needs `--precomputed_data_dir`.")
    rest = len(dataset) - num_clips
    if rest < 1:
        raise ValueError(f"`--num_held_out_clips` {num_clips} leaves none of {rest + num_clips} clips to train on.")
    held_out = Subset(dataset, range(rest, rest + num_clips))
    return Subset(dataset, range(rest)), DataLoader(held_out, batch_size=batch_size)
