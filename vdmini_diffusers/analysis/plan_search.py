"""From scores and costs to a plan: what keeps the most importance under a budget, as an integer programme.

A variable is one layer of a U-Net, or one block of a transformer, that stays or goes. Their importances and costs add
up; what a plan must heed to fit the network is linear in them.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vdmini_diffusers.analysis.cost_table import REST, CostTable, PartCost
from vdmini_diffusers.analysis.importance import ImportanceTable
from vdmini_diffusers.analysis.plan_space import PlanSearchError, Row, Space, space_of
from vdmini_diffusers.pruning.depth import DepthConstraints
from vdmini_diffusers.pruning.plans import PruningPlan, PruningPlanError


CONTENT_AND_MOTION = {"content_mse": 1.0, "motion_mse": 1.0}
MAX_SOLUTIONS = 1000  # that break a rule which is not linear, before the search gives up
SCALE = 1000.0  # of importances: HiGHS stops 1e-6 short of the best


@dataclass(frozen=True)
class Budget:
    """What a student may cost; None for no limit. At least one limit is given.

    Args:
        num_parameters, num_macs, milliseconds: of the student, as the parts of the teacher add up.
        memory_bytes: of its weights and, at the peak, activations. The latter are those of the teacher while a kept
            part runs; the student's may be less, as it keeps fewer skip connections.
    """

    num_parameters: int | None = None
    num_macs: int | None = None
    milliseconds: float | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.limits or not all(0 < limit < math.inf for limit in self.limits.values()):
            raise PlanSearchError(
                f"A budget is one limit or several, each above 0 and finite; got {self.limits or 'none'}."
            )

    @property
    def limits(self) -> dict[str, float]:
        return {name: limit for name, limit in vars(self).items() if limit is not None}


def plan_from_scores(
    scores: ImportanceTable,
    costs: CostTable,
    *,
    budget: Budget,
    weights: Mapping[str, float] = CONTENT_AND_MOTION,
    constraints: DepthConstraints | None = None,
    name: str = "searched",
) -> PruningPlan:
    """The plan under which the importance of what stays is the greatest that `budget` allows.

    Importances add up only about, so that of several plans the best to measure may be another (`plans_from_scores`).

    Args:
        scores: of all layers of a U-Net and its mid block, or of all blocks of a transformer that can go.
        costs: of the same network.
        weights: of the scores. Each is divided by the sum of its magnitudes first, so that they can be weighed.
        constraints: for transformers: what the plan has to heed besides.
        name: of the plan.

    Raises:
        PlanSearchError: if the scores are incomplete, not finite or of another network than the costs, or if nothing
            fits the budget: it says what the nearest is.
        ImportError: without scipy, which scikit-image brings (`pip install -e '.[teacher]'`).
    """
    plans = plans_from_scores(scores, costs, 1, budget=budget, weights=weights, constraints=constraints, name=name)
    return plans[0]


def plans_from_scores(
    scores: ImportanceTable,
    costs: CostTable,
    num_plans: int,
    *,
    budget: Budget,
    weights: Mapping[str, float] = CONTENT_AND_MOTION,
    constraints: DepthConstraints | None = None,
    name: str = "searched",
    min_difference: int = 1,
    near: PruningPlan | None = None,
    max_difference: int | None = None,
) -> list[PruningPlan]:
    """The best plans in their order, as `plan_from_scores` has it; fewer where a budget allows no more.

    All but the first are named by their place as well, `searched-2`.

    Args:
        min_difference: the number of layers or blocks in which each plan differs at least from all that come before
            it. The next best ones with 1 differ in what hardly matters.
        near, max_difference: a plan of the network, such as the best that was measured, and the number of layers or
            blocks in which the plans may differ from it. Sums are a better guess there than far away.
    """
    if (near is None) != (max_difference is None):
        raise PlanSearchError("Give `near` and `max_difference` together: a plan, and how far from it to search.")
    one, other = ((t.class_name, json.dumps(dict(t.config), sort_keys=True, default=list)) for t in (scores, costs))
    if one != other:
        raise PlanSearchError(
            f"The scores are of a {scores.class_name} and the costs of a {costs.class_name} with another config:"
            " both must be of one network."
        )
    space = space_of(costs, constraints)
    importance = weighted_importance(scores, weights, space.scored)
    if near is None or max_difference is None:
        return _solve(space, importance, num_plans, budget, name, min_difference)
    space.check(near)
    space.rows.append(_difference(space, space.kept(near), -np.inf, max_difference))
    try:
        return _solve(space, importance, num_plans, budget, name, min_difference)
    except PlanSearchError as error:
        raise PlanSearchError(f"Within {max_difference} parts of the plan {near.name!r}: {error}") from error


def weighted_importance(
    scores: ImportanceTable, weights: Mapping[str, float], parts: Iterable[str]
) -> dict[str, float]:
    """The weighted sum of several scores' importances of `parts`, each over the sum of its magnitudes.

    Raises:
        PlanSearchError: if one of the parts has no score, or one that is not finite; or for wrong weights.
    """
    parts = list(parts)
    if not any(weights.values()) or not all(0 <= weight < math.inf for weight in weights.values()):
        raise PlanSearchError(f"Give finite weights from 0 on, one of them above 0; got {dict(weights)}.")
    total = dict.fromkeys(parts, 0.0)
    for score, weight in weights.items():
        importance = scores.importance(score)
        if missing := [part for part in parts if part not in importance]:
            raise PlanSearchError(
                f"{len(missing)} of {len(parts)} parts have no score, such as {', '.join(missing[:5])}. Measure all"
                " layers, stages and blocks."
            )
        if broken := [part for part in parts if not np.isfinite(importance[part])]:
            raise PlanSearchError(f"The importance of {broken[0]} by {score} is {importance[broken[0]]}.")
        norm = sum(abs(importance[part]) for part in parts) or 1.0
        for part in parts:
            total[part] += weight * importance[part] / norm
    return total


def _solve(
    space: Space, importance: Mapping[str, float], num_plans: int, budget: Budget, name: str, min_difference: int
) -> list[PruningPlan]:
    objective = {part: -value for part, value in importance.items()}
    found: list[PruningPlan] = []
    excluded: list[Row] = []
    reason: ValueError | None = None
    for _ in range(MAX_SOLUTIONS + num_plans):
        kept = _best(space, objective, [*_budget_rows(space, budget.limits), *excluded])
        if kept is None:
            break
        difference = 1
        try:
            plan = space.plan(kept, f"{name}-{len(found) + 1}" if found else name)
            space.check(plan)
        except PruningPlanError as error:
            reason = error
        else:
            if all(total <= budget.limits[what] for what, total in _student_costs(space, kept, budget.limits).items()):
                found.append(plan)
                difference = min_difference
                if len(found) == num_plans:
                    return found
            else:
                reason = PlanSearchError("the solver's tolerance let a plan pass that is just above the budget")
        # This choice is ruled out, and what is too like a plan; the next best is sought.
        excluded.append(_difference(space, kept, difference, np.inf))
    else:
        if not found:
            raise PlanSearchError(f"{MAX_SOLUTIONS} plans were found that do not fit the network; the last: {reason}")
    if not found:
        raise PlanSearchError(_nearest(space, budget))
    return found


def _difference(space: Space, kept: set[str], least: float, most: float) -> Row:
    """A row that says in how many of the scored parts a plan differs from one that keeps these."""
    coefficients = {part: -1.0 if part in kept else 1.0 for part in space.scored}
    num_kept = sum(part in kept for part in space.scored)
    return coefficients, least - num_kept, most - num_kept


def cost_of_plan(plan: PruningPlan, costs: CostTable) -> dict[str, float]:
    """What a student costs under a plan, as the parts of the teacher add up, by the names of `Budget`.

    Parameters are exact. Milliseconds are left out where the costs have none.
    """
    space = space_of(costs)
    metrics = ["num_parameters", "num_macs", "memory_bytes"]
    metrics += ["milliseconds"] if costs.whole.milliseconds is not None else []
    return _student_costs(space, space.kept(plan), metrics)


def importance_of_plan(
    plan: PruningPlan,
    scores: ImportanceTable,
    costs: CostTable,
    weights: Mapping[str, float] = CONTENT_AND_MOTION,
) -> float:
    """The importance of what stays, which `plan_from_scores` makes as great as it can, as a share of all.

    It may be above 1 where parts have negative importance: what they are removed from is better without.
    """
    space = space_of(costs)
    importance, kept = weighted_importance(scores, weights, space.scored), space.kept(plan)
    whole = sum(importance.values()) or 1.0  # nothing matters: nothing stays of it
    return sum(importance[part] for part in importance.keys() & kept) / whole


def _student_costs(space: Space, kept: set[str], metrics: Iterable[str]) -> dict[str, float]:
    gone = [part for part, variable in space.costing.items() if variable not in kept]
    staying = [REST, *(part for part, variable in space.costing.items() if variable in kept)]
    peaks = [space.cost(part).peak_bytes for part in staying]
    totals = {}
    for metric in metrics:
        if metric == "memory_bytes":
            weights = space.costs.whole.num_parameters - sum(space.cost(part).num_parameters for part in gone)
            totals[metric] = weights * space.costs.bytes_per_parameter + max(peaks)
        else:
            totals[metric] = _value(space.costs.whole, metric) - sum(_value(space.cost(p), metric) for p in gone)
    return totals


def _value(cost: PartCost, metric: str) -> float:
    value = getattr(cost, metric)
    if value is None:
        raise PlanSearchError("The costs have no milliseconds: measure time, or give another budget.")
    return value


def _budget_rows(space: Space, limits: Mapping[str, float]) -> list[Row]:
    """Rows that say that each limit is kept, in units of the limit."""
    rows: list[Row] = []
    for metric, limit in limits.items():
        if metric != "memory_bytes":
            coefficients, constant = _total(space, metric)
            rows.append(({v: c / limit for v, c in coefficients.items()}, -np.inf, (limit - constant) / limit))
            continue
        coefficients, constant = _total(space, "num_parameters")
        size = space.costs.bytes_per_parameter
        room = limit - constant * size
        weights = {variable: c * size / limit for variable, c in coefficients.items()}
        rows.append((weights, -np.inf, (room - space.cost(REST).peak_bytes) / limit))
        for part, variable in space.costing.items():
            row = {**weights, variable: weights.get(variable, 0) + space.cost(part).peak_bytes / limit}
            rows.append((row, -np.inf, room / limit))
    return rows


def _total(space: Space, metric: str) -> tuple[dict[str, float], float]:
    """A cost as coefficients of the variables and what always stays."""
    coefficients: dict[str, float] = {}
    constant = _value(space.costs.whole, metric)
    for part, variable in space.costing.items():
        value = _value(space.cost(part), metric)
        coefficients[variable] = coefficients.get(variable, 0) + value
        constant -= value
    return coefficients, constant


def _best(space: Space, objective: Mapping[str, float], more: Sequence[Row]) -> set[str] | None:
    """The variables that are 1 where the objective is least, or None if nothing fits."""
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError as error:
        raise ImportError("Plans are searched by scipy: run `pip install -e '.[teacher]'` in a checkout.") from error
    index = {variable: i for i, variable in enumerate(space.variables)}
    rows = [*space.rows, *more]
    matrix = np.zeros((len(rows), len(index)))
    for row, (coefficients, _, _) in zip(matrix, rows, strict=True):
        for variable, coefficient in coefficients.items():
            row[index[variable]] += coefficient
    scale = SCALE / (max(map(abs, objective.values()), default=0) or 1)
    weights = np.array([scale * objective.get(variable, 0.0) for variable in space.variables])
    least: Any = [float(variable in space.fixed) for variable in space.variables]
    lows_and_highs: Any = np.array([(low, high) for _, low, high in rows]).T
    constraints = LinearConstraint(matrix, *lows_and_highs)
    found = milp(
        weights,
        integrality=np.ones(len(index)),
        bounds=Bounds(least, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0},
    )
    if found.status == 2:  # nothing fits
        return None
    if found.status != 0:
        raise PlanSearchError(f"The solver stopped without a plan: {found.message}")
    return {variable for variable, value in zip(space.variables, found.x, strict=True) if value > 0.5}


def _nearest(space: Space, budget: Budget) -> str:
    """What to say where no plan meets a budget: the least that any plan needs."""
    least = {metric: _least(space, metric) for metric in budget.limits}
    if None in least.values():
        return "No plan heeds the constraints, whatever it costs."
    needs = " and ".join(f"{number_of(metric, value or 0)} {metric}" for metric, value in least.items())
    wanted = " and ".join(f"{number_of(metric, limit)} {metric}" for metric, limit in budget.limits.items())
    both = "" if len(least) == 1 else ", each by itself"
    return f"No plan has {wanted} or less. The nearest that any plan comes to is {needs}{both}."


def number_of(metric: str, value: float) -> str:
    """As it can be given as a budget that is met: counts exactly, milliseconds rounded up."""
    return f"{math.ceil(1000 * value - 1e-6) / 1000:,.3f}" if metric == "milliseconds" else f"{value:,.0f}"


def _least(space: Space, metric: str) -> float | None:
    """The least that any plan needs of this, or None if there is no plan."""
    objective = _total(space, "num_parameters" if metric == "memory_bytes" else metric)[0]
    ceilings = [np.inf]
    if metric == "memory_bytes":  # the lightest of the plans whose parts stay below each peak
        ceilings = sorted({space.cost(part).peak_bytes for part in (REST, *space.costing)})
    found = []
    for ceiling in ceilings:
        above = {v for part, v in space.costing.items() if space.cost(part).peak_bytes > ceiling}
        kept = _best(space, objective, [({variable: 1.0}, -np.inf, 0.0) for variable in above])
        if kept is not None:
            found.append(_student_costs(space, kept, [metric])[metric])
    return min(found, default=None)
