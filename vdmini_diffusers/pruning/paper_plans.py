"""The paper's plans."""

from vdmini_diffusers.pruning.plan import PruningPlan, UNetPruningPlan


# Section 3.2 and Table A4: without Down-3, Mid and Up-0; Down-0, Down-1, Up-2 and Up-3 lose one layer. Which layer is
# forced by the widths in Down-1 and Up-2. In Down-0 (1,) and in Up-3 (0, 1) would fit as well; the text says that the
# second R-A pairs go.
VDMINI_UNET = UNetPruningPlan(
    name="vdmini",
    down={0: (0,), 1: (0,), 2: (0, 1)},
    keep_mid=False,
    up={1: (0, 1, 2), 2: (0, 2), 3: (0, 2)},
)

PLANS: dict[str, PruningPlan] = {plan.name: plan for plan in (VDMINI_UNET,)}
