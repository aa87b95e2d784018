"""Plans of video transformers: which of their blocks stay (paper, appendix D)."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vdmini_diffusers.pruning.plans.base import PruningPlan, PruningPlanError


# The config field that counts the blocks of each list, as diffusers' transformers name them, in running order.
COUNT_FIELDS = {
    "transformer_blocks": "num_layers",
    "single_transformer_blocks": "num_single_layers",
    "blocks": "num_layers",
}


@dataclass(frozen=True, eq=True)
class TransformerPruningPlan(PruningPlan):
    """Kept blocks of a transformer, per list of blocks.

    Args:
        blocks: kept indices by the name of the teacher's `ModuleList`, e.g. `{"transformer_blocks": (0, 1, 19),
            "single_transformer_blocks": (0, 39)}` for HunyuanVideo's dual-stream and single-stream blocks.
    """

    blocks: Mapping[str, tuple[int, ...]]

    kind: ClassVar[str] = "transformer"
    network: ClassVar[str] = "transformer"
    __hash__ = PruningPlan.__hash__

    def __post_init__(self) -> None:
        super().__post_init__()
        self._freeze_kept("blocks", str)

    def student_config(self, teacher_config: Mapping[str, Any]) -> dict[str, Any]:
        self._check_fits(teacher_config)
        config = {key: value for key, value in teacher_config.items() if not key.startswith("_")}
        return config | {COUNT_FIELDS[name]: len(kept) for name, kept in self.blocks.items()}

    def teacher_key(self, student_key: str) -> str:
        parts = student_key.split(".")
        if parts[0] in self.blocks:
            parts[1] = str(self.blocks[parts[0]][int(parts[1])])
        return ".".join(parts)

    def feature_pairs(self, teacher_config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """Every kept block, with the teacher's last block before the next kept one, whose work it takes over."""
        self._check_fits(teacher_config)
        pairs = []
        for name in (name for name in COUNT_FIELDS if name in self.blocks):  # in the order in which they run
            kept = self.blocks[name]
            ends = (*kept[1:], teacher_config[COUNT_FIELDS[name]])
            pairs += [(f"{name}.{i}", f"{name}.{end - 1}") for i, end in enumerate(ends)]
        return tuple(pairs)

    def weight_map(self, student_keys: Iterable[str]) -> dict[str, str]:
        weights = super().weight_map(student_keys)
        if missing := sorted(self.blocks.keys() - {key.partition(".")[0] for key in weights}):
            raise PruningPlanError(f"The network has no {missing[0]!r}, of which the plan keeps blocks.")
        return weights

    def block_names(self, teacher_key: str) -> Sequence[str]:
        return (".".join(teacher_key.split(".")[:2]),)

    def _check_fits(self, teacher_config: Mapping[str, Any]) -> None:
        fields = {name: field for name, field in COUNT_FIELDS.items() if teacher_config.get(field)}
        if unknown := sorted(self.blocks.keys() - COUNT_FIELDS.keys()):
            raise PruningPlanError(f"{unknown[0]!r} is no list of blocks; those known are {', '.join(COUNT_FIELDS)}.")
        for name, kept in self.blocks.items():
            count = teacher_config.get(COUNT_FIELDS[name]) or 0
            if kept[-1] >= count:
                raise PruningPlanError(f"The teacher's {name} has {count} blocks, of which {kept[-1]} is not one.")
        counted = {COUNT_FIELDS[name] for name in self.blocks}
        if missing := sorted(set(fields.values()) - counted):
            raise PruningPlanError(f"The plan does not say which blocks counted by `{missing[0]}` stay.")
        if len(counted) < len(self.blocks):
            pairs = itertools.combinations(self.blocks, 2)
            names = next(f"{a} and {b}" for a, b in pairs if COUNT_FIELDS[a] == COUNT_FIELDS[b])
            raise PruningPlanError(f"The plan names {names}, of which a transformer has one.")
