"""What a folder or a repository on the Hub is: family, plan, parameters, licence, provenance, training."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub

from vdmini_diffusers.families import family_of
from vdmini_diffusers.families.base import Family, TrainableFamily
from vdmini_diffusers.pruning.plans import PruningPlan
from vdmini_diffusers.pruning.presets import read_plan_file
from vdmini_diffusers.publishing.network_sketch import NetworkSketch, sketch_network
from vdmini_diffusers.serialization.cards import UNKNOWN_LICENSE, license_of
from vdmini_diffusers.serialization.pipeline_folder import check_links, describe_other, named_class, weight_stems
from vdmini_diffusers.serialization.repository import download, list_remote_files
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError, read_checkpoint, read_json, short_repr
from vdmini_diffusers.serialization.sources import RemoteFile


SMALL_FILES = [
    *("model_index.json", "README.md", "training.json", "config.json", "pruning_*.json"),
    *("*/config.json", "*/scheduler_config.json", "*/pruning_*.json", "*.safetensors.index*.json"),
]
WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model)(?:\.(?P<variant>[A-Za-z0-9_-]+?))?"
    r"(?:-\d{5}-of-\d{5}(?:\.(?P<variant_after>[A-Za-z0-9_-]+))?)?\.safetensors$"
)


@dataclass(frozen=True)
class ComponentInfo:
    """A component of a pipeline, or a model alone.

    Args:
        name: the folder's; empty for a model alone.
        class_name: as its index or its config names it.
        num_parameters: values of all tensors, from the headers of its weight files; None without any.
        num_teacher_parameters: of the network that it was pruned from.
        variants: of its weight files; None stands for files without one.
        plan: by which it was pruned.
        dropped_blocks: what was removed from it, with its parameters.
        sketch: what is drawn of it.
    """

    name: str
    class_name: str
    num_parameters: int | None = None
    num_bytes: int = 0
    dtypes: tuple[str, ...] = ()
    num_teacher_parameters: int | None = None
    variants: tuple[str | None, ...] = ()
    plan: PruningPlan | None = None
    dropped_blocks: Mapping[str, int] = field(default_factory=dict)
    sketch: NetworkSketch | None = None


@dataclass(frozen=True)
class TrainingInfo:
    """How a model was trained, as its `training.json` says.

    Args:
        is_distilled: whether a student was trained towards a teacher; otherwise a teacher was itself trained.
        losses: with their weights, as people read them.
        settings: all of the file.
    """

    is_distilled: bool
    losses: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class ModelInfo:
    """Made by `describe_model`.

    Args:
        name: folder or Hub id, as it was given.
        folder: where its small files are.
        commit: on the Hub.
        class_name: of the pipeline, or of the model alone.
        family: None if the package prunes no such pipeline.
        components: those that are not null.
        code_files: Python files that diffusers runs to open it, which takes `trust_remote_code=True`.
        license: `license`, `license_name` and `license_link` of its card; empty if it has none.
        base_model: ids on the Hub of what it was made from.
        provenance: of the component that was pruned first.
    """

    name: str
    folder: Path
    commit: str | None
    class_name: str
    is_pipeline: bool
    family: Family | None
    components: tuple[ComponentInfo, ...]
    code_files: tuple[str, ...]
    license: Mapping[str, str]
    base_model: tuple[str, ...]
    provenance: Mapping[str, Any]
    training: TrainingInfo | None

    @property
    def needs_trust_remote_code(self) -> bool:
        return bool(self.code_files)

    @property
    def pruned(self) -> tuple[ComponentInfo, ...]:
        return tuple(component for component in self.components if component.plan is not None)


def describe_model(name: str | os.PathLike, revision: str | None = None, **download_kwargs: Any) -> ModelInfo:
    """What a pipeline, a model alone, or a folder of pruned denoisers is. No weights are loaded.

    Of a repository on the Hub, small files are downloaded into the cache, and the headers of weight files are read.

    Args:
        name: a folder, or an id on the Hub.
        revision: branch, tag or commit on the Hub.
        download_kwargs: of `huggingface_hub.snapshot_download`: `token`, `cache_dir`, `local_files_only`, ...

    Raises:
        CheckpointError: a `ValueError`; if it is something else, damaged, or incomplete.
        OSError: if it cannot be read or downloaded.
    """
    commit, remote = None, {}
    if os.path.lexists(name):
        folder = Path(name)
        if not folder.is_dir():
            raise CheckpointError(describe_other(folder))
    else:
        folder = download(str(name), revision, SMALL_FILES, **download_kwargs)
        commit = folder.name
        remote = list_remote_files(str(name), commit, ["*.safetensors"], **download_kwargs)
    index: dict[str, Any] = {}
    if (folder / "model_index.json").exists():
        check_links(folder, [])
        index = read_json(folder / "model_index.json")
        class_name = named_class(index)
        if not isinstance(class_name, str):
            raise CheckpointError(f"{folder / 'model_index.json'} names no pipeline class: {short_repr(class_name)}.")
        entries = {key: entry for key, entry in index.items() if _is_component(key, entry)}
    else:
        class_name, entries = _models_of(folder)
    check_links(folder, [key for key in entries if key])
    if missing := [key for key in entries if commit is None and not (folder / key).is_dir()]:
        raise CheckpointError(f"{folder / 'model_index.json'} names the component {missing[0]!r}, which is missing.")
    components = tuple(_describe_component(folder, key, entry, remote) for key, entry in entries.items())
    family = family_of(class_name) if index else None
    card = folder / "README.md"
    found = license_of(card)
    pruned = [component.name for component in components if component.plan is not None]
    return ModelInfo(
        name=str(name),
        folder=folder,
        commit=commit,
        class_name=class_name,
        is_pipeline=bool(index),
        family=family,
        components=components,
        code_files=_code_files(index),
        license={} if found == UNKNOWN_LICENSE else found,
        base_model=_base_models(card),
        provenance=_optional_json(folder / pruned[0] / "pruning_provenance.json") if pruned else {},
        training=_training(folder, family),
    )


def _is_component(key: str, entry: Any) -> bool:
    """Whether an index names a component by a library, or a file of its own folder, and a class."""
    is_pair = isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
    # Nothing that could lead out of the folder.
    return is_pair and key != "_class_name" and all(re.fullmatch(r"\w+(\.\w+)*", part) for part in (key, *entry))


def _models_of(folder: Path) -> tuple[str, dict[str, list[str]]]:
    """The class and the parts of a folder without `model_index.json`: a model alone, or pruned denoisers."""
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        class_name = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
        if isinstance(class_name, str):
            return class_name, {"": ["diffusers" if "_class_name" in config else "transformers", class_name]}
    parts = {}
    for file in sorted(folder.glob("*/pruning_plan.json")):
        class_name = read_json(file.parent / "config.json").get("_class_name")
        parts[file.parent.name] = ["diffusers", str(class_name)]
    if not parts:
        raise CheckpointError(describe_other(folder))
    return next(iter(parts.values()))[1], parts


def _describe_component(folder: Path, name: str, entry: list[str], remote: Mapping[str, RemoteFile]) -> ComponentInfo:
    library, class_name = entry
    part = folder / name
    beside = {path.rpartition("/")[2]: file for path, file in remote.items() if path.rpartition("/")[0] == name}
    files = {*beside, *(path.name for path in (part.iterdir() if part.is_dir() else ()))}
    stem = weight_stems(library)[0]
    matches = [match for match in map(WEIGHTS.match, sorted(files)) if match and match["stem"] == stem]
    variants = tuple(sorted({match["variant"] or match["variant_after"] for match in matches}, key=lambda v: v or ""))
    tensors = read_checkpoint(part, stem, variants[0], beside) if variants else {}
    if not variants and (index := next((f for f in sorted(files) if ".safetensors.index" in f), None)):
        raise CheckpointError(f"{part / index} lists weight files, and none of them is there.")
    plan, record, config = None, {}, {}
    if (part / "config.json").is_file():
        config = read_json(part / "config.json")
    if (part / "pruning_plan.json").exists():
        plan, record = read_plan_file(part / "pruning_plan.json"), _optional_json(part / "pruning_provenance.json")
    counts = record.get("num_parameters")
    dropped = record.get("dropped_blocks")
    dropped = dropped if isinstance(dropped, dict) and all(type(n) is int for n in dropped.values()) else {}
    try:
        sketch = sketch_network(config, plan, dropped)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{part / 'config.json'} and the plan beside it do not fit together: {error}."
        ) from error
    num_parameters = sum(_numel(tensor.shape) for tensor in tensors.values()) if tensors else None
    num_teacher_parameters = None
    if isinstance(counts, dict) and num_parameters and all(type(counts.get(k)) is int for k in ("teacher", "student")):
        # Of a VAE, the record counts the decoder alone.
        num_teacher_parameters = num_parameters + counts["teacher"] - counts["student"]
    return ComponentInfo(
        name=name,
        class_name=class_name,
        num_parameters=num_parameters,
        num_bytes=sum(tensor.num_bytes for tensor in tensors.values()),
        dtypes=tuple(sorted({tensor.dtype for tensor in tensors.values()})),
        num_teacher_parameters=num_teacher_parameters,
        variants=variants,
        plan=plan,
        dropped_blocks=dropped,
        sketch=sketch,
    )


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _code_files(index: Mapping[str, Any]) -> tuple[str, ...]:
    """The files that an index names as the home of a class, which are neither a library's nor a stock pipeline's."""
    files = []
    if isinstance(index.get("_class_name"), list):
        module = index["_class_name"][0]
        if not isinstance(module, str) or not re.fullmatch(r"\w+", module):
            raise CheckpointError(f"model_index.json names {short_repr(module)} as the file of its pipeline's class.")
        files.append(f"{module}.py")
    for name, entry in index.items():
        if _is_component(name, entry) and not _is_library(entry[0]):
            files.append(f"{name}/{entry[0]}.py")
    return tuple(files)


def _is_library(name: str) -> bool:
    return name in ("diffusers", "transformers", "tokenizers", "onnxruntime") or hasattr(diffusers.pipelines, name)


def _base_models(card: Path) -> tuple[str, ...]:
    try:
        found = (huggingface_hub.metadata_load(card) or {}).get("base_model") if card.is_file() else None
    except Exception:  # the YAML reader's; as in `license_of`, a broken card need not stop anything
        found = None
    values = found if isinstance(found, list) else [found]
    return tuple(value for value in values if isinstance(value, str))


def _training(folder: Path, family: Family | None) -> TrainingInfo | None:
    settings = _optional_json(folder / "training.json")
    if not settings:
        return None
    losses = [f"task ({family.task})"] if isinstance(family, TrainableFamily) else []
    names = {"lambda_icd": "ICD", "lambda_mca": "MCA", "lambda_data_critic": "data critic"}
    for setting, name in names.items():
        weight, steps, start = settings.get(setting), settings.get("max_train_steps"), settings.get("mca_start_step")
        if name == "MCA" and isinstance(steps, int) and isinstance(start, int) and start >= steps:
            continue  # it never began
        if isinstance(weight, (int, float)) and weight > 0:
            losses.append(f"{name} x {weight:g}")
    losses += [f"reward {reward}" for key in ("image_rewards", "video_rewards") for reward in settings.get(key) or ()]
    return TrainingInfo(bool(settings.get("student")), tuple(losses), settings)


def _optional_json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
