"""Open any video pipeline: by the class of its family, in a precision that suits the device."""

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vdmini_diffusers.families import Family, family_of
from vdmini_diffusers.serialization.pipeline_folder import STEMS, named_class, read_model_index


VARIANTS = ("fp16", "bf16", "fp32")


def open_pipeline(
    model: str,
    family: Family | None,
    dtype: torch.dtype,
    *,
    variant: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """A pipeline on the CPU.

    Args:
        family: as `recognise` gives it. Without one, diffusers chooses the class.
        variant: by default that of a local folder's weights, if it has no others.
        trust_remote_code: run code that comes with the model. Our own classes need none.

    Raises:
        OSError, ValueError: if it cannot be opened; what diffusers says.
    """
    more: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
    cls = DiffusionPipeline if family is None else family.pipeline
    variant = variant or _only_variant(Path(model))
    return cls.from_pretrained(model, dtype=dtype, variant=variant, revision=revision, **more)


def recognise(model: str, revision: str | None = None) -> Family | None:
    """The family of a pipeline, or None for one that is not known here.

    Raises:
        ValueError: if there is no such folder, or no pipeline in it.
        OSError: if it cannot be read or downloaded; the message says what to do.
    """
    if not os.path.exists(model) and (model.startswith((".", "/", "~")) or model.count("/") != 1):
        raise ValueError(f"There is no folder {model}, and the id of a model on the Hub has the form owner/name.")
    try:
        index, _ = read_model_index(model, revision)
    except GatedRepoError as error:
        raise PermissionError(
            f"{model} asks for consent: accept its terms on https://huggingface.co/{model}, then run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no model {model} on the Hub that you may read, and no folder of that name here. If it is"
            " private, run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{model} has no branch, tag or commit {revision}.") from error
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{model} is not in the cache, and the Hub cannot be reached: check the connection and HF_HUB_OFFLINE."
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(
            f"{model} on the Hub has no model_index.json: it is not a pipeline in diffusers' layout."
        ) from error
    return family_of(named_class(index))


def choose_device(device: str | None = None) -> str:
    """The device that is given, or the machine's accelerator (cuda, mps, xpu), or the CPU.

    Raises:
        ValueError: if torch does not know a device of that name, or cannot use it here.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        return "cpu" if found is None else found.type
    try:
        torch.empty(1, device=device).cpu()  # the device "meta" has no values
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        here = "the CPU alone" if found is None else f"{found.type} and cpu"
        raise ValueError(f"There is no device {device!r} that torch can use here; it has {here}.") from error
    return device


def choose_dtype(name: str | None, device: str, family: Family | None) -> torch.dtype:
    """The precision of that name, or what suits: float32 on the CPU, half precision elsewhere.

    U-Nets were published in float16; transformers in bfloat16, whose range some of them need.
    """
    if name is not None:
        return getattr(torch, name)
    if device == "cpu":
        return torch.float32
    of_unets = family is not None and all(part.plan_kind == "unet" for part in family.denoisers.values())
    return torch.float16 if of_unets else torch.bfloat16


def _only_variant(folder: Path) -> str | None:
    """The variant of a folder's denoiser, if its weights are there in this variant and in no other."""
    stem, ending = STEMS["diffusers"][0], "safetensors"
    for name in ("unet", "transformer"):
        files = [file.name for file in (folder / name).glob(f"{stem}*.{ending}")]
        variants = [next((v for v in VARIANTS if f".{v}." in f"{file}." or f".{v}-" in file), None) for file in files]
        if variants and len(set(variants)) == 1:
            return variants[0]
    return None
