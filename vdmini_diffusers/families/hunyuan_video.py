"""HunyuanVideo and VDMini-T2V-HY: text to video."""

from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel

from vdmini_diffusers.families.base import Denoiser, Family
from vdmini_diffusers.serialization.pipeline_folder import Component, PipelineLayout


HUNYUAN_VIDEO = Family(
    name="HunyuanVideo",
    layout=PipelineLayout(
        class_names=("HunyuanVideoPipeline",),
        components={
            "scheduler": Component("diffusers", has_weights=False),
            "text_encoder": Component("transformers"),
            "text_encoder_2": Component("transformers"),
            "tokenizer": Component("transformers", has_weights=False),
            "tokenizer_2": Component("transformers", has_weights=False),
            "transformer": Component("diffusers"),
            "vae": Component("diffusers"),
        },
    ),
    denoisers={
        "transformer": Denoiser("transformer", (HunyuanVideoTransformer3DModel,), HunyuanVideoTransformer3DModel)
    },
    pipeline=HunyuanVideoPipeline,
    default_plan="vdmini_hy",
    card="vdmini_t2v_hy.md",
    pipeline_tag="text-to-video",
    tags=("vdmini", "video-diffusion", "pruning", "hunyuan-video", "text-to-video"),
)
FAMILY = HUNYUAN_VIDEO
