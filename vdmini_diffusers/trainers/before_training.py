"""What is checked before a training script loads models: all that would otherwise be found out at its end."""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.images import read_image
from vdmini_diffusers.distillation.arguments import (
    CriticArguments,
    DenoiserTrainingArguments,
    ICMDArguments,
    is_changed,
)
from vdmini_diffusers.distillation.checkpoints import Checkpoints
from vdmini_diffusers.distillation.engine import check_optimizer, without_folders
from vdmini_diffusers.serialization.atomic import check_apart
from vdmini_diffusers.trainers.critics import FoundDiscriminator, ModelSource, find_discriminator
from vdmini_diffusers.trainers.lora import lora_config
from vdmini_diffusers.trainers.teacher_and_student import TeacherAndStudent


logger = logging.getLogger(__name__)

LOCK_NAME = ".training.lock"
LOCK_SECONDS = 15.0  # data loader workers of a killed run hold its lock for some seconds


class CriticSources(NamedTuple):
    """What the critics are made of: the network that they stand on, and the heads that they start from."""

    backbone: ModelSource | None
    discriminator: FoundDiscriminator | None


def check_run(
    pair: TeacherAndStudent,
    args: DenoiserTrainingArguments,
    critic_args: CriticArguments,
    icmd_args: ICMDArguments,
    data_args: VideoDataArguments,
    checkpoints: Checkpoints,
) -> CriticSources:
    """Check all that is known without loading a model, and find what the critics are made of.

    Raises as `train_denoiser`.
    """
    check_critic_flags(critic_args, icmd_args)
    check_apart(args.output_dir, pair.sources() | data_sources(data_args))
    check_images(getattr(args, "validation_images", ()))
    check_optimizer(args)
    if args.shard_teacher and not torch.distributed.is_initialized():
        raise ValueError("`--shard_teacher` divides the teacher over several processes, and there is one.")
    checkpoints.choose()
    pair.check(args)
    if args.rank is not None:
        lora_config(args.rank, pair.lora_targets)
    if icmd_args.lambda_mca == 0 and icmd_args.lambda_data_critic == 0:
        return CriticSources(None, None)
    if icmd_args.lambda_mca > 0:
        warn_of_late_start("MCA", "mca_start_step", icmd_args.mca_start_step, args.max_train_steps)
    backbone = pair.find_critic_backbone(critic_args)
    discriminator = None
    if icmd_args.lambda_data_critic > 0 or critic_args.mca_from_discriminator:
        discriminator = find_discriminator(pair.teacher_source, critic_args)
    heads_are_new = discriminator is None if icmd_args.joint_critic else not critic_args.mca_from_discriminator
    if icmd_args.lambda_mca > 0 and heads_are_new:
        warn_of_short_warmup(critic_args, icmd_args)
    if discriminator is not None:
        discriminator.check_features(seen_by_critics(backbone, critic_args))
        check_sizes_of_saved_heads(critic_args, icmd_args, discriminator.config)
        check_apart(args.output_dir, {"the pipeline of the discriminator": discriminator.source.name})
    if backbone is not None:
        check_apart(args.output_dir, {"the critics' backbone": backbone.name})
        logger.info("critics stand on %s%s", backbone.name, f" ({backbone.variant})" if backbone.variant else "")
    if icmd_args.lambda_data_critic > 0 and discriminator is None:
        late = critic_args.critic_warmup_steps
        warn_of_late_start("The data critic", "critic_warmup_steps", late, args.max_train_steps)
    return CriticSources(backbone, discriminator)


def seen_by_critics(backbone: ModelSource | None, args: CriticArguments) -> str:
    """The critics' features in words, which stay the same where folders move."""
    if backbone is None:
        return "noisy latents"
    name = Path(without_folders(backbone.name)).name
    return " ".join(filter(None, (args.features_in_words, "of", name, backbone.variant)))


def data_sources(data_args: VideoDataArguments) -> dict[str, str | None]:
    """Where training reads its samples, as `check_apart` takes it."""
    return {
        "the data set": data_args.dataset_name,
        "the folder of training data": data_args.train_data_dir,
        "the folder of precomputed latents": data_args.precomputed_data_dir,
    }


def check_images(paths: Sequence[Path]) -> None:
    """Raises `ValueError` if a validation image is missing or cannot be decoded."""
    for path in paths:
        if not path.is_file():
            raise ValueError(f"`--validation_images`: there is no file {path}.")
        try:
            read_image(path)
        except ValueError as error:
            raise ValueError(f"`--validation_images`: {error}") from error


