"""VDMini (Wu et al., ACM MM 2025) for diffusers: pruned and distilled video diffusion models.

The models are imported eagerly: diffusers resolves a component's class only from modules that are loaded already.
"""

from vdmini_diffusers.models import (
    VDMiniAutoencoderKL,
    VDMiniAutoencoderKLTemporalDecoder,
    VDMiniUNet3DConditionModel,
    VDMiniUNetSpatioTemporalConditionModel,
)
from vdmini_diffusers.pipelines import VDMiniI2VPipeline, VDMiniT2VPipeline, VDMiniVideoCrafterDDIMScheduler


__version__ = "0.1.0"
__all__ = [
    "VDMiniAutoencoderKL",
    "VDMiniAutoencoderKLTemporalDecoder",
    "VDMiniI2VPipeline",
    "VDMiniT2VPipeline",
    "VDMiniUNet3DConditionModel",
    "VDMiniUNetSpatioTemporalConditionModel",
    "VDMiniVideoCrafterDDIMScheduler",
    "__version__",
]
