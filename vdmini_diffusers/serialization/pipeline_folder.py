"""A teacher as the folder of a pipeline, downloaded or local. In either case it is not trusted."""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vdmini_diffusers.serialization.pickled_weights import find_pickles
from vdmini_diffusers.serialization.repository import download, fetch_file, list_remote_files
from vdmini_diffusers.serialization.safetensors_reader import (
    CheckpointError,
    StoredTensor,
    check_small_file,
    read_checkpoint,
    read_json,
    short_repr,
)
from vdmini_diffusers.serialization.sources import RemoteFile, Source, size_of


MAX_TOKENIZER_BYTES = 2**26
# The stems of safetensors and of pickled weights, by library.
STEMS = {
    "diffusers": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "transformers": ("model", "pytorch_model"),
}


# SHA-256 takes a second for a gigabyte, kept or not. SVD in single precision has 9 GB.
MAX_HASHED_BYTES = 10 * 10**9


# The tensors of a component and `[]`, or `{}` and the pickled files that hold them.
FoundWeights = tuple[dict[str, StoredTensor], list[Path]]


class Component(NamedTuple):
    """One entry of `model_index.json`.

    Args:
        library: the package that its class comes from, as an index names it.
        own: our class that it may have instead of one of the library's.
        nullable: whether a pipeline may lack it.
    """

    library: str
    has_weights: bool = True
    own: type[Any] | None = None
    nullable: bool = False

    def is_own(self, entry: Any) -> bool:
        """Whether an entry of `model_index.json` names our class, with its file. The file is not opened."""
        return self.own is not None and entry == [self.own.__module__.rpartition(".")[2], self.own.__name__]


@dataclass(frozen=True)
class PipelineLayout:
    """What a pipeline folder consists of.

    Args:
        class_names: names of the pipeline classes.
        components: the components by name. A pipeline has all that are not nullable, and no others.
    """

    class_names: tuple[str, ...]
    components: Mapping[str, Component]


@dataclass(frozen=True)
class Teacher:
    """A checked pipeline folder.

    Args:
        name: the Hub's id, or the name of a local folder, without its path, which is private.
        commit: the commit that `revision` was on the Hub; `None` for a local folder.
        components: those of its layout that it has; none, of the folder of a model alone.
        remote: weight files on the Hub, by their path in the repository.
    """

    folder: Path
    name: str
    revision: str | None
    commit: str | None
    index: dict[str, Any]
    components: Mapping[str, Component] = field(default_factory=dict)
    remote: Mapping[str, RemoteFile] = field(default_factory=dict)


def open_teacher(
    pretrained_model_name_or_path: str | os.PathLike,
    layout: PipelineLayout,
    *,
    variant: str | None = None,
    revision: str | None = None,
    weights: Collection[str] = (),
    allow_pickle: bool = False,
    **download_kwargs: Any,
) -> Teacher:
    """Find a teacher and check what its `model_index.json` says it consists of.

    Of one on the Hub, the configs are downloaded into the cache, and pickled weights that there is consent to. Other
    weights are only listed.

    Args:
        weights: the components whose weights will be read.
        download_kwargs: of `huggingface_hub.snapshot_download`: `token`, `cache_dir`, `local_files_only`, ...

    Raises:
        CheckpointError: if it is not a pipeline of that layout.
        OSError: if it cannot be read or downloaded.
        ValueError: if the name is neither that of a folder nor one that the Hub could have.
    """
    commit, remote = None, {}
    is_local = os.path.lexists(pretrained_model_name_or_path)
    if is_local:
        folder = _local_folder(pretrained_model_name_or_path)
        name = folder.resolve().name
    else:
        name = str(pretrained_model_name_or_path)
        folder = download(name, revision, _companion_paths(layout), **download_kwargs)
        commit = folder.name
    check_links(folder, layout.components)
    index = read_json(folder / "model_index.json")
    _check_index(index, folder / "model_index.json", layout)
    present = {name: part for name, part in layout.components.items() if not _is_null(index.get(name))}
    libraries = {part: present[part].library for part in weights if part in present and present[part].has_weights}
    if libraries and not is_local:
        remote = _remote_weights(name, folder, libraries, variant, allow_pickle, **download_kwargs)
    return Teacher(folder, name, revision, commit, index, present, remote)