def check_critic_flags(critic_args: CriticArguments, icmd_args: ICMDArguments) -> None:
    """Raises `ValueError` if a setting that was changed asks for something of a critic that there is not.

    Sizes, rates and steps of such a critic are let pass: a recipe has them, and is ablated by a weight of 0.
    """
    joint, has_data = icmd_args.joint_critic, icmd_args.lambda_data_critic > 0
    has_mca = icmd_args.lambda_mca > 0 and not joint
    if joint and is_changed(icmd_args, "lambda_mca"):
        raise ValueError(
            "`--lambda_mca` has no effect with `--joint_critic`, whose one critic has the weight"
            " `--lambda_data_critic`: leave one of the two out."
        )
    without_mca = "`--joint_critic` has one critic for both" if joint else "`--lambda_mca` is 0"
    discriminator = critic_args.discriminator_model_name_or_path not in (None, "none")
    relativistic = critic_args.critic_loss == "relativistic", "`--critic_loss relativistic` is the student's as well"
    on_latents = critic_args.critic_backbone == "none", "`--critic_backbone none` has the critics see the latents"
    unused = [
        ("mca_from_discriminator", not has_mca, without_mca),
        ("generator_loss", not has_mca, f"{without_mca}; the data critic's is `--data_generator_loss`"),
        ("data_generator_loss", not has_data, "`--lambda_data_critic` is 0; MCA's is `--generator_loss`"),
        ("generator_loss", *relativistic),
        ("data_generator_loss", *relativistic),
        ("critic_taps", *on_latents),
        ("critic_block_stride", *on_latents),
        (
            "discriminator_model_name_or_path",
            discriminator and not (has_data or (has_mca and critic_args.mca_from_discriminator)),
            "`--lambda_data_critic` is 0, and MCA's critic starts from it with `--mca_from_discriminator` only",
        ),
        ("num_held_out_clips", not (has_mca or has_data), "there is no critic that could rank them"),
    ]
    for name, is_unused, reason in unused:
        if is_unused and hasattr(critic_args, name) and is_changed(critic_args, name):
            raise ValueError(f"`--{name}` has no effect, as {reason}: leave it out.")


def check_sizes_of_saved_heads(
    critic_args: CriticArguments, icmd_args: ICMDArguments, config: Mapping[str, Any] | None
) -> None:
    """Raises `ValueError` if a run whose heads are all saved ones is given other sizes than theirs.

    Args:
        config: that of the discriminator that critics start from; None without one.
    """
    has_new_mca = icmd_args.lambda_mca > 0 and not (icmd_args.joint_critic or critic_args.mca_from_discriminator)
    if config is None or has_new_mca:
        return
    sizes = {
        "discriminator_width": config.get("width", config.get("widths", [None])[-1]),
        "temporal_kernel_size": config.get("temporal_kernel_size"),
    }
    for name, size in sizes.items():
        if is_changed(critic_args, name) and getattr(critic_args, name) != size:
            raise ValueError(
                f"`--{name}` {getattr(critic_args, name)} has no effect: the critic starts from saved heads, which"
                f" have {size}. Leave it out, or start from new heads by `--discriminator_model_name_or_path none`."
            )


def warn_of_short_warmup(critic_args: CriticArguments, icmd_args: ICMDArguments) -> None:
    """Warn of new heads, MCA's or those for both, that learn for fewer steps than `--critic_warmup_steps` before they
    contribute."""
    steps, start = critic_args.critic_warmup_steps, icmd_args.mca_start_step
    if start < steps:
        logger.warning(
            "%s heads learn for %d steps, not the %d of `--critic_warmup_steps`, before the student is trained by"
            " them, as `--mca_start_step` is %d.",
            *("The joint critic's" if icmd_args.joint_critic else "MCA's", start, steps, start),
        )


def warn_of_late_start(what: str, flag: str, start_step: int, max_train_steps: int) -> None:
    """Warn of a loss that this run never reaches. It is no error: a trial run, or one that is continued, may be so."""
    if start_step >= max_train_steps:
        logger.warning(
            "%s never starts: `--%s` is %d, and training ends after `--max_train_steps` %d.",
            what,
            flag,
            start_step,
            max_train_steps,
        )


@contextmanager
def only_run_in(output_dir: Path, timeout: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock of an output folder, which is made if need be, and removed if nothing is written to it.

    A killed process holds no lock.

    Args:
        timeout: seconds to wait for another run.

    Raises:
        OSError: if another run holds it, or the folder cannot be written to.
    """
    is_new = not output_dir.exists()
    output_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output_dir / LOCK_NAME)
    try:
        lock.acquire(timeout=timeout)
    except Timeout as error:
        raise OSError(
            f"Another training writes to {output_dir}. Wait until it ends, or choose another `--output_dir`."
        ) from error
    try:
        yield
    finally:
        lock.release()
        if is_new and [path.name for path in output_dir.iterdir()] == [LOCK_NAME]:
            shutil.rmtree(output_dir, ignore_errors=True)
