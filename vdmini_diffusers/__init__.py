"""VDMini (Wu et al., ACM MM 2025) for diffusers: pruned and distilled video diffusion models.

The models are imported eagerly: diffusers resolves a component's class only from modules that are loaded already.
"""

from vdmini_diffusers.models import VDMiniUNetSpatioTemporalConditionModel


__version__ = "0.1.0"
__all__ = ["VDMiniUNetSpatioTemporalConditionModel", "__version__"]