def read_model_index(
    pretrained_model_name_or_path: str | os.PathLike, revision: str | None = None, **download_kwargs: Any
) -> tuple[dict[str, Any], Path]:
    """The `model_index.json` of a pipeline, a folder or a Hub id, and where it lies. Raises as `open_teacher`."""
    if os.path.lexists(pretrained_model_name_or_path):
        file = _local_folder(pretrained_model_name_or_path) / "model_index.json"
    else:
        file = fetch_file(str(pretrained_model_name_or_path), "model_index.json", revision, **download_kwargs)
    return read_json(file), file


def _local_folder(path: str | os.PathLike) -> Path:
    """A folder with a `model_index.json`. Raises `CheckpointError` with what there is instead."""
    folder = Path(path)
    if (folder / "model_index.json").exists():
        return folder
    raise CheckpointError(describe_other(folder))


def describe_other(path: Path) -> str:
    """What a file, or a folder without `model_index.json`, seems to be, and what to give instead."""
    if not path.is_dir():
        if not path.is_file():
            return f"{path} is neither a file nor a folder, but a broken link, say."
        what = "a single file, not a folder"
        advice = "SVD's single files, such as svd_xt.safetensors, have that layout under their names on the Hub, e.g."
        advice += " stabilityai/stable-video-diffusion-img2vid-xt; those of VideoCrafter2 and T2V-Turbo are converted"
        advice += " by conversion/convert_t2v_turbo_to_diffusers.py."
    elif (path / "adapter_config.json").exists() or any(path.glob("pytorch_lora_weights*")):
        what, advice = "a LoRA", "Merge it into its pipeline first: load_lora_weights, fuse_lora, save_pretrained."
    elif (path / "config.json").is_file():
        config = read_json(path / "config.json")
        class_name = config.get("_class_name") or config.get("architectures")
        what = f"a model alone ({short_repr(class_name)})"
        advice = "Give the folder of a pipeline with this model as a component: load the pipeline with it and"
        advice += " save_pretrained."
        if isinstance(class_name, str) and class_name.startswith("Autoencoder"):
            advice += " A VAE's decoder alone is pruned by conversion/prune_vae_decoder.py."
    elif found := sorted(file.name for ending in ("safetensors", "ckpt", "pt") for file in path.glob(f"*.{ending}")):
        what, advice = f"a folder of weight files ({short_repr(found[0])})", "Give the folder in diffusers' layout."
    else:
        what, advice = "a folder of another kind", "Give the folder that save_pretrained wrote."
    return (
        f"{path} is {what}: model_index.json is missing. A teacher is the folder of a pipeline in diffusers' layout,"
        f" with model_index.json and a folder for each component. {advice}"
    )


def named_class(index: Mapping[str, Any]) -> Any:
    """What an untrusted index names as its class: a string, if it is well formed."""
    class_name = index.get("_class_name")
    if isinstance(class_name, list):  # file and class, of a pipeline that is published with its code
        class_name = class_name[-1] if class_name else None
    return class_name


def pipeline_class_name(index: Mapping[str, Any], file: Path, known: Sequence[str]) -> str:
    """The class that an index names.

    Raises:
        CheckpointError: if it is not one of `known`.
    """
    class_name = named_class(index)
    if not isinstance(class_name, str) or class_name not in known:
        raise CheckpointError(f"{file} describes a {short_repr(class_name)}; a teacher is a {' or a '.join(known)}.")
    return class_name


def _remote_weights(
    name: str,
    folder: Path,
    libraries: Mapping[str, str],
    variant: str | None,
    allow_pickle: bool,
    **download_kwargs: Any,
) -> dict[str, RemoteFile]:
    """The safetensors of a repository. For components without any, and with consent, pickles are downloaded.

    Args:
        libraries: of the components that are wanted, by name.
    """
    patterns = {
        component: [f"{component}/{pattern}" for pattern in weight_patterns(library, variant, True)]
        for component, library in libraries.items()
    }
    wanted = [p for of_component in patterns.values() for p in of_component if p.endswith(".safetensors")]
    remote = list_remote_files(name, folder.name, wanted, **download_kwargs)
    if allow_pickle:
        with_safetensors = {path.partition("/")[0] for path in remote}
        pickled = [p for component in patterns.keys() - with_safetensors for p in patterns[component]]
        if pickled:
            download(name, folder.name, pickled, **download_kwargs)
    return remote


