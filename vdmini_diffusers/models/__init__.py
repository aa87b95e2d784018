from vdmini_diffusers.models.autoencoder_kl_vdmini import VDMiniAutoencoderKL, VDMiniAutoencoderKLTemporalDecoder
from vdmini_diffusers.models.transformer_hunyuan_video_vdmini import VDMiniHunyuanVideoTransformer3DModel
from vdmini_diffusers.models.unet_3d_vdmini import VDMiniUNet3DConditionModel
from vdmini_diffusers.models.unet_spatio_temporal_vdmini import VDMiniUNetSpatioTemporalConditionModel


__all__ = [
    "VDMiniAutoencoderKL",
    "VDMiniAutoencoderKLTemporalDecoder",
    "VDMiniHunyuanVideoTransformer3DModel",
    "VDMiniUNet3DConditionModel",
    "VDMiniUNetSpatioTemporalConditionModel",
]
