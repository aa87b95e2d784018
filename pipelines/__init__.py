from vdmini_diffusers.pipelines.pipeline_vdmini_i2v import VDMiniI2VPipeline


__all__ = ["VDMiniI2VPipeline"]