def _companion_paths(layout: PipelineLayout) -> list[str]:
    entries = layout.components.items()
    paths = [f"{name}/{pattern}" for name, entry in entries for pattern in _companion_patterns(entry)]
    return ["model_index.json", "LICENSE*", "NOTICE*", "README.md", *paths]


def _companion_patterns(component: Component) -> tuple[str, ...]:
    # A tokenizer's merges, its SentencePiece model, and the template of chats.
    return ("*.json",) if component.has_weights else ("*.json", "*.txt", "*.model", "*.jinja")


def weight_patterns(library: str, variant: str | None, allow_pickle: bool) -> list[str]:
    """Patterns of the weight files that `library` writes into a component's folder."""
    patterns = []
    dotted = f".{variant}" if variant else ""
    shard = "-?????-of-?????"
    for stem, ending in zip(weight_stems(library), ("safetensors", "bin"), strict=True):
        if ending == "safetensors" or allow_pickle:
            # Shards were once named the other way round: diffusion_pytorch_model-00001-of-00002.fp16.safetensors.
            middles = {dotted, f"{dotted}{shard}", f"{shard}{dotted}"}
            patterns += [f"{stem}{middle}.{ending}" for middle in sorted(middles)]
    return patterns


def _check_index(index: dict[str, Any], file: Path, layout: PipelineLayout) -> None:
    pipeline_class_name(index, file, layout.class_names)
    components = {
        name: entry
        for name, entry in index.items()
        if isinstance(entry, list) and name != "_class_name" and not _is_null(entry)
    }
    if unknown := components.keys() - layout.components.keys():
        raise CheckpointError(
            f"{file} names the component {short_repr(min(unknown))}; this pipeline has {sorted(layout.components)}."
        )
    for name, component in layout.components.items():
        entry, library = components.get(name), component.library
        if component.is_own(entry) or (component.nullable and _is_null(index.get(name))):
            continue
        if not entry or entry[0] != library or len(entry) != 2 or not re.fullmatch(r"[A-Za-z]\w*", str(entry[1])):
            hint = " It has been pruned already." if (file.parent / name / "pruning_plan.json").is_file() else ""
            raise CheckpointError(
                f"{file}: {name!r} must be a class of {library}{' or null' * component.nullable}, not"
                f" {short_repr(index.get(name))}.{hint}"
            )
    for name, value in index.items():
        if isinstance(value, dict):
            raise CheckpointError(f"{file}: {short_repr(name)} is an object; settings are numbers, texts or lists.")


def _is_null(entry: Any) -> bool:
    """Whether an index says that the pipeline lacks a component, or says nothing of it."""
    return entry is None or entry == [None, None]


def weight_stems(library: str) -> tuple[str, str]:
    """The stems of safetensors and of pickles. Models of diffusers' pipelines are stored as all its models."""
    return STEMS["transformers" if library == "transformers" else "diffusers"]


def check_links(folder: Path, subfolders: Iterable[str]) -> None:
    """Refuse links that lead out of a folder, among its top files that are copied and the files of `subfolders`.

    What is read or copied through such a link could be any file of the machine, and would be published.

    Raises:
        CheckpointError: naming the first such link.
    """
    top = [path for path in folder.iterdir() if re.match(r"LICENSE|NOTICE|README\.md$|model_index\.json$", path.name)]
    parts = [folder / name for name in subfolders]
    for path in sorted([*top, *parts, *(inner for part in parts if part.is_dir() for inner in part.iterdir())]):
        if any(link.is_symlink() for link in (path, path.parent)):
            check_inside(path, folder)


