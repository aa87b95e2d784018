"""The pruning decision as one piece of data, and what follows from it (paper, section 3.2, appendices A and B)."""

from vdmini_diffusers.pruning.plans.base import PruningPlan, PruningPlanError
from vdmini_diffusers.pruning.plans.transformer import TransformerPruningPlan
from vdmini_diffusers.pruning.plans.unet import UNetPruningPlan
from vdmini_diffusers.pruning.plans.unet_channels import ChannelPruningPlan
from vdmini_diffusers.pruning.plans.vae_decoder import DecoderPruningPlan


__all__ = [
    "ChannelPruningPlan",
    "DecoderPruningPlan",
    "PruningPlan",
    "PruningPlanError",
    "TransformerPruningPlan",
    "UNetPruningPlan",
]
