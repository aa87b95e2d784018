from vdmini_diffusers.pipelines.pipeline_vdmini_hunyuan_video import VDMiniHunyuanVideoPipeline
from vdmini_diffusers.pipelines.pipeline_vdmini_i2v import VDMiniI2VPipeline
from vdmini_diffusers.pipelines.pipeline_vdmini_t2v import VDMiniT2VPipeline
from vdmini_diffusers.pipelines.scheduling_animatelcm_svd_vdmini import VDMiniAnimateLCMSVDScheduler
from vdmini_diffusers.pipelines.scheduling_ddim_videocrafter_vdmini import VDMiniVideoCrafterDDIMScheduler


__all__ = [
    "VDMiniAnimateLCMSVDScheduler",
    "VDMiniHunyuanVideoPipeline",
    "VDMiniI2VPipeline",
    "VDMiniT2VPipeline",
    "VDMiniVideoCrafterDDIMScheduler",
]
