"""Scores measured over several prompts or pictures, in a file from which an interrupted measurement goes on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from vdmini_diffusers.analysis.f3.layers import F3Error, temporal_denoisers
from vdmini_diffusers.analysis.f3.scores import TemporalScores, measure_temporal_attention
from vdmini_diffusers.serialization.atomic import write_file
from vdmini_diffusers.serialization.hashes import weights_sha256
from vdmini_diffusers.serialization.safetensors_reader import short_repr


F3_SCORES = "f3_scores.json"


def measure_pipeline(
    pipe: Any,
    samples: Mapping[str, str | Image.Image],
    argument: str,
    file: Path,
    settings: Mapping[str, Any],
    max_queries_per_frame: int | None = None,
    seed: int = 0,
) -> dict[str, TemporalScores]:
    """The scores of a pipeline's denoisers, by component, over videos that it samples.

    Args:
        samples: what each video is made from, by a name that is noted in `file`, with a hash of a picture.
        argument: of the pipeline that takes it: `"prompt"` or `"image"`.
        file: where the scores are kept after each video. Videos that are noted there are not sampled again.
        settings: further arguments of the pipeline, which JSON can hold.
        seed: of the first video's noise; the next has the next seed.

    Raises:
        F3Error: if `file` is damaged, or holds scores that were measured otherwise.
    """
    denoisers = temporal_denoisers(pipe)
    noted = {
        "model": pipe.config.get("_name_or_path"),
        "weights_sha256": {name: _hash_of(model) for name, model in denoisers.items()},
        "settings": dict(settings),
        "max_queries_per_frame": max_queries_per_frame,
        "seed": seed,
    }
    names = [f"{name} {_picture_hash(sample)}".rstrip() for name, sample in samples.items()]
    done, scores = _read(file, noted, names)
    for index, (name, sample) in enumerate(zip(tqdm(names, desc="videos"), samples.values(), strict=True)):
        if index < len(done):
            continue
        with ExitStack() as contexts:
            for component, model in denoisers.items():
                measure = measure_temporal_attention(model, max_queries_per_frame, scores.get(component))
                scores[component] = contexts.enter_context(measure)
            # The global one, as schedulers that add noise between steps are given none by SVD's pipeline.
            generator = torch.manual_seed(seed + index)
            pipe(**{argument: sample}, **settings, generator=generator, output_type="latent")
        done.append(name)
        components = {component: each.to_json_object() for component, each in scores.items()}
        write_file(file, json.dumps(noted | {"done": done, "scores": components}, indent=1).encode())
    return scores


def _hash_of(model: torch.nn.Module) -> str | None:
    """A hash of all weights, with their dtype; None where offloading has taken them away."""
    return None if any(tensor.is_meta for tensor in model.state_dict().values()) else weights_sha256(model)


def _picture_hash(sample: str | Image.Image) -> str:
    return "" if isinstance(sample, str) else hashlib.sha256(sample.convert("RGB").tobytes()).hexdigest()[:16]


def _read(file: Path, noted: Mapping[str, Any], samples: Sequence[str]) -> tuple[list[str], dict[str, TemporalScores]]:
    """The samples that are done, and their scores."""
    if not file.exists():
        return [], {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        done = list(found["done"])
        scores = {name: TemporalScores.from_json_object(value) for name, value in found["scores"].items()}
        before = {key: found[key] for key in noted}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise F3Error(f"{file} holds no scores that can be gone on with ({error}): remove it.") from error
    if before != json.loads(json.dumps(noted)) or done != list(samples[: len(done)]):
        raise F3Error(
            f"{file} was measured with {short_repr(before)} on {short_repr(done)}, and now {short_repr(dict(noted))}"
            f" on {short_repr(list(samples))} are asked for: choose another folder, or remove the file."
        )
    return done, scores
