"""The parts of the README that are made of the code: the picture of what was removed, and the table of support."""

import inspect
import json
from pathlib import Path

from checkout import ROOT
from diffusers import UNetSpatioTemporalConditionModel

from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.families import FAMILIES, Family, TrainableFamily
from vdmini_diffusers.families.stock import PIPELINES, stock_family
from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.families.temporal_attention import TEMPORAL_ATTENTION
from vdmini_diffusers.generation.pipeline_call import call_parameters
from vdmini_diffusers.pruning import PLANS
from vdmini_diffusers.pruning.survey import survey_denoiser
from vdmini_diffusers.publishing.network_picture import TitledNetwork, network_png
from vdmini_diffusers.publishing.network_sketch import sketch_network


README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "what_was_removed.png"
START, END = "<!-- support, written by tests/test_readme.py -->\n", "<!-- /support -->"


def support_table() -> str:
    """What can be done with each family, as its registry and those of the parts say."""
    rows = [{"family": family.name, **support(family)} for family in FAMILIES]
    return markdown_table([*rows, stock_row()]) + "\n"


def support(family: Family) -> dict[str, str]:
    classes = {cls.__name__ for part in family.denoisers.values() for cls in part.teachers}
    given = {"image", "prompt"} & set(call_parameters(family.pipeline))
    makes_videos = family.pipeline_tag in ("image-to-video", "text-to-video")  # as `vdmini score` asks
    can = {
        "distil": isinstance(family, TrainableFamily),
        "sample": makes_videos and bool(given),
        "score": makes_videos,
        "F3": bool(classes & set(TEMPORAL_ATTENTION)),
        "optimise": "optimize" in inspect.signature(family.pipeline.from_pretrained).parameters,
    }
    return {"prune": f"plan `{family.default_plan}`", **{what: "yes" if yes else "-" for what, yes in can.items()}}


def stock_row() -> dict[str, str]:
    """The pipelines of diffusers that have no file in `families/`."""
    known = {name for family in FAMILIES for name in family.layout.class_names}
    others = [name for names in PIPELINES.values() for name in names if name not in known]
    of_videos = [name for tag in ("image-to-video", "text-to-video") for name in PIPELINES[tag] if name not in known]
    example = stock_family("LTXPipeline")
    assert example is not None and not isinstance(example, TrainableFamily)
    name = f"[{len(others)} other pipelines](conversion/VIDEO_TRANSFORMERS.md) of diffusers"
    some = f"{len(of_videos)} of them"
    return {"family": name, **support(example), "sample": some, "score": some}


def readme_with_table() -> str:
    before, _, rest = README.read_text(encoding="utf-8").partition(START)
    return before + START + support_table() + END + rest.partition(END)[2]


def picture_of_removed(folder: Path) -> bytes:
    """Stable Video Diffusion's U-Net and what the plan `vdmini` leaves of it, from its config alone."""
    (folder / "config.json").write_text(json.dumps({"_class_name": UNetSpatioTemporalConditionModel.__name__}))
    survey = survey_denoiser(folder, PLANS["vdmini"], SVD.denoisers["unet"])
    sketch = sketch_network(survey.student.config, survey.plan, survey.dropped_blocks)
    assert sketch is not None
    sizes = f"{survey.num_teacher_parameters:,} to {survey.num_student_parameters:,} parameters, plan vdmini"
    return network_png([TitledNetwork("The U-Net of Stable Video Diffusion, and what is removed", sizes, sketch)])
