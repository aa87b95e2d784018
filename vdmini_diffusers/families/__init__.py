"""The families of video diffusion pipelines: a file each, with all that is known of one as its `FAMILY`."""

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from vdmini_diffusers.families.base import ClipShape, Denoiser, Family, TrainableFamily
from vdmini_diffusers.serialization.pipeline_folder import pipeline_class_name, read_model_index


__all__ = ["FAMILIES", "ClipShape", "Denoiser", "Family", "TrainableFamily", "find_family", "find_trainable_family"]

_MODULES = [
    importlib.import_module(f"{__name__}.{module.name}")
    for module in pkgutil.iter_modules([str(Path(__file__).parent)])
]
FAMILIES: tuple[Family, ...] = tuple(module.FAMILY for module in _MODULES if hasattr(module, "FAMILY"))


def find_family(pretrained_model_name_or_path: str, revision: str | None = None, **download_kwargs: Any) -> Family:
    """The family of a pipeline, a folder or a Hub id, by its `model_index.json`.

    Raises:
        CheckpointError: a `ValueError`; if it is not a pipeline of a known family.
        OSError: if it cannot be read or downloaded.
    """
    index, file = read_model_index(pretrained_model_name_or_path, revision, **download_kwargs)
    class_name = pipeline_class_name(index, file, [name for f in FAMILIES for name in f.layout.class_names])
    return next(family for family in FAMILIES if class_name in family.layout.class_names)


def find_trainable_family(
    pretrained_model_name_or_path: str, revision: str | None = None, **download_kwargs: Any
) -> TrainableFamily:
    """As `find_family`, for training.

    Raises:
        ValueError: if pipelines of its family can be pruned, and there is no objective yet to train them by.
    """
    family = find_family(pretrained_model_name_or_path, revision, **download_kwargs)
    if not isinstance(family, TrainableFamily):
        raise ValueError(
            f"{pretrained_model_name_or_path} is {family.name}, which can be pruned; there is no objective yet to"
            " train its students by."
        )
    return family
