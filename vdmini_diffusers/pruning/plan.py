"""What pruning keeps, as one piece of data (paper, section 3.2 and appendix B).

A plan speaks in the teacher's coordinates. The student's config (`student_config.py`), the map from student tensors to
teacher tensors (`weight_map.py`) and the feature pairs of ICD (`feature_pairs.py`) are pure functions of it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar


class PruningPlanError(ValueError):
    """A plan that is malformed, or that does not fit the teacher it was given."""


@dataclass(frozen=True)
class PruningPlan:
    """The part that all plans share: a name, equality, and JSON in and out.

    Subclasses: `UNetPruningPlan`, `TransformerPruningPlan`, `DecoderPruningPlan`.
    """

    name: str

    kind: ClassVar[str]

    def to_json_string(self) -> str:
        """One line per field; `PruningPlan.from_json_string` gives an equal plan back."""
        fields = {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(self).items()}
        lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in {"kind": self.kind, **fields}.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @staticmethod
    def from_json_string(text: str) -> "PruningPlan":
        """Raises `PruningPlanError` for text that is not a plan, saying what is wrong with it."""
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise PruningPlanError(f"A pruning plan is JSON; this is not: {error}.") from error
        if not isinstance(fields, dict):
            raise PruningPlanError(f"A pruning plan is a JSON object, not {type(fields).__name__}.")
        kinds = {cls.kind: cls for cls in (UNetPruningPlan, TransformerPruningPlan, DecoderPruningPlan)}
        kind = fields.pop("kind", None)
        if kind not in kinds:
            raise PruningPlanError(f"The `kind` of a pruning plan is one of {sorted(kinds)}, not {kind!r}.")
        expected = {field.name for field in dataclass_fields(kinds[kind])}  # `kind` itself is a ClassVar, not a field
        if set(fields) != expected:
            raise PruningPlanError(
                f"A {kind} plan has the fields {sorted(expected)}; missing: {sorted(expected - set(fields))}, unknown:"
                f" {sorted(set(fields) - expected)}."
            )
        return kinds[kind](**fields)

    def __hash__(self) -> int:
        return hash(self.to_json_string())

    def __reduce__(self) -> tuple:  # a mapping proxy cannot be pickled
        return PruningPlan.from_json_string, (self.to_json_string(),)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise PruningPlanError(f"The `name` of a plan is a non-empty string, not {self.name!r}.")

    def _freeze_kept(self, field: str, keys: type) -> None:
        """Check a field that maps `keys` to kept indices, and store it immutable and in order."""
        kept = getattr(self, field)
        if not isinstance(kept, Mapping) or not kept:
            raise PruningPlanError(
                f"`{field}` maps each kept part to its kept indices, and is not empty; got {kept!r}."
            )
        frozen = {}
        for key, indices in kept.items():
            if keys is int and isinstance(key, str) and key.isdecimal():  # JSON has no other keys than strings
                key = int(key)
            if not isinstance(key, keys) or isinstance(key, bool) or (isinstance(key, int) and key < 0):
                raise PruningPlanError(
                    f"`{field}` has the key {key!r}; its keys are {keys.__name__} and not negative."
                )
            if not isinstance(indices, (list, tuple)) or not all(type(i) is int and i >= 0 for i in indices):
                raise PruningPlanError(f"`{field}[{key!r}]` lists kept indices counted from 0, not {indices!r}.")
            if not indices:
                raise PruningPlanError(f"`{field}[{key!r}]` is empty: leave out what is removed as a whole.")
            if list(indices) != sorted(set(indices)):
                raise PruningPlanError(f"`{field}[{key!r}]` rises and has no index twice; got {list(indices)}.")
            frozen[key] = tuple(indices)
        object.__setattr__(self, field, MappingProxyType(dict(sorted(frozen.items()))))

    def _freeze_numbers(self, field: str, least: int) -> None:
        """Check a field that lists whole numbers, and store it immutable."""
        numbers = getattr(self, field)
        if not isinstance(numbers, (list, tuple)) or not all(type(n) is int and n >= least for n in numbers):
            raise PruningPlanError(f"`{field}` lists whole numbers from {least}, not {numbers!r}.")
        object.__setattr__(self, field, tuple(numbers))


@dataclass(frozen=True, eq=True)
class UNetPruningPlan(PruningPlan):
    """Kept stages and layers of a U-Net with cross-attention stages (SVD, ModelScope, VideoCrafter2).

    A layer is the pair "R-A" of the paper: a ResBlock and, where the stage has them, its TransformerBlock.

    Args:
        down: kept layers of each kept down stage, e.g. `{0: (0,)}` keeps layer 0 of Down-0. A stage that is not named
            is removed.
        keep_mid: whether the mid block stays.
        up: kept layers of each kept up stage, numbered as in the teacher: Up-0 is the innermost.
    """

    down: Mapping[int, tuple[int, ...]]
    keep_mid: bool
    up: Mapping[int, tuple[int, ...]]

    kind: ClassVar[str] = "unet"
    __hash__ = PruningPlan.__hash__

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.keep_mid, bool):
            raise PruningPlanError(f"`keep_mid` is true or false, not {self.keep_mid!r}.")
        self._freeze_kept("down", int)
        self._freeze_kept("up", int)


@dataclass(frozen=True, eq=True)
class TransformerPruningPlan(PruningPlan):
    """Kept blocks of a transformer, per list of blocks.

    Args:
        blocks: kept indices by the name of the teacher's `ModuleList`, e.g. `{"transformer_blocks": (0, 1, 19),
            "single_transformer_blocks": (0, 39)}` for HunyuanVideo's dual-stream and single-stream blocks.
    """

    blocks: Mapping[str, tuple[int, ...]]

    kind: ClassVar[str] = "transformer"
    __hash__ = PruningPlan.__hash__

    def __post_init__(self) -> None:
        super().__post_init__()
        self._freeze_kept("blocks", str)


@dataclass(frozen=True, eq=True)
class DecoderPruningPlan(PruningPlan):
    """Kept layers and widths of a VAE's decoder (appendix A): layers are removed first, then channels.

    Args:
        mid: kept ResBlocks of the mid block; empty if none is.
        keep_mid_attention: whether the attention between them stays; only with both.
        up: kept ResBlocks of each up block. No up block can go, as each doubles the resolution.
        widths: channels of each up block; the first number is the mid block's as well. Which ones stay is found by
            importance.
        upsampler_widths: channels that each upsampler hands over; the last up block has none.
    """

    mid: tuple[int, ...]
    keep_mid_attention: bool
    up: Mapping[int, tuple[int, ...]]
    widths: tuple[int, ...]
    upsampler_widths: tuple[int, ...]

    kind: ClassVar[str] = "vae_decoder"
    __hash__ = PruningPlan.__hash__

    def __post_init__(self) -> None:
        super().__post_init__()
        self._freeze_numbers("mid", least=0)
        if self.mid not in ((), (0,), (1,), (0, 1)):
            raise PruningPlanError(f"`mid` keeps at most ResBlocks 0 and 1, which are all that run; got {self.mid}.")
        if not isinstance(self.keep_mid_attention, bool):
            raise PruningPlanError(f"`keep_mid_attention` is true or false, not {self.keep_mid_attention!r}.")
        if self.keep_mid_attention and self.mid != (0, 1):
            raise PruningPlanError("The attention in the mid block runs between its two ResBlocks: keep both or none.")
        self._freeze_kept("up", int)
        self._freeze_numbers("widths", least=1)
        self._freeze_numbers("upsampler_widths", least=1)
        num_stages = len(self.up)
        if tuple(self.up) != tuple(range(num_stages)):
            raise PruningPlanError(f"`up` names every up block from 0; got {list(self.up)}.")
        if (len(self.widths), len(self.upsampler_widths)) != (num_stages, num_stages - 1):
            raise PruningPlanError(
                f"{num_stages} up blocks have {num_stages} `widths` and {num_stages - 1} `upsampler_widths`; got"
                f" {self.widths} and {self.upsampler_widths}."
            )


def read_plan(name: str, plans: Mapping[str, PruningPlan]) -> PruningPlan:
    """What a command line names: one of `plans`, or a JSON file with a plan.

    Raises:
        PruningPlanError: if it is neither.
    """
    if name in plans:
        return plans[name]
    if not Path(name).is_file():
        raise PruningPlanError(f"{name!r} is no plan: neither one of {', '.join(plans)} nor a JSON file with a plan.")
    return PruningPlan.from_json_string(Path(name).read_text(encoding="utf-8"))


def keep_everything(teacher_config: Mapping[str, Any]) -> UNetPruningPlan:
    """The plan of a U-Net teacher that removes nothing."""
    depths = stage_depths(teacher_config)
    return UNetPruningPlan(
        name="keep-everything",
        down={i: tuple(range(depth)) for i, depth in enumerate(depths)},
        keep_mid=teacher_config.get("mid_block_type", "UNetMidBlockSpatioTemporal") is not None,
        up={i: tuple(range(depth + 1)) for i, depth in enumerate(reversed(depths))},
    )


def stage_depths(teacher_config: Mapping[str, Any]) -> tuple[int, ...]:
    """Layers of each down stage of a U-Net config; each up stage has one more than the down stage it mirrors."""
    depths = teacher_config["layers_per_block"]
    return (depths,) * len(teacher_config["block_out_channels"]) if isinstance(depths, int) else tuple(depths)
