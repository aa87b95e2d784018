"""What F3-Pruning decides, as data: which layers, or which denoising steps, lose their temporal attention."""

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from types import MappingProxyType
from typing import Any, Literal

from vdmini_diffusers.analysis.f3.layers import F3Error
from vdmini_diffusers.families.temporal_attention import TEMPORAL_ATTENTION, FactorisedAttention
from vdmini_diffusers.serialization.safetensors_reader import short_repr


UNITS, PARTS, ORDERS = ("layer", "step"), ("attention", "block"), ("lowest", "highest", "random")
MAX_UNITS = 100_000  # no model has more layers, and nobody samples with more steps


@dataclass(frozen=True)
class F3Plan:
    """Which layers or steps are pruned, and why.

    Args:
        model_class: the denoiser's class in diffusers, a key of `TEMPORAL_ATTENTION`.
        unit: what was ranked: `"layer"`, by name, or `"step"`, by timestep.
        part: what is pruned there: `"attention"`, the temporal attention alone, after which a token attends to its own
            frame, and to the text where it did before; or `"block"`, in U-Nets: the whole temporal block.
        alpha: the share of units that is pruned, rounded down to whole ones.
        scores: the aggregate temporal attention of every unit, 0 to 1. Steps are written as `"961.0"`.
        pruned: the units that are pruned.
        order: how they were chosen: by the `"lowest"` scores, or for comparison by the `"highest"` or at `"random"`.
    """

    model_class: str
    unit: Literal["layer", "step"]
    part: Literal["attention", "block"]
    alpha: float
    scores: Mapping[str, float]
    pruned: tuple[str, ...]
    order: Literal["lowest", "highest", "random"] = "lowest"

    def __post_init__(self) -> None:
        if not isinstance(self.model_class, str) or self.model_class not in TEMPORAL_ATTENTION:
            raise F3Error(
                f"`model_class` is one of {', '.join(TEMPORAL_ATTENTION)}, not {short_repr(self.model_class)}."
            )
        for field, allowed in (("unit", UNITS), ("part", PARTS), ("order", ORDERS)):
            if getattr(self, field) not in allowed:
                raise F3Error(f"`{field}` is one of {', '.join(allowed)}, not {short_repr(getattr(self, field))}.")
        if self.part == "block" and not isinstance(TEMPORAL_ATTENTION[self.model_class], FactorisedAttention):
            raise F3Error(
                f"A {self.model_class} has no temporal blocks of their own, as its attention is over frames and places"
                " at once: prune the part 'attention'."
            )
        if not _is_share(self.alpha):
            raise F3Error(f"`alpha` is a number from 0 to 1, not {short_repr(self.alpha)}.")
        self._check_scores()
        if not isinstance(self.pruned, (list, tuple)) or not all(isinstance(unit, str) for unit in self.pruned):
            raise F3Error(f"`pruned` lists names of units, not {short_repr(self.pruned)}.")
        if unknown := [unit for unit in self.pruned if unit not in self.scores]:
            raise F3Error(f"`pruned` has {short_repr(unknown[0])}, which is not among the scores.")
        expected = num_pruned(self.alpha, len(self.scores))
        if len(set(self.pruned)) != len(self.pruned) or len(self.pruned) != expected:
            raise F3Error(
                f"`alpha` {self.alpha} of {len(self.scores)} units is {expected} different ones, and `pruned` lists"
                f" {short_repr(list(self.pruned))}."
            )
        object.__setattr__(self, "scores", MappingProxyType(dict(self.scores)))
        object.__setattr__(self, "pruned", tuple(self.pruned))

    def _check_scores(self) -> None:
        if not isinstance(self.scores, Mapping) or not 0 < len(self.scores) <= MAX_UNITS:
            raise F3Error(f"`scores` maps every unit to its score, and is not empty; got {short_repr(self.scores)}.")
        for unit, score in self.scores.items():
            if not isinstance(unit, str) or not _is_share(score):
                raise F3Error(f"The score of {short_repr(unit)} is a number from 0 to 1, not {short_repr(score)}.")
        if self.unit == "step":
            if wrong := [unit for unit in self.scores if not _is_number(unit)]:
                raise F3Error(f"A step is named by its timestep, such as '961.0', not {short_repr(wrong[0])}.")
            if len(self.scores) < 2:
                raise F3Error(
                    "The model was sampled in one step, and one step cannot be ranked: rank layers (unit 'layer')."
                )

    @classmethod
    def from_scores(
        cls,
        model_class: str,
        scores: Mapping[str, float],
        alpha: float,
        unit: Literal["layer", "step"] = "layer",
        part: Literal["attention", "block"] = "attention",
        order: Literal["lowest", "highest", "random"] = "lowest",
        seed: int = 0,
    ) -> "F3Plan":
        """The plan that prunes the share `alpha` with the lowest scores; of equal ones those that come first.

        Args:
            order: `"highest"` and `"random"`, by `seed`, are for comparison.

        Raises:
            F3Error: if an argument is not as `F3Plan` demands it.
        """
        plan = cls(model_class, unit, part, 0.0, scores, (), order)  # what follows needs scores that are numbers
        if not _is_share(alpha):
            raise F3Error(f"`alpha` is a number from 0 to 1, not {short_repr(alpha)}.")
        ranked = sorted(plan.scores, key=plan.scores.__getitem__, reverse=order == "highest")
        if order == "random":
            random.Random(seed).shuffle(ranked)
        chosen = set(ranked[: num_pruned(alpha, len(ranked))])
        pruned = tuple(unit for unit in plan.scores if unit in chosen)
        return cls(model_class, unit, part, alpha, scores, pruned, order)

    def prunes_step(self, timestep: float) -> bool:
        """Whether temporal attention is pruned at a timestep: whether the nearest one that was scored is.

        So a plan serves sampling with another number of steps as well. Of two that are equally near, the larger
        decides.
        """
        nearest = min(self.scores, key=lambda unit: (abs(float(unit) - timestep), -float(unit)))
        return nearest in self.pruned

    def to_json_string(self) -> str:
        """`F3Plan.from_json_string` gives an equal plan back."""
        fields = vars(self) | {"scores": dict(self.scores), "pruned": list(self.pruned)}
        return json.dumps({"kind": "f3", **fields}, indent=2) + "\n"

    @classmethod
    def from_json_string(cls, text: str) -> "F3Plan":
        """Raises `F3Error` for text that is not a plan, saying what is wrong with it."""
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise F3Error(f"A plan of F3-Pruning is JSON; this is not: {error}.") from error
        if not isinstance(fields, dict) or fields.pop("kind", None) != "f3":
            raise F3Error("A plan of F3-Pruning is a JSON object whose `kind` is 'f3'; this is something else.")
        expected = {field.name for field in dataclass_fields(cls)}
        if set(fields) != expected:
            raise F3Error(
                f"A plan of F3-Pruning has the fields {sorted(expected)}; missing: {sorted(expected - set(fields))},"
                f" unknown: {short_repr(sorted(set(fields) - expected))}."
            )
        return cls(**fields)


def num_pruned(alpha: float, num_units: int) -> int:
    """The number of units that the share `alpha` is, rounded down."""
    return math.floor(alpha * num_units + 1e-9)  # 0.29 * 100 is 28.999999999999996


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
