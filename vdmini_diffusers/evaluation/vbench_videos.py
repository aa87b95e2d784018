"""The videos that VBench wants: from which prompt or picture, under which name, and from which seed.

The prompt lists are VBench's own files (`vbench/VBench_full_info.json`, `prompts/all_dimension.txt`,
`vbench2_beta_i2v/vbench2_i2v_full_info.json`), which a user brings. They are not trusted: a prompt becomes the name of
a file.
"""

import hashlib
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vdmini_diffusers.evaluation.vbench_scores import VIDEOS_PER_PROMPT
from vdmini_diffusers.serialization.checkpoint_error import CheckpointError, short_repr
from vdmini_diffusers.serialization.safetensors_reader import check_small_file, read_json


# Of which VBench-T2V's static filter chooses those to score (its prompts/README.md).
FLICKERING, FLICKERING_VIDEOS = "temporal_flickering", 25
MAX_NAME_BYTES = 255  # of common file systems


@dataclass(frozen=True)
class Prompt:
    """A prompt of a list. `image_name` is the file of the first frame, for image to video."""

    text: str
    dimensions: tuple[str, ...] = ()
    image_name: str | None = None

    @property
    def num_videos(self) -> int:
        many = FLICKERING in self.dimensions and self.image_name is None
        return FLICKERING_VIDEOS if many else VIDEOS_PER_PROMPT


class WantedVideo(NamedTuple):
    """A video that VBench looks for by its `name`. `seed` follows from the prompt, the index and the run's seed."""

    name: str
    prompt: Prompt
    seed: int


def read_vbench_prompts(file: str | os.PathLike, dimensions: Collection[str] = ()) -> list[Prompt]:
    """The prompts of a list of VBench's, each once, in the order of the list.

    Args:
        file: `.json`, VBench's full info; or `.txt`, a prompt a line, which does not say which dimensions a prompt is
            for.
        dimensions: those that the prompts are wanted for; by default all.

    Raises:
        CheckpointError: a `ValueError`; if the file is not such a list, if a prompt or the name of its picture cannot
            be the name of a file, or if nothing is for these dimensions.
        OSError: if it cannot be read.
    """
    file = Path(file)
    prompts = _read_lines(file) if file.suffix == ".txt" else [_parse(entry, file) for entry in read_json(file, list)]
    merged: dict[str, Prompt] = {}
    for prompt in prompts:
        _check_file_name(f"{prompt.text}-{prompt.num_videos - 1}.mp4", prompt.text, file)
        before = merged.get(prompt.text, prompt)
        if before.image_name != prompt.image_name:
            raise CheckpointError(f"{file}: {short_repr(prompt.text)} comes twice, with different pictures.")
        both = tuple(dict.fromkeys(before.dimensions + prompt.dimensions))
        merged[prompt.text] = Prompt(prompt.text, both, prompt.image_name)
    known = {name for prompt in merged.values() for name in prompt.dimensions}
    if unknown := sorted(set(dimensions) - known):
        raise CheckpointError(f"{file} has no prompt for {', '.join(unknown)}: it has some for {sorted(known)}.")
    kept = [prompt for prompt in merged.values() if not dimensions or set(dimensions) & set(prompt.dimensions)]
    if not kept:
        raise CheckpointError(f"{file} holds no prompt.")
    return kept


def wanted_videos(prompts: Iterable[Prompt], seed: int) -> list[WantedVideo]:
    """Every video of the prompts, in order."""
    return [
        WantedVideo(f"{prompt.text}-{index}.mp4", prompt, video_seed(prompt.text, index, seed))
        for prompt in prompts
        for index in range(prompt.num_videos)
    ]


def video_seed(prompt: str, index: int, seed: int) -> int:
    """A video's seed of 63 bits, the same whichever process makes it and whatever other prompts there are."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{index}\0{prompt}".encode()).digest()[:8], "big") >> 1


def _read_lines(file: Path) -> list[Prompt]:
    check_small_file(file)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is not UTF-8 text: {error}.") from error
    return [Prompt(line.strip()) for line in lines if line.strip()]


def _parse(entry: Any, file: Path) -> Prompt:
    values = entry if isinstance(entry, dict) else {}
    text, dimensions, image = values.get("prompt_en"), values.get("dimension"), values.get("image_name")
    is_list = isinstance(dimensions, list) and all(isinstance(name, str) for name in dimensions)
    if not isinstance(text, str) or not is_list or not isinstance(image, (str, type(None))):
        raise CheckpointError(
            f"{file}: each entry should have a text `prompt_en`, a list `dimension` and, for image to video, a text"
            f" `image_name`, unlike {short_repr(entry)}."
        )
    if image is not None:
        _check_file_name(image, text, file)
    return Prompt(text, tuple(dimensions or ()), image)


def _check_file_name(name: str, prompt: str, file: Path) -> None:
    """Raises `CheckpointError` unless `name` is that of a visible file in the folder that it is joined to."""
    if set(name) & set("/\\") or name.startswith(".") or not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
        raise CheckpointError(
            f"{file}: the prompt {short_repr(prompt)} cannot be the name of a file ({short_repr(name)}): no slashes,"
            f" no control characters, no dot at its beginning, at most {MAX_NAME_BYTES} bytes."
        )
