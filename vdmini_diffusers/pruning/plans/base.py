"""What every kind of pruning plan shares: a name, equality, JSON in and out, and the questions it answers.

A plan is written in the teacher's coordinates. The student's config, the map from student tensors to teacher tensors
and the feature pairs of ICD follow from it, as its methods.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from types import MappingProxyType
from typing import Any, ClassVar

from vdmini_diffusers.serialization.safetensors_reader import short_repr


MAX_INDEX = 10_000  # no network has more layers; JSON's numbers have no bound
MAX_CHANNELS = 2**20


class PruningPlanError(ValueError):
    """A plan that is malformed, or that does not fit the teacher it was given."""


@dataclass(frozen=True)
class PruningPlan(ABC):
    """What pruning keeps.

    Subclasses: `UNetPruningPlan`, `ChannelPruningPlan`, `TransformerPruningPlan`, `DecoderPruningPlan`. Adding a kind
    of plan takes a subclass with the methods below, and nothing else.

    Args:
        name: a printable string, for reports and model cards.
    """

    name: str

    kind: ClassVar[str]
    network: ClassVar[str]  # what it prunes, for messages

    @abstractmethod
    def student_config(self, teacher_config: Mapping[str, Any]) -> dict[str, Any]:
        """The config of the student that this plan makes of a teacher with `teacher_config`.

        Fields that do not depend on depth or width are carried over.

        Raises:
            PruningPlanError: if the plan does not fit the teacher.
        """

    @abstractmethod
    def teacher_key(self, student_key: str) -> str:
        """The teacher's name of a student's tensor or module (`up_blocks.0` to `up_blocks.1`)."""

    @abstractmethod
    def feature_pairs(self, teacher_config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """`((student module, teacher module), ...)` whose outputs are compared in distillation (Eq. 4).

        Raises:
            PruningPlanError: if the plan does not fit the teacher.
        """

    @property
    def feature_channels(self) -> Mapping[str, Sequence[int]]:
        """The channels that the student kept of the teacher's compared modules, by module, where it lost some."""
        return {}

    @abstractmethod
    def block_names(self, teacher_key: str) -> Sequence[str]:
        """The removable blocks that a teacher's tensor belongs to, by the names used in reports, coarsest first."""

    def for_teacher(self, class_name: str, teacher_config: Mapping[str, Any]) -> "PruningPlan":
        """The plan for one teacher: itself. Rules such as `MiddleRule` make one here."""
        return self

    def weight_map(self, student_keys: Iterable[str]) -> dict[str, str]:
        """`{student tensor: teacher tensor}` for the given names of a student's tensors. Injective."""
        return {key: self.teacher_key(key) for key in student_keys}

    def dropped_blocks(self, teacher_sizes: Mapping[str, int], kept: Iterable[str]) -> dict[str, int]:
        """The number of parameters of each removed block: the largest block of which nothing is kept.

        Args:
            teacher_sizes: number of values of every teacher tensor, by name.
            kept: names of the teacher tensors that the student has.
        """
        kept = set(kept)
        kept_blocks = {name for key in kept for name in self.block_names(key)}
        dropped: dict[str, int] = {}
        for key in teacher_sizes.keys() - kept:
            names = self.block_names(key)
            block = next((name for name in names if name not in kept_blocks), names[-1])
            dropped[block] = dropped.get(block, 0) + teacher_sizes[key]
        in_order = sorted(dropped, key=lambda block: re.sub(r"\d+", lambda number: number[0].zfill(4), block))
        return {block: dropped[block] for block in in_order}

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
        except (ValueError, RecursionError) as error:
            raise PruningPlanError(f"A pruning plan is JSON; this is not: {error}.") from error
        if not isinstance(fields, dict):
            raise PruningPlanError(f"A pruning plan is a JSON object, not {type(fields).__name__}.")
        kinds = {cls.kind: cls for cls in PruningPlan.__subclasses__()}
        kind = fields.pop("kind", None)
        if not isinstance(kind, str) or kind not in kinds:
            raise PruningPlanError(f"The `kind` of a pruning plan is one of {sorted(kinds)}, not {short_repr(kind)}.")
        expected = {field.name for field in dataclass_fields(kinds[kind])}  # `kind` itself is a ClassVar, not a field
        if set(fields) != expected:
            raise PruningPlanError(
                f"A {kind} plan has the fields {sorted(expected)}; missing: {sorted(expected - set(fields))}, unknown:"
                f" {short_repr(sorted(set(fields) - expected))}."
            )
        return kinds[kind](**fields)

    def __hash__(self) -> int:
        return hash(self.to_json_string())

    def __reduce__(self) -> tuple:  # a mapping proxy cannot be pickled
        return PruningPlan.from_json_string, (self.to_json_string(),)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or not self.name.isprintable():
            raise PruningPlanError(
                f"The `name` of a plan is a non-empty string that can be printed, not {short_repr(self.name)}."
            )

    def _freeze_kept(self, field: str, keys: type) -> None:
        """Check a field that maps `keys` to kept indices, and store it immutable and in order."""
        kept = getattr(self, field)
        if not isinstance(kept, Mapping) or not kept:
            raise PruningPlanError(
                f"`{field}` maps each kept part to its kept indices, and is not empty; got {short_repr(kept)}."
            )
        frozen = {}
        for key, indices in kept.items():
            if keys is int and isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 6:
                key = int(key)  # JSON has no other keys than strings
            if not isinstance(key, keys) or isinstance(key, bool) or (isinstance(key, int) and key < 0):
                raise PruningPlanError(
                    f"`{field}` has the key {short_repr(key)}; its keys are {keys.__name__} and not negative."
                )
            if key in frozen:
                raise PruningPlanError(f"`{field}` has the key {key!r} twice.")
            if not isinstance(indices, (list, tuple)) or not all(
                type(i) is int and 0 <= i < MAX_INDEX for i in indices
            ):
                raise PruningPlanError(
                    f"`{field}[{key!r}]` lists kept indices counted from 0, not {short_repr(indices)}."
                )
            if not indices:
                raise PruningPlanError(f"`{field}[{key!r}]` is empty: leave out what is removed as a whole.")
            if list(indices) != sorted(set(indices)):
                raise PruningPlanError(f"`{field}[{key!r}]` rises and has no index twice; got {short_repr(indices)}.")
            frozen[key] = tuple(indices)
        object.__setattr__(self, field, MappingProxyType(dict(sorted(frozen.items()))))

    def _freeze_numbers(self, field: str, least: int) -> None:
        """Check a field that lists whole numbers, and store it immutable."""
        numbers = getattr(self, field)
        if not isinstance(numbers, (list, tuple)) or not all(
            type(n) is int and least <= n <= MAX_CHANNELS for n in numbers
        ):
            raise PruningPlanError(
                f"`{field}` lists whole numbers from {least} to {MAX_CHANNELS}, not {short_repr(numbers)}."
            )
        object.__setattr__(self, field, tuple(numbers))