def check_inside(path: Path, folder: Path) -> None:
    """Raises `CheckpointError` unless a link leads to something in the folder, or in its repository's cache."""
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} is a link that leads back to itself.") from error
    if not any(target.is_relative_to(root) for root in _roots(folder)):
        raise CheckpointError(f"{path} is a link that leads out of the folder: put the file itself in its place.")


def _roots(folder: Path) -> list[Path]:
    """The folder itself and, for a snapshot in the Hub's cache, the files that it links to."""
    folder = folder.resolve()
    is_snapshot = folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name)
    return [folder, folder.parents[1] / "blobs"] if is_snapshot else [folder]


def companion_files(teacher: Teacher, without: Collection[str] = ()) -> list[str]:
    """What travels beside the weights, by path within the folder: configs, vocabulary, licence and notice.

    Args:
        without: components that are left out.

    Raises:
        CheckpointError: if a file is too large, or is a config but not JSON.
    """
    names = [
        f"{name}/{path.name}"
        for name, component in teacher.components.items()
        if name not in without
        for pattern in _companion_patterns(component)
        for path in sorted((teacher.folder / name).glob(pattern))
        if ".index." not in path.name
    ]
    for name in names:
        path = teacher.folder / name
        if path.name == "tokenizer.json":  # a vocabulary of 256,000 tokens takes 33 MB
            check_small_file(path, MAX_TOKENIZER_BYTES)
        elif path.suffix == ".json":
            read_json(path)
        else:
            check_small_file(path)
    return names + licence_files(teacher)


def licence_files(teacher: Teacher) -> list[str]:
    """Licence and notice, which travel with all weights made from the teacher's. Raises as `companion_files`."""
    names = []
    for path in sorted(teacher.folder.iterdir()):
        if re.fullmatch(r"(LICENSE|NOTICE)[\w.-]*", path.name) and not path.is_dir():
            check_small_file(path)
            names.append(path.name)
    return names


def find_weights(
    teacher: Teacher, subfolder: str, library: str, variant: str | None, allow_pickle: bool
) -> FoundWeights:
    """Where the weights of a component are; nothing but headers is read.

    Args:
        subfolder: the component's.
        library: the package that wrote the files.

    Raises:
        CheckpointError: as `read_checkpoint`, and if there are only pickles, without consent.
    """
    stem, pickled_stem = weight_stems(library)
    folder = teacher.folder / subfolder
    paths = ((path.rpartition("/"), file) for path, file in teacher.remote.items())
    remote = {name: file for (parent, _, name), file in paths if parent == subfolder}
    has_safetensors = remote or any(folder.glob(f"{stem}*.safetensors*"))
    pickles = [] if has_safetensors else find_pickles(folder, pickled_stem, variant)
    if pickles and not allow_pickle:
        raise CheckpointError(
            f"{pickles[0]} is a pickle, and {folder} has no safetensors. Reading a pickle can run code of"
            " whoever wrote it; if you trust the source, pass `allow_pickle=True` (--allow_pickle)."
        )
    return ({}, pickles) if pickles else (read_checkpoint(folder, stem, variant, remote), [])


def known_hashes(teacher: Teacher, files: Iterable[Source]) -> dict[Source, str | None]:
    """The files whose hash is not computed, with the hash that the Hub gave, or `None`.

    Where the Hub gave none, it is computed unless the files are so large that this would take most of the time.
    """
    known = {file: known_sha256(teacher, file) for file in files}
    unknown = [file for file, sha256 in known.items() if sha256 is None]
    if sum(size_of(file) for file in unknown) > MAX_HASHED_BYTES:
        return known
    return {file: sha256 for file, sha256 in known.items() if sha256 or isinstance(file, RemoteFile)}


def known_sha256(teacher: Teacher, file: Source) -> str | None:
    """The SHA-256 that the Hub gave for a large `file`; or `None`.

    The Hub lists it for a file that is not downloaded, and the cache names large files by it, whose size the download
    has checked. What lies in a local folder proves nothing: whoever made the folder wrote it.
    """
    if isinstance(file, RemoteFile):
        return file.sha256
    name = file.resolve().name
    return name if teacher.commit and re.fullmatch(r"[0-9a-f]{64}", name) else None
