"""VDMini (Wu et al., ACM MM 2025) for diffusers: pruned and distilled video diffusion models.

All that is exported is imported at once when the first of it is asked for, or with the package where diffusers is
loaded already: it resolves a component's class only from modules that are loaded. `vdmini --help` needs neither.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from vdmini_diffusers.version import __version__


if TYPE_CHECKING:
    from vdmini_diffusers.inference import optimize, restore
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
    "optimize",
    "prune_pipeline",
    "prune_vae_decoder",
    "publish",
    "restore",
]

_MODULES = (
    "inference",
    "models",
    "pipelines",
    "pruning",
    "pruning.prune_pipeline",
    "pruning.prune_vae_decoder",
    "publishing.publish",
    "trainers.distill",
)


def _import_all() -> None:
    for name in _MODULES:
        module = importlib.import_module(f"{__name__}.{name}")
        globals().update({name: value for name, value in vars(module).items() if name in __all__})


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and "distill" not in globals():
        _import_all()
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if "diffusers" in sys.modules:
    _import_all()
