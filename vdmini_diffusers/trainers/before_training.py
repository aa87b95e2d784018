"""What is checked before a training script loads models: all that would otherwise be found out at its end."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from filelock import FileLock, Timeout

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.images import read_image
from vdmini_diffusers.distillation.arguments import RunArguments


logger = logging.getLogger(__name__)

LOCK_NAME = ".training.lock"
LOCK_SECONDS = 15.0  # data loader workers of a killed run hold its lock for some seconds


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


def check_push(args: RunArguments) -> None:
    """Make the repository that will be uploaded to.

    Raises:
        OSError: if the Hub cannot be reached or does not let the user in.
        ValueError: if the repository's name is not one that the Hub takes.
    """
    name = args.hub_model_id or args.output_dir.resolve().name
    advice = "Log in with `hf auth login`, choose another `--hub_model_id`, or leave out `--push_to_hub`."
    try:
        huggingface_hub.create_repo(name, exist_ok=True)
    except huggingface_hub.errors.HFValidationError as error:
        raise ValueError(f"`--push_to_hub`: {name!r} is no name of a repository on the Hub. {advice}") from error
    except OSError as error:  # all of huggingface_hub's and its HTTP client's
        raise OSError(f"`--push_to_hub`: {name} cannot be written to ({error}). {advice}") from error


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
