"""Video pipelines of diffusers whose students are the same classes with fewer blocks: one line each.

What a pipeline consists of is read from its constructor's annotations, and which of its components are pruned from
`BLOCK_LISTS`. A pipeline that can also be trained has a file of its own.
"""

import functools
import typing
from collections.abc import Iterable
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from diffusers import pipelines as diffusers_pipelines
from torch import nn

from vdmini_diffusers.families.base import Denoiser, Family
from vdmini_diffusers.families.block_lists import BLOCK_LISTS
from vdmini_diffusers.serialization.pipeline_folder import Component, PipelineLayout


# By the Hub's name of what they do. The classes are looked up when a folder names one of them, as some need optional
# packages.
PIPELINES = {
    "text-to-video": (
        "AllegroPipeline",
        "AnyFlowFARPipeline",
        "AnyFlowPipeline",
        "CogVideoXPipeline",
        "Cosmos2_5_PredictBasePipeline",
        "Cosmos3OmniPipeline",
        "CosmosTextToWorldPipeline",
        "EasyAnimatePipeline",
        "HeliosPipeline",
        "HeliosPyramidPipeline",
        "HunyuanVideo15Pipeline",
        "Kandinsky5T2VPipeline",
        "Kandinsky6TI2VAPipeline",
        "LTX2DFRPipeline",
        "LTX2Pipeline",
        "LTXPipeline",
        "LattePipeline",
        "MochiPipeline",
        "MotifVideoPipeline",
        "SanaVideoPipeline",
        "SkyReelsV2DiffusionForcingPipeline",
        "SkyReelsV2Pipeline",
        "WanPipeline",
    ),
    "image-to-video": (
        "CogVideoXImageToVideoPipeline",
        "ConsisIDPipeline",
        "Cosmos2VideoToWorldPipeline",
        "CosmosVideoToWorldPipeline",
        "EasyAnimateInpaintPipeline",
        "HunyuanSkyreelsImageToVideoPipeline",
        "HunyuanVideo15ImageToVideoPipeline",
        "HunyuanVideoFramepackPipeline",
        "HunyuanVideoImageToVideoPipeline",
        "Kandinsky5I2VPipeline",
        "LTX2ConditionPipeline",
        "LTX2ImageToVideoPipeline",
        "LTX2InContextPipeline",
        "LTXConditionPipeline",
        "LTXI2VLongMultiPromptPipeline",
        "LTXImageToVideoPipeline",
        "MotifVideoImage2VideoPipeline",
        "SanaImageToVideoPipeline",
        "SanaWMPipeline",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        "SkyReelsV2ImageToVideoPipeline",
        "WanAnimatePipeline",
        "WanImageToVideoPipeline",
    ),
    "video-to-video": (
        "CogVideoXFunControlPipeline",
        "CogVideoXVideoToVideoPipeline",
        "Cosmos2_5_TransferPipeline",
        "EasyAnimateControlPipeline",
        "Kandinsky6SRPipeline",
        "LTX2DFRTemporalRefinePipeline",
        "LTX2HDRPipeline",
        "LucyEditPipeline",
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        "WanVACEPipeline",
        "WanVideoToVideoPipeline",
    ),
    "image-to-image": (
        "ChronoEditPipeline",
        "JoyImageEditPipeline",
        "JoyImageEditPlusPipeline",
        "Kandinsky5I2IPipeline",
    ),
    "text-to-image": ("Cosmos2TextToImagePipeline", "Kandinsky5T2IPipeline"),
}


@functools.cache
def stock_family(class_name: str) -> Family | None:
    """The family of the pipelines of one class, or None for a class that is not listed above.

    Raises:
        ValueError: if the installed diffusers lacks the class, or something that it needs.
    """
    pipeline_tag = next((tag for tag, names in PIPELINES.items() if class_name in names), None)
    if pipeline_tag is None:
        return None
    pipeline: Any = getattr(diffusers, class_name, None)
    if not (isinstance(pipeline, type) and issubclass(pipeline, DiffusionPipeline)):
        raise ValueError(
            f"diffusers {diffusers.__version__} has no {class_name} here: install a newer one, or what it needs."
            f" `from diffusers import {class_name}; {class_name}()` says what."
        )
    name = class_name.removesuffix("Pipeline")
    classes = component_types(pipeline)
    prunable = {
        component: [cls for cls in found if cls.__name__ in BLOCK_LISTS] for component, found in classes.items()
    }
    return Family(
        name=name,
        layout=pipeline_layout(pipeline),
        denoisers={
            component: Denoiser("transformer", tuple(found), found[0])
            for component, found in prunable.items()
            if found
        },
        pipeline=pipeline,
        default_plan="middle",
        card="vdmini_video_transformer.md",
        pipeline_tag=pipeline_tag,
        tags=("vdmini", "video-diffusion", "pruning", pipeline_tag),
    )


def component_types(pipeline: type[Any]) -> dict[str, tuple[type[Any], ...]]:
    """The classes that each component of a pipeline may have, as its constructor declares them, without settings."""
    hints = typing.get_type_hints(pipeline.__init__)
    declared = {name: typing.get_args(hint) or (hint,) for name, hint in hints.items() if name != "return"}
    settings = (bool, int, float, str, type(None))
    found = {name: tuple(cls for cls in classes if cls not in settings) for name, classes in declared.items()}
    return {name: classes for name, classes in found.items() if classes}


def pipeline_layout(pipeline: type[Any]) -> PipelineLayout:
    """What the folder of a stock pipeline consists of. It may lack any component, which is then given to its class."""
    return PipelineLayout(
        class_names=(pipeline.__name__,),
        components={
            name: Component(_library(classes), has_weights=_have_weights(classes), nullable=True)
            for name, classes in sorted(component_types(pipeline).items())
        },
    )


def _have_weights(classes: Iterable[type[Any]]) -> bool:
    return any(issubclass(cls, nn.Module) for cls in classes)


def _library(classes: tuple[type[Any], ...]) -> str:
    """As `DiffusionPipeline.register_modules` names it: models that are part of a pipeline have its folder's name."""
    parts = classes[0].__module__.split(".")
    folder = parts[-2] if len(parts) > 2 else ""
    return folder if hasattr(diffusers_pipelines, folder) else parts[0]
