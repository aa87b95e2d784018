"""Pruning: the decision as data, and teachers pruned by it (paper, section 3.2 and appendix A)."""

from vdmini_diffusers.pruning.depth import DepthConstraints, MiddleRule
from vdmini_diffusers.pruning.paper_names import paper_name
from vdmini_diffusers.pruning.plans import (
    ChannelPruningPlan,
    DecoderPruningPlan,
    PruningPlan,
    PruningPlanError,
    TransformerPruningPlan,
    UNetPruningPlan,
)
from vdmini_diffusers.pruning.presets import (
    BK_SDM_BASE,
    BK_SDM_SMALL,
    BK_SDM_TINY,
    DECODER_PLANS,
    MIDDLE,
    P1,
    PAPER_LITERAL,
    PLANS,
    Q2,
    VDMINI_HY,
    VDMINI_UNET,
    find_plan,
)


__all__ = [
    "BK_SDM_BASE",
    "BK_SDM_SMALL",
    "BK_SDM_TINY",
    "DECODER_PLANS",
    "MIDDLE",
    "P1",
    "PAPER_LITERAL",
    "PLANS",
    "Q2",
    "VDMINI_HY",
    "VDMINI_UNET",
    "ChannelPruningPlan",
    "DecoderPruningPlan",
    "DepthConstraints",
    "MiddleRule",
    "PruningPlan",
    "PruningPlanError",
    "TransformerPruningPlan",
    "UNetPruningPlan",
    "find_plan",
    "paper_name",
]
