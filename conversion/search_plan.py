"""Search the plan that keeps most of what matters under a budget, from measured importance and cost.

    python conversion/search_plan.py --importance outputs/importance/importance.json --cost outputs/cost/cost.json \\
        --num_parameters 940000000 --plan_file searched.json
    python conversion/convert_svd_to_vdmini.py --plan searched.json ...

The importances of layers add up, which is an approximation; given that, the plan is the best that there is. So let it
write the next best ones as well (`--num_plans`), and score all of them, and a named one, as whole students, with
`--plans` of `measure_block_importance.py`; and search on about the best of them (`--near`, `--max_difference`), where
the sums are a better guess.
"""

from dataclasses import dataclass, field
from pathlib import Path

from vdmini_diffusers.analysis.cost_table import CostTable
from vdmini_diffusers.analysis.importance import ImportanceTable
from vdmini_diffusers.analysis.plan_search import (
    Budget,
    cost_of_plan,
    importance_of_plan,
    number_of,
    plans_from_scores,
)
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.pruning import DepthConstraints
from vdmini_diffusers.pruning.plans import PruningPlan
from vdmini_diffusers.pruning.presets import PLANS, find_plan
from vdmini_diffusers.serialization.atomic import write_file


FIXED_PLANS: dict[str, PruningPlan] = {name: plan for name, plan in PLANS.items() if isinstance(plan, PruningPlan)}


@dataclass
class SearchArguments:
    importance: str = field(metadata={"help": "importance.json of conversion/measure_block_importance.py."})
    cost: str = field(metadata={"help": "cost.json of conversion/measure_block_cost.py."})
    plan_file: str = field(metadata={"help": "JSON file that the plan is written to; --plan of the converters."})
    num_parameters: int | None = field(default=None, metadata={"help": "The most that the student may have."})
    num_macs: int | None = field(default=None, metadata={"help": "Multiply-accumulates of a forward pass, likewise."})
    milliseconds: float | None = field(default=None, metadata={"help": "A forward pass's, likewise."})
    memory_bytes: int | None = field(default=None, metadata={"help": "For weights and activations, likewise."})
    scores: list[str] = field(
        default_factory=lambda: ["content_mse", "motion_mse"], metadata={"help": "The scores that importance is by."}
    )
    weights: list[float] = field(default_factory=lambda: [1.0, 1.0], metadata={"help": "One for each score."})
    num_plans: int = field(
        default=1, metadata={"help": "The next best plans are written beside the file: searched-2.json, ..."}
    )
    min_difference: int = field(
        default=4, metadata={"help": "Layers or blocks in which each of them differs at least from all before it."}
    )
    near: str | None = field(
        default=None, metadata={"help": "A plan's name or JSON file, such as the best one measured, to search about."}
    )
    max_difference: int | None = field(
        default=None, metadata={"help": "With --near: layers or blocks in which plans may differ from it."}
    )
    name: str = field(default="searched", metadata={"help": "The plan's name."})
    contiguous: bool = field(default=False, metadata={"help": "For transformers: removed blocks follow one another."})
    max_run: int | None = field(
        default=None,
        metadata={"help": "For transformers: the most blocks that go without one between them that stays."},
    )

    def __post_init__(self) -> None:
        if min(self.num_plans, self.min_difference) < 1:
            raise ValueError("`--num_plans` and `--min_difference` are 1 at least.")
        if (self.near is None) != (self.max_difference is None):
            raise ValueError("Give `--near` and `--max_difference` together: a plan, and how far from it to search.")
        if len(self.scores) != len(self.weights):
            raise ValueError(f"Give one of `weights` for each of `scores`: {self.weights} for {self.scores}.")


def main(args: SearchArguments) -> None:
    costs = CostTable.read(Path(args.cost))
    constraints = DepthConstraints(contiguous=args.contiguous, max_run=args.max_run)
    scores, weights = ImportanceTable.read(Path(args.importance)), dict(zip(args.scores, args.weights, strict=True))
    plans = plans_from_scores(
        scores,
        costs,
        args.num_plans,
        budget=Budget(args.num_parameters, args.num_macs, args.milliseconds, args.memory_bytes),
        weights=weights,
        constraints=None if constraints == DepthConstraints() else constraints,
        name=args.name,
        min_difference=args.min_difference,
        near=None if args.near is None else find_plan(args.near, FIXED_PLANS),
        max_difference=args.max_difference,
    )
    file = Path(args.plan_file)
    for number, plan in enumerate(plans, 1):
        write_file(file if number == 1 else file.with_stem(f"{file.stem}-{number}"), plan.to_json_string().encode())
    print(plans[0].to_json_string(), end="")
    if cost_of_plan(plans[0], costs)["num_parameters"] == costs.whole.num_parameters:
        print("The whole network meets this budget, and the plan removes nothing.")
    for metric, value in cost_of_plan(plans[0], costs).items():
        print(f"{metric}: {number_of(metric, value)}")
    print(f"importance that stays: {', '.join(f'{importance_of_plan(p, scores, costs, weights):.1%}' for p in plans)}")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((SearchArguments,), __doc__)))
