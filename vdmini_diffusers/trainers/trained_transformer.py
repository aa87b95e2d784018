"""The folder of a pruned transformer's pipeline, and weights trained from there, which are written file by file."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from vdmini_diffusers.distillation.sharding import STEM
from vdmini_diffusers.serialization.pipeline_folder import read_model_index
from vdmini_diffusers.serialization.repository import download
from vdmini_diffusers.serialization.safetensors_copy import FLOATS
from vdmini_diffusers.serialization.safetensors_reader import StoredTensor, read_checkpoint, read_json


# What is fetched of a pipeline on the Hub: configs, vocabularies, licence, code and weights.
PATTERNS = ["*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*", "*.py", "*.safetensors"]
TensorsOf = Callable[[list[str]], Iterator[tuple[str, torch.Tensor]]]


@dataclass(frozen=True)
class StudentFiles:
    """A pipeline's folder.

    Attributes:
        weights: the tensors of its denoiser.
        others: paths in the folder of what belongs to the pipeline besides; neither its card nor records of training.
    """

    folder: Path
    weights: Mapping[str, StoredTensor]
    others: tuple[Path, ...]


def pipeline_files(name: str, denoiser: str, variant: str | None) -> StudentFiles:
    """The files of a pipeline, a folder or a Hub id.

    Raises:
        CheckpointError: if the denoiser's weights are missing or malformed.
        OSError: if a file cannot be read or downloaded.
    """
    folder = Path(name) if Path(name).is_dir() else download(name, None, PATTERNS)
    index, _ = read_model_index(folder)
    components = [folder / part for part, entry in index.items() if isinstance(entry, list) and part != "_class_name"]
    top = [path for path in folder.iterdir() if re.match(r"model_index\.json$|LICENSE|NOTICE|.*\.py$", path.name)]
    inner = [path for part in components if part.is_dir() for path in part.rglob("*")]
    is_weight = re.compile(rf"{denoiser}/[^/]*\.(safetensors|bin)")
    weights = read_checkpoint(folder / denoiser, STEM, variant)
    files = {Path(str(tensor.file)).name for tensor in weights.values()}
    others = [
        relative
        for path in sorted([*top, *inner])
        if path.is_file()
        and not is_weight.fullmatch((relative := path.relative_to(folder)).as_posix())
        and not (path.parent == folder / denoiser and is_index_of_others(path, files))
    ]
    return StudentFiles(folder, weights, tuple(others))


def is_index_of_others(path: Path, files: Collection[str]) -> bool:
    """Whether a file is an index of weights that are not among these `files`: of another variant."""
    if not re.fullmatch(rf"{STEM}\..*index(\.[^.]+)?\.json", path.name):
        return False
    return not set(read_json(path).get("weight_map", {}).values()) <= set(files)


def weights_folder(name: str, denoiser: str, revision: str | None = None) -> Path:
    """The folder of a denoiser, downloaded if need be."""
    if Path(name).is_dir():
        return Path(name) / denoiser
    return download(name, revision, [f"{denoiser}/*.json", f"{denoiser}/*.safetensors"]) / denoiser


def merged_tensors(
    adapted: nn.Module, stored: Mapping[str, StoredTensor], names: list[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Named tensors as they are stored, with what LoRA adds to them.

    They are read anew, as the network itself may hold them in half precision.
    """
    from peft.tuners.lora import LoraLayer  # an optional dependency, for `--rank` only

    layers = {f"{name}.weight": layer for name, layer in adapted.named_modules() if isinstance(layer, LoraLayer)}
    for name in names:
        with safe_open(stored[name].file, "pt") as file:
            tensor = file.get_tensor(stored[name].name)
        if name in layers:
            (adapter,) = layers[name].active_adapters
            tensor = tensor.float() + layers[name].get_delta_weight(adapter).cpu()
        yield name, tensor


def save_weights(tensors_of: TensorsOf, stored: Mapping[str, StoredTensor], folder: Path | None) -> None:
    """Write weights to `folder` as others were stored: in files of the same names, in the same dtypes.

    One file's tensors are held at once. All processes take part where the model is divided; those that do not write
    give no folder.

    Args:
        tensors_of: gives the tensors with some names.

    Raises:
        OSError: if a file cannot be written.
        SafetensorError: likewise.
    """
    files: dict[str, list[str]] = {}
    for name, tensor in stored.items():
        files.setdefault(Path(str(tensor.file)).name, []).append(name)
    for file, names in files.items():
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in tensors_of(names):
            if folder is not None:
                tensors[name] = tensor.to(FLOATS[stored[name].dtype], copy=True).contiguous()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / file, metadata={"format": "pt"})
