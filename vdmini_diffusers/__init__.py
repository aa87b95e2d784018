"""VDMini (Wu et al., ACM MM 2025) for diffusers: pruned and distilled video diffusion models.

The models are imported eagerly: diffusers resolves a component's class only from modules that are loaded already.
"""

from vdmini_diffusers.models import (
    VDMiniAutoencoderKL,
    VDMiniAutoencoderKLTemporalDecoder,
    VDMiniHunyuanVideoTransformer3DModel,
    VDMiniUNet3DConditionModel,
    VDMiniUNetSpatioTemporalConditionModel,
)
from vdmini_diffusers.pipelines import (
    VDMiniAnimateLCMSVDScheduler,
    VDMiniHunyuanVideoPipeline,
    VDMiniI2VPipeline,
    VDMiniT2VPipeline,
    VDMiniVideoCrafterDDIMScheduler,
)
from vdmini_diffusers.pruning import DECODER_PLANS, PLANS, PruningPlan, PruningPlanError
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.pruning.prune_vae_decoder import prune_vae_decoder
from vdmini_diffusers.publishing.publish import publish
from vdmini_diffusers.trainers.distill import distill
from vdmini_diffusers.version import __version__


__all__ = [
    "DECODER_PLANS",
    "PLANS",
    "PruningPlan",
    "PruningPlanError",
    "VDMiniAnimateLCMSVDScheduler",
    "VDMiniAutoencoderKL",
    "VDMiniAutoencoderKLTemporalDecoder",
    "VDMiniHunyuanVideoPipeline",
    "VDMiniHunyuanVideoTransformer3DModel",
    "VDMiniI2VPipeline",
    "VDMiniT2VPipeline",
    "VDMiniUNet3DConditionModel",
    "VDMiniUNetSpatioTemporalConditionModel",
    "VDMiniVideoCrafterDDIMScheduler",
    "__version__",
    "distill",
    "prune_pipeline",
    "prune_vae_decoder",
    "publish",
]
