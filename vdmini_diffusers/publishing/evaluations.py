"""Results of benchmarks, read from the JSON files that they write, for the card of the model that they measured."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from vdmini_diffusers.serialization.safetensors_reader import read_json


# Of the quickstart's report: its measures of a model, the Hub's id of the metric, and its name.
QUICKSTART_MEASURES = {
    "psnr_to_teacher_db": ("psnr", "PSNR to the teacher's videos, dB"),
    "psnr_to_real_db": ("psnr", "PSNR to ground truth, dB"),
    "motion_cosine_to_real": ("motion_cosine", "cosine of motion to ground truth"),
    "motion_ratio_to_real": ("motion_ratio", "ratio of motion to ground truth"),
}


@dataclass(frozen=True)
class CardResult:
    """One number.

    Args:
        metric: id of the metric, e.g. `fvd`.
        name: of the metric, as people read it.
        dataset: what was measured on.
        interval: of confidence, where the benchmark has one.
        setting: in what way it was measured.
    """

    metric: str
    name: str
    value: float
    dataset: str
    interval: tuple[float, float] | None = None
    setting: str = ""


def read_evaluations(files: Iterable[Path], is_distilled: bool) -> list[CardResult]:
    """The numbers in the results of `benchmarks/fvd.py`, `benchmarks/score_vbench.py` and the quickstart.

    Args:
        is_distilled: which of the quickstart's models is meant: the distilled one, or the pruned one.

    Raises:
        ValueError: if a file is none of these.
        OSError: if it cannot be read.
    """
    found = []
    for file in files:
        content = read_json(file)
        try:
            results = _fvd(content) or _vbench(content) or _quickstart(content, is_distilled)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            results = []
        if not_finite := [each.name for each in results if not math.isfinite(each.value)]:
            raise ValueError(f"{file} says that {not_finite[0]} is no finite number: measure it anew.")
        if not results:
            raise ValueError(
                f"{file} holds no results that a card can show. Those of `benchmarks/fvd.py` (`fvd`, `protocol`), of"
                " `benchmarks/score_vbench.py` (`suite`, `total`) and of the quickstart (`models`) are."
            )
        found += results
    return found


def eval_results(results: Iterable[CardResult], task: str) -> list[EvalResult]:
    """For the `model-index` of a card. `task` is the Hub's name of it, e.g. `"image-to-video"`."""
    return [
        EvalResult(
            task_type=task,
            dataset_type=_slug(each.dataset),
            dataset_name=each.dataset,
            metric_type=each.metric,
            metric_value=each.value,
            metric_name=each.name,
        )
        for each in results
    ]


def results_table(results: Iterable[CardResult]) -> str:
    lines = ["| measure | value | on | how |", "|---|---|---|---|"]
    for each in results:
        interval = f" [{each.interval[0]:.2f}, {each.interval[1]:.2f}]" if each.interval else ""
        cells = (each.name, f"{each.value:g}{interval}", each.dataset, each.setting)
        lines.append(f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _fvd(content: Mapping[str, Any]) -> list[CardResult]:
    if not {"fvd", "kvd", "protocol", "real", "detector"} <= set(content):
        return []
    protocol, real = content["protocol"], content["real"]
    size = f"{protocol['num_frames']} x {protocol['height']} x {protocol['width']}"
    setting = f"{protocol['num_clips']} clips of {size}, {content['detector']['name']}"
    setting = ". ".join([setting, *map(str, content.get("warnings", ()))])
    dataset = Path(real["source"]).name
    return [
        CardResult(name, name.upper(), round(float(content[name]), 4), dataset, _interval(content, name), setting)
        for name in ("fvd", "kvd")
    ]


def _interval(content: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    found = content.get(f"{name}_interval")
    return (float(found[0]), float(found[1])) if isinstance(found, list) and len(found) == 2 else None


def _vbench(content: Mapping[str, Any]) -> list[CardResult]:
    """The total, if all dimensions were scored; otherwise each dimension that was."""
    if not {"suite", "scores", "total", "missing"} <= set(content):
        return []
    suite = {"t2v": "VBench-T2V", "i2v": "VBench-I2V"}.get(content["suite"], str(content["suite"]))
    found = []
    if not content["missing"] and isinstance(content["total"], list):
        found.append(CardResult("vbench", f"{suite} total, %", round(float(content["total"][0]), 2), suite))
    for name, score in content["scores"].items():
        found.append(CardResult("vbench", f"{suite} {name.replace('_', ' ')}", round(float(score), 4), suite))
    return found


def _quickstart(content: Mapping[str, Any], is_distilled: bool) -> list[CardResult]:
    models = content.get("models")
    model = models.get("distilled" if is_distilled else "pruned") if isinstance(models, dict) else None
    if not isinstance(model, dict):
        return []
    setting = f"sampling steps: {content.get('num_inference_steps')}"
    return [
        CardResult(metric, name, float(model[key]), "held-out clips of the quickstart", setting=setting)
        for key, (metric, name) in QUICKSTART_MEASURES.items()
        if isinstance(model.get(key), (int, float))
    ]


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split()) or "unnamed"
