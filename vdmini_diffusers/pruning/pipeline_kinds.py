"""The pipelines whose U-Net can be pruned: what they consist of, and what they become."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from diffusers import UNet3DConditionModel, UNetSpatioTemporalConditionModel

from vdmini_diffusers.models import VDMiniUNet3DConditionModel, VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.pipelines import VDMiniI2VPipeline, VDMiniT2VPipeline, VDMiniVideoCrafterDDIMScheduler


class Component(NamedTuple):
    library: str
    has_weights: bool = True


@dataclass(frozen=True)
class PipelineKind:
    """Args:
    teachers: class names of pipelines that are pruned.
    components: what they need, no more.
    teacher_unets: classes of their U-Nets.
    student_unet, pipeline: classes of the student.
    schedulers: classes of our own that a teacher may have.
    card: its model card's template.
    """

    name: str
    teachers: tuple[str, ...]
    components: Mapping[str, Component]
    teacher_unets: tuple[type[Any], ...]
    student_unet: type[Any]
    pipeline: type[Any]
    card: str
    pipeline_tag: str
    tags: tuple[str, ...]
    schedulers: tuple[type[Any], ...] = ()

    @property
    def with_weights(self) -> tuple[str, ...]:
        return tuple(name for name, component in self.components.items() if component.has_weights)

    def published_class(self, name: str, entry: Any) -> type[Any] | None:
        """Our class that an entry of `model_index.json` names with its file, which is not opened, for a component."""
        ours = {"unet": (self.student_unet,) if self.student_unet in self.teacher_unets else ()}
        ours["scheduler"] = self.schedulers
        published = (cls for cls in ours.get(name, ()) if entry == [cls.__module__.rpartition(".")[2], cls.__name__])
        return next(published, None)


SVD = PipelineKind(
    name="SVD",
    teachers=("StableVideoDiffusionPipeline", "VDMiniI2VPipeline"),
    components={
        "feature_extractor": Component("transformers", has_weights=False),
        "image_encoder": Component("transformers"),
        "scheduler": Component("diffusers", has_weights=False),
        "unet": Component("diffusers"),
        "vae": Component("diffusers"),
    },
    teacher_unets=(UNetSpatioTemporalConditionModel,),
    student_unet=VDMiniUNetSpatioTemporalConditionModel,
    pipeline=VDMiniI2VPipeline,
    card="vdmini_i2v.md",
    pipeline_tag="image-to-video",
    tags=("vdmini", "video-diffusion", "pruning", "stable-video-diffusion", "image-to-video"),
)

# ModelScope's, and what `convert_t2v_turbo` makes of T2V-Turbo and VideoCrafter2.
TEXT_TO_VIDEO = PipelineKind(
    name="text to video",
    teachers=("VDMiniT2VPipeline", "TextToVideoSDPipeline"),
    components={
        "scheduler": Component("diffusers", has_weights=False),
        "text_encoder": Component("transformers"),
        "tokenizer": Component("transformers", has_weights=False),
        "unet": Component("diffusers"),
        "vae": Component("diffusers"),
    },
    teacher_unets=(VDMiniUNet3DConditionModel, UNet3DConditionModel),
    student_unet=VDMiniUNet3DConditionModel,
    pipeline=VDMiniT2VPipeline,
    card="vdmini_t2v.md",
    pipeline_tag="text-to-video",
    tags=("vdmini", "video-diffusion", "pruning", "text-to-video"),
    schedulers=(VDMiniVideoCrafterDDIMScheduler,),
)
