"""Which clips are asked for: from one picture, a folder of them, a prompt or a file of prompts, each with its seed."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from vdmini_diffusers.data.listed_files import list_files
from vdmini_diffusers.generation.clip_files import check_ending, read_record
from vdmini_diffusers.serialization.atomic import check_apart


@dataclass(frozen=True)
class Job:
    """A clip to make from an image file, a prompt or both, under the name `output`."""

    output: Path
    seed: int
    image: Path | None = None
    prompt: str | None = None

    def record(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What the clip's file says it was made with. Paths are left out, as they are private."""
        image = None if self.image is None else self.image.name.encode("utf-8", "backslashreplace").decode()
        given = {"image": image, "prompt": self.prompt, "seed": self.seed}
        return {name: value for name, value in {**given, **settings}.items() if value is not None}


@dataclass(frozen=True)
class Request:
    """The clips that are asked for: one, or as many as go into `folder`."""

    jobs: list[Job]
    folder: Path | None = None


def request_of(image: Path | None, prompt: str | None, out: Path | None, seed: int) -> Request:
    """The clips that are asked for.

    One picture or prompt makes one file, by default `<name>.mp4` in the current folder, from `seed` itself. A folder
    of pictures or a text file of prompts, one a line, makes a folder of mp4 files, by default `<name>_clips`; the
    seed of each is `derived_seed` of its name.

    Raises:
        ValueError: if there is nothing to make, or `out` does not fit.
        OSError: if a folder or file cannot be read.
    """
    if image is None and prompt is None:
        raise ValueError("Give a picture (--image photo.jpg), a prompt (--prompt 'A corgi surfs') or both.")
    if prompt is not None and not prompt.strip():
        raise ValueError("The prompt is empty: say what the video should show.")
    prompts = None if prompt is None or not prompt.endswith(".txt") else read_prompt_lines(Path(prompt))
    if image is not None and prompts is not None:
        raise ValueError("A file of prompts does not go with --image: give one prompt for all pictures.")
    if image is not None and image.is_dir():
        return _of_folder(image, prompt, out or Path(f"{image.resolve().name}_clips"), seed)
    if prompts is not None:
        return _of_prompts(prompts, out or Path(f"{Path(str(prompt)).stem}_clips"), seed)
    if image is not None and not image.is_file():
        raise FileNotFoundError(f"There is no picture {image}, and no folder of that name.")
    out = out or Path(f"{image.stem if image is not None else short_name(str(prompt))}.mp4")
    if out.is_dir():
        raise ValueError(f"{out} is a folder: give the name of a file, such as {out / 'clip.mp4'}.")
    check_ending(out)
    if image is not None and image.resolve() == out.resolve():
        raise ValueError(f"{out} is the picture itself: give another name for the clip.")
    return Request([Job(out, seed, image, prompt)])


def derived_seed(seed: int, name: str) -> int:
    """The seed of one of several clips, 0 to 2^32 - 1: the same for a name whichever others there are."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4])


def refuse_existing(request: Request, overwrite: bool) -> None:
    """Raises `FileExistsError` if one clip is asked for, and its file is there."""
    if request.folder is None and not overwrite and request.jobs[0].output.exists():
        raise FileExistsError(f"{request.jobs[0].output} exists: give another name, or replace it with --overwrite.")


def unfinished(request: Request, settings: Mapping[str, Any], overwrite: bool) -> list[Job]:
    """The jobs whose files are not there yet. Those that are there in a folder stay as they are.

    Args:
        settings: what the files should say that they were made with, besides what `Job.record` adds.

    Raises:
        FileExistsError: if the file is there, or a folder has one that was not made with these settings.
    """
    if overwrite:
        return request.jobs
    refuse_existing(request, overwrite)
    there = [job for job in request.jobs if job.output.exists()]
    for job in there:
        found, wanted = read_record(job.output), job.record(settings)
        if found is None:
            raise FileExistsError(
                f"{job.output} exists and is no finished clip of this command: move it, or add --overwrite."
            )
        other = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name) and name != "steps"]
        if other:
            raise FileExistsError(
                f"{job.output} was made with {other[0]} {found.get(other[0])!r}, now {wanted.get(other[0])!r}: give"
                " another folder, or the same settings to go on, or --overwrite."
            )
    return [job for job in request.jobs if job not in there]


def read_prompt_lines(file: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        ValueError: if there is none, or it is not UTF-8.
        OSError: if it cannot be read.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}: a prompt that ends in .txt names a file of prompts.")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: save it as such.") from error
    if not any(lines):
        raise ValueError(f"{file} holds no prompt: write one a line.")
    return [line for line in lines if line]


def short_name(prompt: str) -> str:
    """A file's name that tells prompts apart, without an ending."""
    return re.sub(r"\W+", "-", prompt.lower()).strip("-")[:60].rstrip("-") or "clip"


def picture_endings() -> set[str]:
    """The endings of files that Pillow reads here, and of HEIC, which is then refused by name."""
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return (known | {".heic", ".heif", ".avif"}) - {".eps", ".ps", ".pdf", ".mpg", ".mpeg"}


def _of_folder(folder: Path, prompt: str | None, out: Path, seed: int) -> Request:
    _check_folder(out)
    check_apart(out, {"the pictures": folder}, flag="--out")
    files, skipped = list_files(folder)
    if unusable := [file.name for file in skipped if file.reason == "name is not UTF-8"]:
        raise ValueError(f"{folder} has a file whose name is not UTF-8, {unusable[0]}: rename it, or move it away.")
    names = [name for name in files if PurePosixPath(name).suffix.lower() in picture_endings()]
    if not names:
        raise ValueError(f"There is no picture in {folder} (JPEG, PNG, WebP and others, known by their endings).")
    # photo.jpg and photo.png become two clips.
    stems = Counter(PurePosixPath(name).with_suffix("") for name in names)
    jobs = []
    for name in names:
        path = PurePosixPath(name)
        stem = path.stem if stems[path.with_suffix("")] == 1 else path.name.replace(".", "_")
        jobs.append(Job(out / path.parent / f"{stem}.mp4", derived_seed(seed, name), folder / name, prompt))
    outputs = Counter(job.output for job in jobs)
    if twice := [job for job in jobs if outputs[job.output] > 1]:
        one, other = (job.image for job in twice if job.output == twice[0].output)
        raise ValueError(f"{one} and {other} would become one clip, {twice[0].output.name}: rename one of them.")
    return Request(jobs, out)


def _of_prompts(prompts: Sequence[str], out: Path, seed: int) -> Request:
    _check_folder(out)
    names = [f"{i:04d}-{short_name(prompt)}" for i, prompt in enumerate(prompts, 1)]
    named = zip(names, prompts, strict=True)
    return Request([Job(out / f"{name}.mp4", derived_seed(seed, name), prompt=prompt) for name, prompt in named], out)


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: several clips go into a folder, so give a folder's name as --out.")
    if out.suffix.lower() in (".mp4", ".gif", ".png") and not out.exists():
        raise ValueError(f"{out} is a file's name: several clips go into a folder, so give a folder's name as --out.")
    check_ending(out / "clip.mp4")
