"""Setup that all training scripts share: accelerator, data loader, optimiser, checkpoints and critics."""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration
from diffusers.optimization import get_scheduler
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from vdmini_diffusers.distillation.arguments import RunArguments
from vdmini_diffusers.distillation.checkpoints import Checkpoints
from vdmini_diffusers.distillation.critics import Critic, CriticSettings
from vdmini_diffusers.serialization.atomic import write_file


logger = logging.getLogger(__name__)

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def make_accelerator(args: RunArguments) -> Accelerator:
    """An accelerator whose data order depends on the seed alone, and whose accumulation ignores where epochs end.

    Raises:
        ImportError: if the tracker that `report_to` names is not installed.
        RuntimeError: if several processes were started that accelerate does not join: each would train alone.
        ValueError: for an unknown tracker, and for settings that DeepSpeed or the precision does not go with.
    """
    check_tracker(args.tracker)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    for client in ("httpx", "httpx2"):  # the Hub's, which has a line for each request
        logging.getLogger(client).setLevel(logging.WARNING)
    accelerator = Accelerator(
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        mixed_precision=args.mixed_precision,
        log_with=args.tracker,
        project_config=ProjectConfiguration(
            project_dir=str(args.output_dir), logging_dir=str(args.output_dir / "logs")
        ),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
    )
    if accelerator.mixed_precision not in DTYPES:
        raise ValueError(f"`--mixed_precision` must be one of {', '.join(DTYPES)}, not {accelerator.mixed_precision}.")
    started = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != started:
        raise RuntimeError(
            f"{started} processes were started, and accelerate joined {accelerator.num_processes}. On a machine"
            f" without GPUs: `ACCELERATE_USE_CPU=true torchrun --nproc_per_node {started} ...`."
        )
    deepspeed = accelerator.state.deepspeed_plugin
    if deepspeed is not None:
        if deepspeed.zero_stage == 3 or args.use_ema:
            raise ValueError(
                "With DeepSpeed neither ZeRO-3 nor `--use_ema`: it holds weights divided, or in half precision, where"
                " features and averages cannot follow. Use ZeRO-2 without the average, or FSDP2."
            )
        # Otherwise taken from a data loader, which is prepared on its own here.
        deepspeed.deepspeed_config["train_micro_batch_size_per_gpu"] = args.train_batch_size
    return accelerator


def make_dataloader(
    accelerator: Accelerator,
    dataset: Dataset,
    args: RunArguments,
    num_workers: int = 0,
    sampler: Sampler[int] | None = None,
) -> DataLoader:
    """Batches in random order, or in that of `sampler`, divided over the processes; a stream is so already."""
    streaming = isinstance(dataset, IterableDataset)
    dataloader = DataLoader(
        dataset,
        batch_size=args.train_batch_size,
        shuffle=not streaming and sampler is None,
        sampler=sampler,
        drop_last=True,
        num_workers=num_workers,
    )
    return dataloader if streaming else accelerator.prepare(dataloader)


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that accelerate would leave out without a word, because its package is missing."""
    if name in (None, "all"):
        return
    if name not in LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"`--report_to` must be one of {', '.join(LOGGER_TYPE_TO_CLASS)}, all or none, not {name!r}.")
    if name not in [str(tracker) for tracker in get_available_trackers()]:
        raise ImportError(f"`--report_to {name}` needs the package {name}, which is not installed.")


def report_settings(record: Mapping[str, Any], output_dir: Path | None) -> None:
    """Print the settings; with a folder, keep them there as `training.json`, which is published with the weights."""
    logger.info("settings: %s", json.dumps(record, indent=2, default=str))
    if output_dir is not None:
        text = json.dumps({name: without_folders(value) for name, value in record.items()}, indent=2)
        write_file(output_dir / "training.json", f"{text}\n".encode())


def without_folders(value: Any) -> Any:
    """A setting as it may be published: a path on this machine becomes its last name."""
    if isinstance(value, (list, tuple)):
        return [without_folders(item) for item in value]
    if isinstance(value, Path) or (isinstance(value, str) and (Path(value).is_absolute() or os.path.exists(value))):
        return Path(value).resolve().name
    return value


def whole_state_dict(accelerator: Accelerator, model: nn.Module) -> dict[str, torch.Tensor]:
    """All weights under the names of the bare model, however it is wrapped, compiled or divided.

    All processes must call it: they gather the weights where FSDP has divided them.
    """
    state_dict: Any = accelerator.get_state_dict(model)
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in state_dict.items()}  # of torch.compile


def make_optimizer(args: RunArguments, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The student's optimiser.

    Raises:
        ImportError: for `adamw_8bit` without bitsandbytes.
    """
    betas = (args.adam_beta1, args.adam_beta2)
    if args.optimizer == "adafactor":
        return torch.optim.Adafactor(parameters, lr=args.learning_rate, weight_decay=args.adam_weight_decay)
    if args.optimizer == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("`--optimizer adamw_8bit` needs bitsandbytes: `pip install bitsandbytes`.") from error
        return AdamW8bit(parameters, lr=args.learning_rate, betas=betas, weight_decay=args.adam_weight_decay)
    return torch.optim.AdamW(
        parameters, lr=args.learning_rate, betas=betas, weight_decay=args.adam_weight_decay, fused=True
    )


def make_lr_scheduler(args: RunArguments, optimizer: torch.optim.Optimizer) -> Any:
    """The schedule of the learning rate over all optimiser steps."""
    return get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=args.max_train_steps,
    )


def check_optimizer(args: RunArguments) -> None:
    """Make optimiser and schedule for one parameter, so that a missing package is found before models are loaded."""
    make_lr_scheduler(args, make_optimizer(args, [nn.Parameter(torch.zeros(1))]))


def make_checkpoints(args: RunArguments) -> Checkpoints:
    resume_from = None if args.resume_from_checkpoint == "none" else args.resume_from_checkpoint
    return Checkpoints(args.output_dir, resume_from, args.checkpoints_total_limit)


def make_critic(
    name: str,
    heads: nn.Module,
    settings: CriticSettings,
    device: torch.device,
    *,
    learning_rate: float,
    adam_beta1: float,
    features: str | None = None,
) -> Critic:
    """A [`Critic`] whose heads learn by AdamW, at a constant rate."""
    heads = heads.to(device).train()
    optimizer = torch.optim.AdamW(
        heads.parameters(), lr=learning_rate, betas=(adam_beta1, 0.999), weight_decay=0.0, fused=True
    )
    return Critic(name, heads, optimizer, settings, features)
