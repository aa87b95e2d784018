"""The families of video diffusion pipelines: a file each, with all that is known of one as its `FAMILY`.

The pipelines in `stock.py` have no more than a line each.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from vdmini_diffusers.families.base import (
    ClipShape,
    Denoiser,
    Family,
    TokenGrid,
    TrainableFamily,
    TransformerFamily,
    UNetFamily,
)
from vdmini_diffusers.families.stock import stock_family
from vdmini_diffusers.serialization.pipeline_folder import named_class, read_model_index
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError, short_repr


__all__ = [
    "FAMILIES",
    "ClipShape",
    "Denoiser",
    "Family",
    "TokenGrid",
    "TrainableFamily",
    "TransformerFamily",
    "UNetFamily",
    "family_of",
    "find_family",
    "find_trainable_family",
]

_MODULES = [
    importlib.import_module(f"{__name__}.{module.name}")
    for module in pkgutil.iter_modules([str(Path(__file__).parent)])
]
FAMILIES: tuple[Family, ...] = tuple(module.FAMILY for module in _MODULES if hasattr(module, "FAMILY"))


def family_of(class_name: Any) -> Family | None:
    """The family of the pipelines of a class, by its name. Raises as `stock_family`."""
    known = next((family for family in FAMILIES if class_name in family.layout.class_names), None)
    return known or (stock_family(class_name) if isinstance(class_name, str) else None)


def find_family(pretrained_model_name_or_path: str, revision: str | None = None, **download_kwargs: Any) -> Family:
    """The family of a pipeline, a folder or a Hub id, by its `model_index.json`.

    Raises:
        CheckpointError: a `ValueError`; if it is not a pipeline of a known family.
        OSError: if it cannot be read or downloaded.
    """
    index, file = read_model_index(pretrained_model_name_or_path, revision, **download_kwargs)
    family = family_of(named_class(index))
    if family is None:
        names = " or a ".join(name for family in FAMILIES for name in family.layout.class_names)
        raise CheckpointError(
            f"{file} describes a {short_repr(named_class(index))}; a teacher is a {names}, or another of diffusers'"
            " video pipelines with a transformer: conversion/VIDEO_TRANSFORMERS.md lists them."
        )
    return family


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
