"""VBench's totals from the scores of its dimensions, for text to video and for image to video.

Each dimension's mean is scaled by the range that VBench gives it, `(score - low) / (high - low)`, without clipping. A
part is the weighted mean of its dimensions, and the total the weighted mean of the parts. Ranges and weights are those
of `scripts/constant.py` of Vchitect/VBench (commit 45e79ec), parts and totals those of `scripts/cal_final_score.py`
and `scripts/cal_i2v_final_score.py` there. Those count a missing dimension as 0; here it makes an interval of the
result.

`vbench` itself is not needed, and not imported: it wants older versions of what diffusers builds on.
"""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vdmini_diffusers.serialization.checkpoint_error import CheckpointError, short_repr
from vdmini_diffusers.serialization.safetensors_reader import read_json


RESULTS_ENDING = "_eval_results.json"  # as VBench names its files
VIDEOS_PER_PROMPT = 5  # that VBench scores, of the static videos of `temporal_flickering` as well


class Dimension(NamedTuple):
    """A dimension of a suite; `num_prompts` is how many of its prompts VBench scores the dimension on."""

    part: str
    num_prompts: int
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


@dataclass(frozen=True)
class Suite:
    """Dimensions by VBench's names, and the weight of each part in the total."""

    name: str
    parts: Mapping[str, float]
    dimensions: Mapping[str, Dimension]


T2V_SUITE = Suite(
    "VBench-T2V",
    {"quality": 4, "semantic": 1},
    {
        "subject_consistency": Dimension("quality", 72, 0.1462),
        "background_consistency": Dimension("quality", 86, 0.2615),
        "temporal_flickering": Dimension("quality", 75, 0.6293),
        "motion_smoothness": Dimension("quality", 72, 0.706, 0.9975),
        "dynamic_degree": Dimension("quality", 72, weight=0.5),
        "aesthetic_quality": Dimension("quality", 93),
        "imaging_quality": Dimension("quality", 93),
        "object_class": Dimension("semantic", 79),
        "multiple_objects": Dimension("semantic", 82),
        "human_action": Dimension("semantic", 100),
        "color": Dimension("semantic", 85),
        "spatial_relationship": Dimension("semantic", 84),
        "scene": Dimension("semantic", 86, 0.0, 0.8222),
        "appearance_style": Dimension("semantic", 90, 0.0009, 0.2855),
        "temporal_style": Dimension("semantic", 100, 0.0, 0.364),
        "overall_consistency": Dimension("semantic", 93, 0.0, 0.364),
    },
)
I2V_SUITE = Suite(
    "VBench-I2V",
    {"i2v": 1, "quality": 1},
    {
        "i2v_subject": Dimension("i2v", 246, 0.1462),
        "i2v_background": Dimension("i2v", 109, 0.2615),
        "camera_motion": Dimension("i2v", 763, weight=0.1),
        "subject_consistency": Dimension("quality", 246, 0.1462),
        "background_consistency": Dimension("quality", 109, 0.2615),
        "motion_smoothness": Dimension("quality", 246, 0.706, 0.9975),
        "dynamic_degree": Dimension("quality", 246, weight=0.5),
        "aesthetic_quality": Dimension("quality", 355),
        "imaging_quality": Dimension("quality", 355),
    },
)
SUITES = {"t2v": T2V_SUITE, "i2v": I2V_SUITE}


class Interval(NamedTuple):
    """A score in per cent; where dimensions are missing, what it would be with each of them at its range's ends."""

    low: float
    high: float

    def __str__(self) -> str:
        low, high = f"{self.low:.2f}", f"{self.high:.2f}"
        return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class VBenchTotals:
    """`parts` by name, the `total` of them, and the dimensions that are `missing`."""

    parts: Mapping[str, Interval]
    total: Interval
    missing: tuple[str, ...]


class Result(NamedTuple):
    """A dimension's mean score, a fraction, and how many videos it is the mean of, where the file says so."""

    score: float
    num_videos: int | None = None


def num_videos_of(dimension: Dimension) -> int:
    """How many videos VBench scores a dimension on."""
    return VIDEOS_PER_PROMPT * dimension.num_prompts


def is_partial(result: Result | None, dimension: Dimension) -> bool:
    """Whether a result is of fewer videos than that, so that it is none to compare with others'."""
    return result is not None and result.num_videos is not None and result.num_videos < num_videos_of(dimension)


