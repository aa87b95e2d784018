"""The pruning decision as data, and what follows from it (paper, section 3.2)."""

from vdmini_diffusers.pruning.feature_pairs import feature_pairs
from vdmini_diffusers.pruning.paper_names import paper_name
from vdmini_diffusers.pruning.paper_plans import PLANS, VDMINI_UNET
from vdmini_diffusers.pruning.plan import (
    PruningPlan,
    PruningPlanError,
    TransformerPruningPlan,
    UNetPruningPlan,
    keep_everything,
)
from vdmini_diffusers.pruning.student_config import student_config
from vdmini_diffusers.pruning.weight_map import weight_map


__all__ = [
    "PLANS",
    "VDMINI_UNET",
    "PruningPlan",
    "PruningPlanError",
    "TransformerPruningPlan",
    "UNetPruningPlan",
    "feature_pairs",
    "keep_everything",
    "paper_name",
    "student_config",
    "weight_map",
]
