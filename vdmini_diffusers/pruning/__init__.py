"""The pruning decision as data, and what follows from it (paper, section 3.2 and appendix A)."""

from vdmini_diffusers.pruning.decoder_config import decoder_config, keep_decoder
from vdmini_diffusers.pruning.feature_pairs import feature_pairs
from vdmini_diffusers.pruning.paper_names import paper_name
from vdmini_diffusers.pruning.paper_plans import DECODER_PLANS, P1, PLANS, Q2, VDMINI_UNET
from vdmini_diffusers.pruning.plan import (
    DecoderPruningPlan,
    PruningPlan,
    PruningPlanError,
    TransformerPruningPlan,
    UNetPruningPlan,
    keep_everything,
    read_plan,
)
from vdmini_diffusers.pruning.student_config import student_config
from vdmini_diffusers.pruning.weight_map import weight_map


__all__ = [
    "DECODER_PLANS",
    "P1",
    "PLANS",
    "Q2",
    "VDMINI_UNET",
    "DecoderPruningPlan",
    "PruningPlan",
    "PruningPlanError",
    "TransformerPruningPlan",
    "UNetPruningPlan",
    "decoder_config",
    "feature_pairs",
    "keep_decoder",
    "keep_everything",
    "paper_name",
    "read_plan",
    "student_config",
    "weight_map",
]