def totals_of(scores: Mapping[str, float], suite: Suite) -> VBenchTotals:
    """The totals of a suite.

    Args:
        scores: the dimensions' mean scores as VBench writes them: fractions, not per cent.

    Raises:
        ValueError: if a dimension is unknown, or a score is not a number from 0 to 1.
    """
    if unknown := sorted(set(scores) - set(suite.dimensions)):
        raise ValueError(f"{suite.name} has no dimension {', '.join(unknown)}: it has {', '.join(suite.dimensions)}.")
    for name, score in scores.items():
        _check_score(score, name)
    ends = [{part: _part(scores, suite, part, missing) for part in suite.parts} for missing in (0.0, 1.0)]
    totals = [total_of_parts(parts, suite) for parts in ends]
    parts = {part: Interval(ends[0][part], ends[1][part]) for part in suite.parts}
    return VBenchTotals(parts, Interval(*totals), tuple(name for name in suite.dimensions if name not in scores))


def total_of_parts(parts: Mapping[str, float], suite: Suite) -> float:
    """The total of the scores of a suite's parts, e.g. `{"quality": 83.33, "semantic": 77.38}`, in their unit.

    Raises:
        ValueError: if these are not the suite's parts.
    """
    if set(parts) != set(suite.parts):
        raise ValueError(f"{suite.name}'s parts are {', '.join(suite.parts)}, not {', '.join(sorted(parts))}.")
    return sum(weight * parts[part] for part, weight in suite.parts.items()) / sum(suite.parts.values())


def normalised(score: float, dimension: Dimension) -> float:
    """A dimension's score on its range."""
    return (score - dimension.low) / (dimension.high - dimension.low)


def read_results(paths: Iterable[str | os.PathLike], suite: Suite) -> dict[str, Result]:
    """The suite's dimensions that VBench's `*_eval_results.json` hold, from files and from folders of them.

    VBench-I2V scores `temporal_flickering` as well and leaves it out of its totals, and so does this.

    Raises:
        CheckpointError: a `ValueError`; if a file is not one of VBench's results, a score is no fraction, or two files
            give a dimension different scores.
        OSError: if a file cannot be read.
    """
    files = [file for path in map(Path, paths) for file in (_result_files(path) if path.is_dir() else [path])]
    found: dict[str, tuple[Result, Path]] = {}
    for file in files:
        for name, entry in read_json(file).items():
            result = _parse_result(entry, name, file)
            if name in found and found[name][0] != result:
                raise CheckpointError(f"{found[name][1]} and {file} disagree on {short_repr(name)}: keep one.")
            if name in suite.dimensions:
                found[name] = result, file
            elif name not in T2V_SUITE.dimensions and name not in I2V_SUITE.dimensions:
                raise CheckpointError(f"{file}: VBench has no dimension {short_repr(name)}.")
    if not found:
        where = ", ".join(map(str, files)) or "these folders"
        raise CheckpointError(f"There is no dimension of {suite.name} in {where}.")
    return {name: found[name][0] for name in suite.dimensions if name in found}


def _part(scores: Mapping[str, float], suite: Suite, part: str, missing: float) -> float:
    """A part's score in per cent, with `missing` for the scaled scores of missing dimensions."""
    own = {name: dimension for name, dimension in suite.dimensions.items() if dimension.part == part}
    scaled = {name: normalised(scores[name], each) if name in scores else missing for name, each in own.items()}
    return 100 * sum(each.weight * scaled[name] for name, each in own.items()) / sum(d.weight for d in own.values())


def _result_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob(f"*{RESULTS_ENDING}"))
    if not files:
        raise CheckpointError(f"{folder} holds no file *{RESULTS_ENDING}, as VBench's `evaluate` writes them.")
    return files


def _parse_result(entry: Any, name: str, file: Path) -> Result:
    """VBench writes `[mean, ..., results of each video]` for each dimension."""
    if not isinstance(entry, list) or not entry:
        raise CheckpointError(f"{file}: {short_repr(name)} should be a list of a mean and of the videos' results.")
    try:
        score = _check_score(entry[0], name)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return Result(score, len(entry[-1]) if isinstance(entry[-1], list) else None)


def _check_score(score: Any, name: str) -> float:
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise ValueError(f"The score of {short_repr(name)} should be a number, not {short_repr(score)}.")
    if not 0 <= score <= 1:
        raise ValueError(f"The score of {short_repr(name)} should be a fraction, 0 to 1, not {score} (per cent?).")
    return float(score)
