"""The aggregate temporal attention of layers and denoising steps, measured while a model samples."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.hooks import ModelHook
from torch import Tensor, nn

from vdmini_diffusers.analysis.f3.attention import mass_on_other_frames
from vdmini_diffusers.analysis.f3.layers import (
    APPLIED,
    ClipNotes,
    F3Error,
    attention_class,
    registry,
    replace_attention,
    temporal_layers,
)
from vdmini_diffusers.serialization.safetensors_reader import short_repr


MEASURING = "f3_scores"  # the name of the hooks


class TemporalScores:
    """What was measured: for each layer and timestep, the mean attention to tokens of other frames.

    A score is that mean over the queries of the video, from 0 to 1. The paper sums attention values instead; where all
    layers have equally many queries and heads, as in transformers, the order is the same. In U-Nets it is not, and a
    sum would rank the layers by their resolution.

    Args:
        model_class: a key of `TEMPORAL_ATTENTION`.
        layers: their names, in the order of the model.
    """

    def __init__(self, model_class: str, layers: tuple[str, ...]):
        self.model_class = model_class
        # By layer and timestep: the sum of what was measured, and how often.
        self.sums: dict[str, dict[str, list[float]]] = {layer: {} for layer in layers}

    def add(self, layer: str, timestep: float, mass: float) -> None:
        """Raises `F3Error` for a mass that is not finite, which would rank the layer anywhere."""
        if not math.isfinite(mass):
            raise F3Error(
                f"The attention of {layer} is not finite at timestep {timestep:g}: measure in another precision, such"
                " as bfloat16 instead of float16."
            )
        entry = self.sums[layer].setdefault(str(timestep), [0.0, 0])
        entry[0] += mass
        entry[1] += 1

    def by_layer(self) -> dict[str, float]:
        """The score of each layer: the mean over all that was measured.

        Raises:
            F3Error: if the model has not run.
        """
        self._check_measured()
        return {layer: _mean(list(steps.values())) for layer, steps in self.sums.items()}

    def by_step(self) -> dict[str, float]:
        """The score of each denoising step: the mean over the layers, by timestep, in the order of sampling.

        Raises:
            F3Error: if the model has not run.
        """
        self._check_measured()
        timesteps = sorted({step for steps in self.sums.values() for step in steps}, key=float, reverse=True)
        means = {step: [_mean([steps[step]]) for steps in self.sums.values() if step in steps] for step in timesteps}
        return {step: sum(layers) / len(layers) for step, layers in means.items()}

    def _check_measured(self) -> None:
        if missing := [layer for layer, steps in self.sums.items() if not steps]:
            raise F3Error(f"No attention was measured in {missing[0]}: run the model within the context.")

    def to_json_object(self) -> dict[str, Any]:
        return {"model_class": self.model_class, "sums": self.sums}

    @classmethod
    def from_json_object(cls, value: Any) -> "TemporalScores":
        """Raises `F3Error` if `value` is not what `to_json_object` returned."""
        try:
            scores = cls(str(value["model_class"]), tuple(value["sums"]))
            for layer, steps in value["sums"].items():
                for step, (total, count) in steps.items():
                    if not 0 <= float(total) <= int(count):
                        raise ValueError(f"{total} is no sum of {count} scores from 0 to 1")
                    scores.sums[layer][str(float(step))] = [float(total), int(count)]
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            found = short_repr(json.dumps(value, default=repr))
            raise F3Error(f"These are not scores of temporal attention ({error}): {found}.") from error
        return scores


def _mean(entries: list[list[float]]) -> float:
    return sum(total for total, _ in entries) / sum(count for _, count in entries)


class ScoreHook(ModelHook):
    """Measures an attention while it runs, and leaves its output as it is."""

    def __init__(self, layer: str, scores: TemporalScores, clip: ClipNotes, max_queries_per_frame: int | None):
        super().__init__()
        self.layer, self.scores, self.clip = layer, scores, clip
        self.max_queries_per_frame = max_queries_per_frame

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The attention's own."""
        tokens = self.clip.tokens(*args, **kwargs)

        if tokens.num_frames < 2:
            raise F3Error("This video has one frame (in latents), and thus no attention to others: take more frames.")

        def measured(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
            mass = mass_on_other_frames(query, key, mask, scale, tokens, self.max_queries_per_frame)
            self.scores.add(self.layer, self.clip.timestep, mass)
            return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

        return replace_attention(self.layer, measured, self.fn_ref.original_forward, *args, **kwargs)


@contextmanager
def measure_temporal_attention(
    model: nn.Module, max_queries_per_frame: int | None = None, scores: TemporalScores | None = None
) -> Iterator[TemporalScores]:
    """Scores of a denoiser's layers and steps, which every forward pass within this context adds to.

        with measure_temporal_attention(pipe.unet) as scores:
            pipe(image)
        plan = F3Plan.from_scores(scores.model_class, scores.by_layer(), alpha=0.3)

    The model computes what it computes without it, and more slowly.

    Args:
        max_queries_per_frame: measure at only that many places of each frame, evenly spread. Models with joint
            attention to tens of thousands of tokens need it: 64 take little time.
        scores: add to these, by default to new ones.

    Raises:
        F3Error: if the class of the model is not known, the scores are those of another model, or F3-Pruning is
            applied to it already.
    """
    if max_queries_per_frame is not None and max_queries_per_frame < 1:
        raise F3Error(f"`max_queries_per_frame` is at least 1, or None for all, not {max_queries_per_frame}.")
    layers = temporal_layers(model)
    if APPLIED in vars(model):
        raise F3Error("F3-Pruning is applied to this model: remove it with `remove_f3` before measuring.")
    if scores is None:
        scores = TemporalScores(attention_class(model), tuple(layers))
    elif scores.model_class != attention_class(model) or scores.sums.keys() != layers.keys():
        raise F3Error(f"The scores to go on with are those of another model, a {scores.model_class}.")
    clip = ClipNotes(model)
    try:
        for layer, attentions in layers.items():
            for name in attentions:
                hook = ScoreHook(layer, scores, clip, max_queries_per_frame)
                registry(model.get_submodule(name)).register_hook(hook, MEASURING)
        yield scores
    finally:
        clip.handle.remove()
        registry(model).remove_hook(MEASURING)
