"""Which blocks of a transformer go, by rule: constraints on a plan, and plans that remove runs from the middle."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, ClassVar

from vdmini_diffusers.families.block_lists import BLOCK_LISTS, BlockList
from vdmini_diffusers.pruning.plans import PruningPlanError, TransformerPruningPlan
from vdmini_diffusers.pruning.plans.block_rules import block_counts, places


@dataclass(frozen=True)
class DepthConstraints:
    """What a plan of a transformer has to heed.

    Args:
        never_remove: blocks that must stay, by the name of their list; negative indices count from the end.
        contiguous: the blocks that are removed from a list follow one another.
        max_run: the most blocks in running order that may go without one between them that stays.
    """

    never_remove: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    contiguous: bool = False
    max_run: int | None = None

    def check(self, plan: TransformerPruningPlan, teacher_config: Mapping[str, Any]) -> None:
        """Raises `PruningPlanError` with what the plan breaks first, or if it does not fit the teacher."""
        runs = plan.removed_runs(teacher_config)
        counts = block_counts(plan.transformer, teacher_config)
        for name, indices in self.never_remove.items():
            if name not in counts:
                raise PruningPlanError(f"`never_remove` names {name!r}; the teacher has {', '.join(counts)}.")
            for i in indices:
                if not -counts[name] <= i < counts[name]:
                    raise PruningPlanError(f"`never_remove` names block {i} of {name}, which has {counts[name]}.")
                if i % counts[name] not in plan.blocks[name]:
                    raise PruningPlanError(f"{plan.name!r} removes {name}.{i % counts[name]}, which must stay.")
        for name, kept in plan.blocks.items():
            removed = sorted(set(range(counts[name])) - set(kept))
            if self.contiguous and removed and removed[-1] - removed[0] >= len(removed):
                raise PruningPlanError(f"{plan.name!r} removes {removed} of {name}, which do not follow one another.")
        if self.max_run is not None and (long := [run for run in runs if len(run) > self.max_run]):
            raise PruningPlanError(
                f"{plan.name!r} removes {long[0][0]} to {long[0][-1]} without a break: {len(long[0])} blocks, and at"
                f" most {self.max_run} may go in a row."
            )


@dataclass(frozen=True)
class MiddleRule:
    """Makes a plan for any transformer: of its lists of video blocks, runs from the middle go.

    The first and the last blocks matter most (see `VDMINI_HY` in `presets.py` for the evidence). What is kept before
    the first run and after the last one is half as much again as what is kept between two. Blocks to which modules of
    another list are attached, or of which every n-th differs, go in whole groups. Lists that refine the text stay.

    Args:
        keep: the fraction of blocks that stays, at least.
        max_run: the most blocks that go in a row, where they need not go in groups.
    """

    name: str
    keep: float
    max_run: int = 4

    kind: ClassVar[str] = TransformerPruningPlan.kind
    network: ClassVar[str] = TransformerPruningPlan.network

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1 or self.max_run < 1:
            raise PruningPlanError(
                f"`keep` is a fraction up to 1 and `max_run` at least 1, not {self.keep} and {self.max_run}."
            )

    def for_teacher(self, class_name: str, teacher_config: Mapping[str, Any]) -> TransformerPruningPlan:
        """The plan for a teacher of this class with this config.

        Raises:
            PruningPlanError: if its blocks cannot be cut by this rule.
        """
        if class_name not in BLOCK_LISTS:
            raise PruningPlanError(f"{self.name!r} prunes video transformers, of which a {class_name} is none.")
        lists = BLOCK_LISTS[class_name]
        counts = block_counts(class_name, teacher_config)
        kept = {name: tuple(range(count)) for name, count in counts.items()}
        for blocks in lists:
            if blocks.name in counts and blocks.chain == "video" and blocks.attached_to is None:
                attached = [other for other in lists if other.attached_to == blocks.name and other.name in counts]
                kept |= self._cut(blocks, attached, teacher_config, counts)
        if self.keep < 1 and all(len(kept[name]) == count for name, count in counts.items()):
            raise PruningPlanError(
                f"{self.name!r} finds no run of blocks in the middle of this {class_name} that could go, with"
                f" {dict(counts)} blocks. Write a plan: a JSON file that says which blocks stay."
            )
        plan = TransformerPruningPlan(self.name, class_name, kept)
        plan.student_config(teacher_config)
        return plan

    def _cut(
        self, blocks: BlockList, attached: Sequence[BlockList], config: Mapping[str, Any], counts: Mapping[str, int]
    ) -> dict[str, tuple[int, ...]]:
        """What is kept of a list, and of those attached to it."""
        count = counts[blocks.name]
        at = {other.name: places(other, config, counts[other.name]) for other in attached}
        n = config.get(blocks.period.field) if blocks.period else None
        starts = set(range(0, count, n) if n else ()).union(*at.values()) or range(count)
        groups = [range(start, stop) for start, stop in pairwise([*sorted(starts), count])]
        if n and blocks.period and not blocks.period.removable:
            removed = {i for group in groups for i in self._middle_of(group[1:], len(group))}
        else:
            # Blocks that are told apart by their index, and those before them, stay where they are.
            num_first = max([0, *(i + 1 for i in blocks.in_place if i < count)])
            num_first = max([num_first, *(1 for other in attached if other.never_remove)])
            num_last = max([config.get(blocks.trailing or "", 0), *(-i for i in blocks.never_remove)])
            free = [group for group in groups if group[0] >= num_first and group[-1] < count - num_last]
            inner = free[1:-1]  # the first and the last that could go stay as well
            removed = {i for group in self._middle_of(inner, len(groups), len(groups[0])) for i in group}
        kept = {blocks.name: tuple(i for i in range(count) if i not in removed)}
        return kept | {name: tuple(i for i, place in enumerate(at[name]) if place not in removed) for name in at}

    def _middle_of(self, free: Sequence[Any], num_all: int, size: int = 1) -> list[Any]:
        """Those of the middle of `free` that go.

        Args:
            num_all: how many there are with those that cannot go.
            size: the number of blocks of each.
        """
        num_removed = min(math.floor((1 - self.keep) * num_all + 1e-9), len(free))
        kept = keep_ends(len(free), num_removed, max(1, self.max_run // size))
        return [block for place, block in enumerate(free) if place not in kept]


def keep_ends(count: int, num_removed: int, max_run: int) -> tuple[int, ...]:
    """What stays of `count` blocks if `num_removed` go, in runs of at most `max_run` that are spread over the middle.

    Of the kept blocks, the first and the last run have half as many again as those between.
    """
    num_runs = math.ceil(num_removed / max_run)
    if not num_runs:
        return tuple(range(count))
    weights = [3, *[2] * (num_runs - 1), 3]
    ends = [math.floor(share * (count - num_removed) / sum(weights) + 0.5) for share in accumulate(weights)]
    cuts = [math.floor(run * num_removed / num_runs + 0.5) for run in range(num_runs + 1)]
    starts = [0, *(end + cut for end, cut in zip(ends, cuts[1:], strict=False))]
    return tuple(i for start, end, cut in zip(starts, ends, cuts, strict=True) for i in range(start, end + cut))
