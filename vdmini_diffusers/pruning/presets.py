"""Plans by name: the paper's, and where it gives counts only, ours with these counts."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import overload

from vdmini_diffusers.pruning.depth import MiddleRule
from vdmini_diffusers.pruning.plans import (
    DecoderPruningPlan,
    PruningPlan,
    PruningPlanError,
    TransformerPruningPlan,
    UNetPruningPlan,
)
from vdmini_diffusers.serialization.safetensors_reader import check_small_file


# Section 3.2 and Table A4: without Down-3, Mid and Up-0; Down-0, Down-1, Up-2 and Up-3 lose one layer. Which layer is
# forced by the widths in Down-1 and Up-2. In Down-0 (1,) and in Up-3 (0, 1) would fit as well; the text says that the
# second R-A pairs go. Text-to-video U-Nets have stages of the same widths and are cut the same way (appendix B): the
# plan is the same, and gives the 817.02 M of Table A3.
VDMINI_UNET = UNetPruningPlan(
    name="vdmini",
    down={0: (0,), 1: (0,), 2: (0, 1)},
    keep_mid=False,
    up={1: (0, 1, 2), 2: (0, 2), 3: (0, 2)},
)

# The choice of BK-SDM (Kim et al., ECCV 2024), which pruned the image U-Net of Stable Diffusion, to compare with: the
# second pair of every down stage and the middle one of every up stage go ("base"), then the mid block ("small"), then
# the innermost stages ("tiny"). The paper keeps all layers of Down-2 and Up-1 instead.
BK_SDM_BASE = UNetPruningPlan(
    name="bk_sdm_base",
    down={0: (0,), 1: (0,), 2: (0,), 3: (0,)},
    keep_mid=True,
    up={0: (0, 2), 1: (0, 2), 2: (0, 2), 3: (0, 2)},
)
BK_SDM_SMALL = replace(BK_SDM_BASE, name="bk_sdm_small", keep_mid=False)
BK_SDM_TINY = UNetPruningPlan(
    name="bk_sdm_tiny",
    down={0: (0,), 1: (0,), 2: (0,)},
    keep_mid=False,
    up={1: (0, 2), 2: (0, 2), 3: (0, 2)},
)

# For teachers of which the paper has none: the fraction of its HunyuanVideo, 40 of 60 blocks, by a rule.
MIDDLE = MiddleRule(name="middle", keep=2 / 3)

# Appendix D prunes HunyuanVideo from 20 dual-stream and 40 single-stream blocks to 12 and 28, and does not say which
# go: the indices are ours. Published block scores of such networks (FastLightGen on HunyuanVideo, Flux.1-lite, PPCL)
# agree that the first and the last blocks matter most and that runs in the middle matter least, so the first five and
# last four dual-stream and the first and last eight single-stream blocks stay. Runs have four blocks, so that no kept
# block has to take over the work of more than that. They are those of `keep_ends` in `depth.py`.
VDMINI_HY = TransformerPruningPlan(
    name="vdmini_hy",
    transformer="HunyuanVideoTransformer3DModel",
    blocks={
        "transformer_blocks": (*range(5), *range(9, 12), *range(16, 20)),
        "single_transformer_blocks": (*range(8), *range(12, 18), *range(22, 28), *range(32, 40)),
    },
)
# The same counts by the letter of section 3.2, "prune redundant blocks from the shallower layers while preserving more
# of the deeper layers": the first 8 and the first 12 go. It contradicts the evidence above, and is there to compare.
PAPER_LITERAL = TransformerPruningPlan(
    name="paper_literal",
    transformer="HunyuanVideoTransformer3DModel",
    blocks={"transformer_blocks": tuple(range(8, 20)), "single_transformer_blocks": tuple(range(12, 40))},
)

PLANS: dict[str, PruningPlan | MiddleRule] = {
    plan.name: plan for plan in (VDMINI_UNET, BK_SDM_BASE, BK_SDM_SMALL, BK_SDM_TINY, VDMINI_HY, PAPER_LITERAL, MIDDLE)
}

# Appendix A: layers go in MidBlock and UpBlock.3, then channels. Which, the paper does not say; it gives 39.17 M
# parameters and 3.37 times the speed (Table A1). Both plans have 3.37 times fewer multiplications. P1 has 39.41 M and
# plain fractions of the original widths: 1, 3/4, 1/2, 1/2. Q2 has 39.16 M.
P1 = DecoderPruningPlan(
    name="p1",
    mid=(0,),
    keep_mid_attention=False,
    up={0: (0, 1, 2), 1: (0, 1, 2), 2: (0, 1, 2), 3: (0,)},
    widths=(512, 384, 128, 64),
    upsampler_widths=(384, 128, 64),
)
Q2 = replace(P1, name="q2", widths=(512, 384, 96, 64), upsampler_widths=(384, 160, 128))

DECODER_PLANS: dict[str, DecoderPruningPlan] = {plan.name: plan for plan in (P1, Q2)}


@overload
def find_plan(plan: str | os.PathLike | PruningPlan, plans: Mapping[str, PruningPlan]) -> PruningPlan: ...
@overload
def find_plan(
    plan: str | os.PathLike | PruningPlan | MiddleRule, plans: Mapping[str, PruningPlan | MiddleRule] = PLANS
) -> PruningPlan | MiddleRule: ...
def find_plan(
    plan: str | os.PathLike | PruningPlan | MiddleRule, plans: Mapping[str, PruningPlan | MiddleRule] = PLANS
) -> PruningPlan | MiddleRule:
    """A plan, or a rule that makes one: given as it is, by its name in `plans`, or by the path of its JSON file.

    Raises:
        PruningPlanError: if it is none of them.
    """
    if isinstance(plan, (PruningPlan, MiddleRule)):
        return plan
    if not isinstance(plan, (str, os.PathLike)):
        raise PruningPlanError(
            f"A plan is a PruningPlan, a MiddleRule, a name or a JSON file, not {type(plan).__name__}."
        )
    if plan in plans:
        return plans[str(plan)]
    if _is_file(Path(plan)):
        return read_plan_file(Path(plan))
    raise PruningPlanError(f"{str(plan)!r} is no plan: neither one of {', '.join(plans)} nor a JSON file with a plan.")


def read_plan_file(file: Path) -> PruningPlan:
    """The plan in a JSON file. Raises `PruningPlanError` if there is none."""
    try:
        check_small_file(file)
        return PruningPlan.from_json_string(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PruningPlanError(f"{file} cannot be read as a plan: {error}") from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
