"""What of a folder goes to the Hub: the files of its pipeline, by a list of what is allowed, and nothing else."""

import json
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from PIL import Image

from vdmini_diffusers.distillation.engine import without_folders
from vdmini_diffusers.publishing.model_info import ModelInfo
from vdmini_diffusers.serialization.checkpoint_error import short_message
from vdmini_diffusers.serialization.pipeline_folder import check_inside, check_links


# In the folder itself, and in that of a component. Code comes on top: the files that `model_index.json` names. Our
# pipelines go up where it names diffusers' own as well, as cards say how to open the folder with them.
ALLOWED_AT_TOP = ("model_index.json", "training.json", "LICENSE*", "NOTICE*", "pipeline_vdmini_*.py")
ALLOWED_IN_COMPONENTS = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
# What training leaves beside a pipeline. Students are distilled with a teacher's discriminator; theirs is of no use.
ALLOWED_BESIDE = {"discriminator": ("config.json", "*.safetensors"), "lora": ("*.safetensors", "*.json")}
SAMPLES = "samples"
SAMPLE_ENDINGS = (".mp4", ".gif", ".png", ".webp", ".jpg")
MAX_SAMPLE_BYTES = 50 * 2**20
MAX_SCANNED_BYTES = 2**24
TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")


def publishable_files(info: ModelInfo) -> dict[str, Path]:
    """The files of a pipeline by their path in the repository, without card, pictures and samples.

    Raises:
        CheckpointError: if a file is a link that leads out of the folder.
        FileNotFoundError: if a file is missing that the pipeline names.
    """
    folder = info.folder
    for path in _files(folder):
        if path.is_symlink() and _is_allowed(path.name, ALLOWED_AT_TOP):
            check_inside(path, folder)
    names = [part.name for part in info.components]
    beside = [
        name for name in ALLOWED_BESIDE if (folder / name).is_dir() and not (name == "discriminator" and info.pruned)
    ]
    check_links(folder, [*names, *beside])
    found = {path.name: path for path in _files(folder) if _is_allowed(path.name, ALLOWED_AT_TOP)}
    for name in names:
        found |= {f"{name}/{p.name}": p for p in _files(folder / name) if _is_allowed(p.name, ALLOWED_IN_COMPONENTS)}
    for name in beside:
        found |= {f"{name}/{p.name}": p for p in _files(folder / name) if _is_allowed(p.name, ALLOWED_BESIDE[name])}
    for name in info.code_files:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing, and model_index.json names it as the home of a class."
            )
        found[name] = folder / name
    return dict(sorted(found.items()))


def left_out(info: ModelInfo, taken: Mapping[str, object]) -> list[str]:
    """What else is in the folder, by its path; whole folders as `name/`."""
    folder, found = info.folder, set()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name in taken:
            continue
        top = name.partition("/")[0]
        is_whole = top != name and not any(each.startswith(f"{top}/") for each in taken)
        found.add(f"{top}/" if is_whole else name)
    return sorted(found)


def find_samples(info: ModelInfo, given: tuple[Path, ...]) -> dict[str, Path]:
    """Videos and pictures for the card by their path in the repository: the given ones, or those in `samples/`.

    Raises:
        ValueError: if one is no video or picture that a browser shows, or two have one name.
        OSError: if one cannot be read.
    """
    folder = info.folder / SAMPLES
    if not given:
        check_links(info.folder, [SAMPLES])
    files = given or tuple(p for p in (_files(folder) if folder.is_dir() else ()) if p.suffix in SAMPLE_ENDINGS)
    found: dict[str, Path] = {}
    for file in files:
        _check_sample(file)
        path = f"{SAMPLES}/{re.sub(r'[^A-Za-z0-9_.-]', '_', file.name)}"
        if path in found:
            raise ValueError(f"{file} and {found[path]} have one name: rename one of them.")
        found[path] = file
    return found


def stage(files: Mapping[str, Path | bytes], folder: Path) -> None:
    """Lay files out in an empty folder as they will be in the repository. Large ones are linked.

    Raises:
        ValueError: if a text file holds what looks like a token of the Hub.
    """
    for name, source in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, Path) and source.stat().st_size > MAX_SCANNED_BYTES:
            os.symlink(source.resolve(), target)
            continue
        content = source if isinstance(source, bytes) else source.read_bytes()
        if name.endswith("config.json"):
            content = _without_local_paths(content)
        if not name.endswith((".safetensors", *SAMPLE_ENDINGS)) and TOKEN.search(content):
            raise ValueError(
                f"{name} holds what looks like an access token of the Hub: remove it, and revoke the token."
            )
        target.write_bytes(content)


def _without_local_paths(config: bytes) -> bytes:
    """A config without the path on this machine that its model was loaded from, byte for byte the same otherwise."""
    try:
        found = json.loads(config)
    except ValueError:
        return config
    source = found.get("_name_or_path") if isinstance(found, dict) else None
    if not isinstance(source, str) or not Path(source).is_absolute():
        return config
    found["_name_or_path"] = without_folders(source)
    return (json.dumps(found, indent=2, sort_keys=True) + "\n").encode()


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]


def _is_allowed(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_sample(file: Path) -> None:
    if file.suffix not in SAMPLE_ENDINGS:
        raise ValueError(f"{file} is no sample that a browser shows: give {', '.join(SAMPLE_ENDINGS)}.")
    size = file.stat().st_size
    if size > MAX_SAMPLE_BYTES:
        raise ValueError(
            f"The sample {file} has {size:,} bytes; more than {MAX_SAMPLE_BYTES:,} load too slowly on a page."
        )
    if file.suffix == ".mp4":
        with file.open("rb") as stream:
            if stream.read(12)[4:8] != b"ftyp":
                raise ValueError(f"{file} is no MP4 file.")
        return
    try:
        with Image.open(file) as picture:
            picture.verify()
    except Exception as error:  # Pillow's, which differ by format
        raise ValueError(f"{file} is no picture that can be read: {short_message(error)}") from error
