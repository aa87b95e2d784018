"""The plans of a network as an integer programme, whose variables say which layers or blocks stay.

What a plan must heed to fit the network is linear in them, and stands in rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from vdmini_diffusers.analysis.cost_table import CostTable, PartCost
from vdmini_diffusers.families.block_lists import BLOCK_LISTS
from vdmini_diffusers.pruning.depth import DepthConstraints
from vdmini_diffusers.pruning.plans import PruningPlan, TransformerPruningPlan, UNetPruningPlan
from vdmini_diffusers.pruning.plans.block_rules import block_counts, places
from vdmini_diffusers.pruning.plans.unet import PER_STAGE_FIELDS, stage_depths


class PlanSearchError(ValueError):
    """Scores and costs that do not go together, or a budget that no plan meets."""


Row = tuple[dict[str, float], float, float]  # coefficients by variable, and the bounds of their sum


@dataclass
class Space(ABC):
    """The plans of one network, as rows of an integer programme over named variables of 0 and 1.

    Args:
        costs: of the network.
        scored: parts whose importances count. Each is a variable.
        variables: all of them, with those that say whether a stage stays.
        rows: what every plan heeds.
        fixed: variables that are 1.
        costing: for each part of the costs that may go, the variable that is 1 where it stays.
    """

    costs: CostTable
    scored: list[str] = field(default_factory=list)
    variables: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    fixed: set[str] = field(default_factory=set)
    costing: dict[str, str] = field(default_factory=dict)

    def at_least(self, coefficients: dict[str, float], low: float) -> None:
        self.rows.append((coefficients, low, np.inf))

    def equal(self, coefficients: dict[str, float], value: float = 0) -> None:
        self.rows.append((coefficients, value, value))

    @abstractmethod
    def plan(self, kept: set[str], name: str) -> PruningPlan:
        """The plan under which these variables are 1."""

    @abstractmethod
    def kept(self, plan: Any) -> set[str]:
        """The variables that are 1 under a plan."""

    def check(self, plan: PruningPlan) -> None:
        """Raises `PruningPlanError` for what the rows do not say."""
        plan.student_config({"_class_name": self.costs.class_name, **self.costs.config})

    def cost(self, part: str) -> PartCost:
        if part not in self.costs.parts:
            raise PlanSearchError(f"The costs lack {part}: count all parts of the network.")
        return self.costs.parts[part]


class UNetSpace(Space):
    """Layers, stages from the innermost on together with the up stage that mirrors them, and the mid block."""

    def __init__(self, costs: CostTable):
        super().__init__(costs)
        config = costs.config
        self.depths, self.widths = stage_depths(config), tuple(config["block_out_channels"])
        self.num_stages = n = len(self.widths)
        self.has_mid = config.get("mid_block_type", "stock") is not None
        stays = [f"stage {d}" for d in range(n)]
        self.variables += stays
        self.fixed.add(stays[0])
        for outer, inner in pairwise(stays):
            self.at_least({outer: 1, inner: -1}, 0)
        for d in range(n):
            self._add_stages(d, stays[d], stays[d + 1] if d + 1 < n else None)
        if self.has_mid:
            self._add_mid(stays)

    def layer(self, letter: str, stage: int, i: int) -> str:
        """The name of a layer in scores and costs."""
        attentions = (f"{letter}.{stage}.A.", f"{letter}.{stage}.R-A.")
        has_attention = any(part.startswith(attentions) for part in self.costs.parts)
        return f"{letter}.{stage}.R-A.{i}" if has_attention else f"{letter}.{stage}.R.{i}"

    def _add_stages(self, d: int, stays: str, inner_stays: str | None) -> None:
        """Down stage `d` and the up stage that mirrors it. `inner_stays` says whether they are not the innermost."""
        n, u = self.num_stages, self.num_stages - 1 - d
        down = [self.layer("D", d, i) for i in range(self.depths[d])]
        up = [self.layer("U", u, i) for i in range(self.depths[d] + 1)]
        for layer in (*down, *up):
            self.variables.append(layer)
            self.scored.append(layer)
            self.costing[layer] = layer
            self.at_least({stays: 1, layer: -1}, 0)
        self.at_least({**dict.fromkeys(down, 1), stays: -1}, 0)  # a stage that stays has a layer
        # The up stage takes the skip connections of the down stage's layers, and of what came before them.
        self.equal({**dict.fromkeys(up, 1), **dict.fromkeys(down, -1), stays: -1})
        if d > 0 and self.widths[d - 1] != self.widths[d]:
            self.equal({down[0]: 1, stays: -1})  # it alone takes the hidden width of the stage before
            self.equal({up[-1]: 1, stays: -1})  # and this one the skip connection of that width
        if d + 1 < n and self.widths[d + 1] != self.widths[d]:
            # Layer 0 takes the width of the inner stage: it stays where that does, and goes where that goes.
            self.equal({up[0]: 1, str(inner_stays): -1})
        if d + 1 < n and f"D.{d}.downsamplers" in self.costs.parts:  # the innermost stage that stays has none
            self.costing[f"D.{d}.downsamplers"] = str(inner_stays)
        if f"U.{u}.upsamplers" in self.costs.parts:
            self.costing[f"U.{u}.upsamplers"] = stays

    def _add_mid(self, stays: Sequence[str]) -> None:
        self.variables.append("M")
        self.scored.append("M")
        self.costing["M"] = "M"
        for d in range(self.num_stages - 1):
            fields = (self.costs.config.get(name) for name in ("block_out_channels", *PER_STAGE_FIELDS[2:]))
            if any(isinstance(values, (list, tuple)) and values[d] != values[-1] for values in fields):
                # It was made for the innermost stage, and this one would be the innermost.
                self.at_least({"M": -1, stays[d]: -1, stays[d + 1]: 1}, -1)

    def plan(self, kept: set[str], name: str) -> UNetPruningPlan:
        n = self.num_stages
        down, up = {}, {}
        for d in range(n):
            if f"stage {d}" in kept:
                u, depth = n - 1 - d, self.depths[d]
                down[d] = tuple(i for i in range(depth) if self.layer("D", d, i) in kept)
                up[u] = tuple(i for i in range(depth + 1) if self.layer("U", u, i) in kept)
        return UNetPruningPlan(name, down, "M" in kept, up)

    def kept(self, plan: UNetPruningPlan) -> set[str]:
        layers = [self.layer(letter, stage, i) for letter, kept in (("D", plan.down), ("U", plan.up))
                  for stage, numbers in kept.items() for i in numbers]  # fmt: skip
        return {*layers, *(f"stage {d}" for d in plan.down), *(["M"] if plan.keep_mid else [])}


class TransformerSpace(Space):
    """Blocks, with what is attached to them."""

    def __init__(self, costs: CostTable, constraints: DepthConstraints):
        super().__init__(costs)
        self.constraints = constraints
        self.counts = counts = block_counts(costs.class_name, costs.config)
        self.lists = {blocks.name: blocks for blocks in BLOCK_LISTS[costs.class_name] if blocks.name in counts}
        for name, blocks in self.lists.items():
            own = [self.block(name, i) for i in range(counts[name])]
            self.at_least(dict.fromkeys(own, 1), 1)  # no list is empty in a student
            if blocks.attached_to is None:
                for variable in own:
                    self.variables.append(variable)
                    if variable in costs.parts:
                        self.scored.append(variable)
                        self.costing[variable] = variable
                    else:
                        self.fixed.add(variable)
            for other, same in self.lists.items():
                if other < name and same.count == blocks.count and not (blocks.attached_to or same.attached_to):
                    beside = [self.block(other, i) for i in range(counts[other])]
                    self.equal({**dict.fromkeys(own, 1), **dict.fromkeys(beside, -1)})
            if constraints.contiguous and blocks.attached_to is None:
                self._add_contiguity(name, own)
        self._add_kept_blocks()

    def block(self, name: str, i: int) -> str:
        """The variable of a block: that of the block that it is attached to, if it is."""
        blocks = self.lists[name]
        if blocks.attached_to is None:
            return f"{name}.{i}"
        return f"{blocks.attached_to}.{places(blocks, self.costs.config, self.counts[name])[i]}"

    def _add_contiguity(self, name: str, own: Sequence[str]) -> None:
        starts = [f"start of a run at {variable}" for variable in own]
        self.variables += starts
        for before, variable, start in zip([None, *own], own, starts, strict=False):
            # The first block that goes after one that stays starts a run.
            self.at_least({variable: 1, start: 1, **({before: -1} if before else {})}, 0 if before else 1)
        self.at_least(dict.fromkeys(starts, -1), -1)

    def _add_kept_blocks(self) -> None:
        plan = TransformerPruningPlan.keep_everything(self.costs.class_name, self.costs.config)
        self.constraints.check(plan, self.costs.config)  # names and indices that the network does not have
        for name, indices in self.constraints.never_remove.items():
            self.fixed |= {self.block(name, i % self.counts[name]) for i in indices}
        if self.constraints.max_run is None:
            return
        for order in plan.running_order(self.costs.config).values():
            variables = [self.block(block.list_name, block.number) for block in order]
            length = self.constraints.max_run + 1
            for start in range(len(variables) - length + 1):
                self.at_least(dict.fromkeys(variables[start : start + length], 1), 1)

    def plan(self, kept: set[str], name: str) -> TransformerPruningPlan:
        blocks = {
            list_name: tuple(i for i in range(count) if self.block(list_name, i) in kept)
            for list_name, count in self.counts.items()
        }
        return TransformerPruningPlan(name, self.costs.class_name, blocks)

    def kept(self, plan: TransformerPruningPlan) -> set[str]:
        return {self.block(list_name, i) for list_name, numbers in plan.blocks.items() for i in numbers}

    def check(self, plan: Any) -> None:
        super().check(plan)
        self.constraints.check(plan, self.costs.config)


def space_of(costs: CostTable, constraints: DepthConstraints | None = None) -> Space:
    """The plans of the network that was costed. Raises `PlanSearchError` for constraints on a U-Net."""
    if costs.class_name in BLOCK_LISTS:
        return TransformerSpace(costs, constraints or DepthConstraints())
    if constraints is not None:
        raise PlanSearchError("`constraints` are for transformers; those of a U-Net follow from its widths.")
    return UNetSpace(costs)
