"""What repeated runs of a benchmark gave: kept with its settings, summed up over seeds, and compared in pairs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdmini_diffusers.evaluation.paired import paired_difference
from vdmini_diffusers.families import find_trainable_family
from vdmini_diffusers.serialization.atomic import write_file
from vdmini_diffusers.serialization.hashes import sha256_of


Results = dict[str, dict[int, dict[str, float]]]  # means over clips, by row and seed


def keep_settings(
    folder: Path, settings: Mapping[str, Any], teacher: Path | None = None, growing: Sequence[str] = ()
) -> None:
    """Write `settings.json`, a path by its last part.

    Args:
        teacher: a pipeline, of whose denoiser the hash is noted as well: another one may have the same name.
        growing: the settings that are mappings to which later starts may add; what is there stays as it is.

    Raises:
        ValueError: if the folder was begun with others, or has results by nobody knows which.
    """
    file = folder / "settings.json"
    if teacher is not None:
        settings = {**settings, "denoiser_sha256": denoiser_hash(teacher)}
    text = json.dumps(settings, indent=2, default=lambda path: path.name) + "\n"
    if file.exists():
        kept, given = json.loads(file.read_text()), json.loads(text)
        for name in growing:
            given[name] = {key: value for key, value in given[name].items() if key in kept.get(name, {})}
        if kept != given:  # their order says nothing
            raise ValueError(
                f"{file} has other settings: choose another --output_dir, or the settings that are there."
            )
    elif (folder / "results.json").exists():
        raise ValueError(f"{folder} has results.json without settings.json: copy both, which belong together.")
    write_file(file, text.encode())


def denoiser_hash(pipeline: Path) -> str:
    """The SHA-256 of the weights of a pipeline folder's denoiser."""
    denoiser = find_trainable_family(str(pipeline)).denoiser
    return sha256_of(pipeline / denoiser / "diffusion_pytorch_model.safetensors")


def earlier_results(file: Path) -> Results:
    """What runs of earlier starts gave, on this machine or another; nothing if there is no file."""
    if not file.exists():
        return {}
    return {row: {int(seed): run for seed, run in runs.items()} for row, runs in json.loads(file.read_text()).items()}


def means(numbers: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: float(np.mean(values)) for name, values in numbers.items()}


def levels(results: Results, measures: Sequence[str]) -> list[dict[str, Any]]:
    """A line for each row: mean and standard deviation over seeds of the measures that any row has."""
    shown = [name for name in measures if any(name in run for runs in results.values() for run in runs.values())]
    lines = []
    for row, by_seed in results.items():
        line: dict[str, Any] = {"row": row, "seeds": len(by_seed)}
        for measure in shown:
            values = [numbers[measure] for numbers in by_seed.values() if measure in numbers]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            line[measure] = f"{np.mean(values):.3f}{spread}" if values else ""
        lines.append(line)
    return lines


def differences(results: Results, against: Mapping[str, str | None], measures: Sequence[str]) -> list[dict[str, Any]]:
    """Each row less the one that it is compared with, over the seeds that both have: means and 95 % intervals.

    Args:
        against: by row. Pairs that share fewer than two seeds are left out, and measures that not all seeds have.
    """
    lines = []
    for row, other in against.items():
        own, theirs = results.get(row, {}), results.get(other or "", {})
        seeds = sorted(own.keys() & theirs.keys())
        if len(seeds) < 2:
            continue
        line: dict[str, Any] = {"row": f"{row}, less {other}", "seeds": len(seeds)}
        for measure in measures:
            if all(measure in runs[seed] for runs in (own, theirs) for seed in seeds):
                of, to = ([runs[seed][measure] for seed in seeds] for runs in (own, theirs))
                line[measure] = str(paired_difference(of, to))
        lines.append(line)
    return lines
