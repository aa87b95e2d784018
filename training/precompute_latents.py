#!/usr/bin/env python
"""Encode training videos once: latents and image or text embeddings in safetensors shards, which training then reads.

    accelerate launch training/precompute_latents.py \
        --pretrained_model_name_or_path stabilityai/stable-video-diffusion-img2vid --variant fp16 \
        --train_data_dir OpenVid-1M --output_dir OpenVid-1M-latents

It takes one clip of each video, at a random moment that the seed decides. Run the same command again after a stop:
finished shards stay, and missing or damaged ones are written again. Train with
`--precomputed_data_dir OpenVid-1M-latents`. For `train_vae_decoder.py`, which needs the frames beside their latents,
add `--latents_for vae_decoder --num_frames 25`; for text to video, add `--latents_for text_to_video` and give a
pipeline of that kind.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.logging import get_logger
from tqdm.auto import tqdm

from vdmini_diffusers.cli.script import parse_arguments, peek_argument, run
from vdmini_diffusers.data.arguments import (
    TextToVideoDataArguments,
    TransformerDataArguments,
    VideoDataArguments,
)
from vdmini_diffusers.data.latents import LatentShards, lock_for_writing, write_shard
from vdmini_diffusers.data.skipped_videos import SkipLog, summarize
from vdmini_diffusers.data.vae_clips import encode_for_decoder
from vdmini_diffusers.data.video_dataset import VideoDataset, VideoStream, load_video_dataset, seed_of
from vdmini_diffusers.families import TransformerFamily, find_trainable_family
from vdmini_diffusers.pruning.vae_folder import find_vae


logger = get_logger(__name__, log_level="INFO")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass
class PrecomputeArguments:
    pretrained_model_name_or_path: str = field(
        metadata={
            "help": "Pipeline (folder or Hub id) of SVD, T2V-Turbo, HunyuanVideo or another whose encoders are used."
        }
    )
    output_dir: Path = field(metadata={"help": "Folder for the shards: a new one, or one that an earlier run began."})
    latents_for: Literal["image_to_video", "text_to_video", "vae_decoder"] = field(
        default="image_to_video",
        metadata={"help": "What will be trained on them. For vae_decoder, a VAE of either class alone suffices."},
    )
    variant: str | None = field(default=None, metadata={"help": "Variant of the weight files, e.g. fp16."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the pipeline on the Hub."})
    seed: int = field(default=0, metadata={"help": "Seed of the random moments, crops and noise."})
    noise_aug_strength: float = field(
        default=0.02, metadata={"help": "Strength of the noise on the first frame (SVD: 0.02)."}
    )
    save_dtype: str = field(
        default="fp16", metadata={"help": "Data type of the stored latents.", "choices": list(DTYPES)}
    )
    samples_per_shard: int = field(
        default=64, metadata={"help": "Number of videos in a file; a stop costs the work on at most so many."}
    )
    batch_size: int = field(default=4, metadata={"help": "Number of clips encoded at once."})
    encode_chunk_size: int = field(default=14, metadata={"help": "Number of frames that the VAE encodes at once."})

    def __post_init__(self) -> None:
        for name in ("samples_per_shard", "batch_size", "encode_chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1; got {getattr(self, name)}.")
        if not 0 <= self.noise_aug_strength < math.inf:
            raise ValueError(f"--noise_aug_strength must be finite and not negative; got {self.noise_aug_strength}.")
        if self.save_dtype not in DTYPES:
            raise ValueError(f"--save_dtype must be one of {', '.join(DTYPES)}; got {self.save_dtype!r}.")


def settings_of(args: PrecomputeArguments, data_args: VideoDataArguments, num_videos: int | None) -> dict[str, Any]:
    """All settings that the shards depend on. Only those of a stream depend on the number of processes."""
    settings = asdict(args) | asdict(data_args) | {"num_videos": num_videos}
    for name in ("output_dir", "cache_dir", "shuffle_buffer_size", "dataloader_num_workers", "precomputed_data_dir"):
        del settings[name]
    if data_args.streaming:
        settings["num_processes"] = PartialState().num_processes
    return settings


def shards_of(dataset: VideoDataset | VideoStream, samples_per_shard: int) -> Iterator[tuple[int, Iterator[Any]]]:
    """Number and rows of each shard of this process. Processes take turns, a shard of consecutive rows each."""
    state = PartialState()
    shard = state.process_index
    if isinstance(dataset, VideoDataset):
        for first in range(shard * samples_per_shard, len(dataset), state.num_processes * samples_per_shard):
            last = min(first + samples_per_shard, len(dataset))
            yield first // samples_per_shard, (dataset.read_row(index) for index in range(first, last))
        return
    stream = dataset.read_rows()  # only this process's share
    for row in stream:
        rows = chain([row], islice(stream, samples_per_shard - 1))
        yield shard, rows
        for _ in rows:  # those of a finished shard
            pass
        shard += state.num_processes


def make_encode(args: PrecomputeArguments) -> Callable[[dict[str, Any]], dict[str, torch.Tensor]]:
    """A function from a batch of clips to the tensors that are stored."""
    device, dtype = PartialState().device, DTYPES[args.save_dtype]
    if args.latents_for == "vae_decoder":
        vae_alone = find_vae(args.pretrained_model_name_or_path, args.revision).load(args.variant).to(device)

        def encode_frames(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
            clips = {"pixel_values": batch["pixel_values"].to(device)}
            encoded = encode_for_decoder(clips, vae_alone, args.encode_chunk_size)
            return encoded | {"latents": encoded["latents"].to(dtype)}

        return encode_frames

    family = find_trainable_family(args.pretrained_model_name_or_path, args.revision)
    given = {"image_to_video": "image", "text_to_video": "text"}[args.latents_for]
    if family.given != given:
        raise ValueError(
            f"--latents_for {args.latents_for} needs a pipeline that makes videos of {given}s;"
            f" {args.pretrained_model_name_or_path} makes them of {family.given}s ({family.name})."
        )
    # In float32: the VAE of SVD overflows in float16, and this is done once.
    pipe = family.pipeline.from_pretrained(
        args.pretrained_model_name_or_path,
        variant=args.variant,
        revision=args.revision,
        dtype=torch.float32,
        **dict.fromkeys(family.denoisers),
    ).to(device)
    options = {"noise_aug_strength": args.noise_aug_strength} if given == "image" else {}

    def encode(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        generators = [torch.Generator().manual_seed(seed_of(args.seed, "noise", name)) for name in batch["name"]]
        tensors = family.encode(batch, pipe, generators, args.encode_chunk_size, **options)
        exact = {name: tensors.pop(name) for name in family.exact_tensors}
        return {name: tensors[name].to(dtype) for name in family.sample_tensors if name in tensors} | exact

    return encode


def main(args: PrecomputeArguments, data_args: VideoDataArguments) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if data_args.precomputed_data_dir:
        raise ValueError("--precomputed_data_dir is for training; here, give --dataset_name or --train_data_dir.")
    accelerator = Accelerator()
    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(lock_for_writing(args.output_dir))
        precompute(args, data_args, accelerator)


def precompute(args: PrecomputeArguments, data_args: VideoDataArguments, accelerator: Accelerator) -> None:
    skip_log = SkipLog(args.output_dir / "skipped")
    dataset = load_video_dataset(
        data_args,
        skip_log,
        seed=args.seed,
        shuffle=False,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    num_videos = len(dataset) if isinstance(dataset, VideoDataset) else None
    with accelerator.main_process_first():
        shards = LatentShards(args.output_dir, settings_of(args, data_args, num_videos))

    encode = make_encode(args)
    size = f"{data_args.num_frames} frames of {data_args.height} x {data_args.width} pixels"
    logger.info(f"Clips of {size} at {data_args.fps} a second are encoded on {accelerator.device}.")
    total = num_videos and -(-num_videos // accelerator.num_processes)
    with tqdm(total=total, unit="video", disable=not accelerator.is_local_main_process) as progress:
        for shard, rows in shards_of(dataset, args.samples_per_shard):
            if shards.is_finished(shard):
                progress.update(args.samples_per_shard)
                continue
            counted = (row for row in rows if progress.update() or True)
            write_shard(
                shards,
                shard,
                counted,
                dataset.reader,
                encode,
                skip_log,
                batch_size=args.batch_size,
                num_threads=data_args.dataloader_num_workers,
            )

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        skipped = skip_log.read()
        num_samples = shards.finish(skipped)
        logger.info(f"{num_samples} clips in {args.output_dir}. {summarize(skipped)}")
        if num_samples == 0:
            skip_log.raise_too_few()


def data_arguments() -> type[VideoDataArguments]:
    """The settings of clips, whose defaults are those of what will be trained."""
    if peek_argument("latents_for", default="image_to_video") != "text_to_video":
        return VideoDataArguments
    name, revision = (peek_argument(flag, default="") for flag in ("pretrained_model_name_or_path", "revision"))
    try:
        is_transformer = isinstance(find_trainable_family(name, revision or None), TransformerFamily)
    except (OSError, ValueError):  # as it is said later
        is_transformer = False
    return TransformerDataArguments if is_transformer else TextToVideoDataArguments


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((PrecomputeArguments, data_arguments()), __doc__)))
