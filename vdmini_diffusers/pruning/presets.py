"""Plans by name: the paper's."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vdmini_diffusers.pruning.plans import DecoderPruningPlan, PruningPlan, PruningPlanError, UNetPruningPlan
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

PLANS: dict[str, PruningPlan] = {plan.name: plan for plan in (VDMINI_UNET,)}

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


def find_plan(plan: str | os.PathLike | PruningPlan, plans: Mapping[str, PruningPlan] = PLANS) -> PruningPlan:
    """A plan: given as it is, by its name in `plans`, or by the path of its JSON file.

    Raises:
        PruningPlanError: if it is none of them.
    """
    if isinstance(plan, PruningPlan):
        return plan
    if not isinstance(plan, (str, os.PathLike)):
        raise PruningPlanError(f"A plan is a PruningPlan, a name or a JSON file, not {type(plan).__name__}.")
    if plan in plans:
        return plans[str(plan)]
    file = Path(plan)
    try:
        if file.is_file():
            check_small_file(file)
            return PruningPlan.from_json_string(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PruningPlanError(f"{file} cannot be read as a plan: {error}") from error
    raise PruningPlanError(f"{str(plan)!r} is no plan: neither one of {', '.join(plans)} nor a JSON file with a plan.")
