from vdmini_diffusers.models.unet_spatio_temporal_vdmini import VDMiniUNetSpatioTemporalConditionModel


__all__ = ["VDMiniUNetSpatioTemporalConditionModel"]
