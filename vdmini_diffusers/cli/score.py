"""`vdmini score`: which parts of a model matter."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from vdmini_diffusers.cli.generate import finite


def score(
    model: Annotated[str, Argument(help="Folder or Hub id of a video pipeline.")],
    out: Annotated[Path, Option(help="Folder of the results.", rich_help_panel="Output")],
    real_videos: Annotated[
        Path | None,
        Option(help="Folder of videos; image to video starts from their first frames.", rich_help_panel="Input"),
    ] = None,
    prompts: Annotated[
        Path | None, Option(help="For text to video: a file with a prompt a line.", rich_help_panel="Input")
    ] = None,
    num_videos: Annotated[
        int, Option(min=2, help="Made without each part; the paper makes 1,200.", rich_help_panel="Input")
    ] = 64,
    steps: Annotated[int | None, Option(min=1, help="Denoising steps.", rich_help_panel="Input")] = None,
    guidance_scale: Annotated[
        float | None,
        Option(min=0, callback=finite, help="By default the pipeline's own.", rich_help_panel="Input"),
    ] = None,
    seed: Annotated[int, Option(min=0, help="Seed of the noise.", rich_help_panel="Input")] = 0,
    parts: Annotated[
        list[str] | None,
        Option(
            help="A part (D.1.R.0), or stage, layer, block, half or stream; may be given several times. Default: all.",
            rich_help_panel="Input",
        ),
    ] = None,
    fvd: Annotated[
        bool, Option("--fvd", help="By FVD as well; needs --real-videos.", rich_help_panel="Input")
    ] = False,
    variant: Annotated[
        str | None, Option(help="Variant of the weight files, e.g. fp16.", rich_help_panel="Model")
    ] = None,
) -> None:
    """Remove one part of a model after the other, and score the videos that it makes without it.

    Example: vdmini score vdmini-i2v --real-videos clips --num-videos 16 --out importance

    The same command goes on where it was stopped. More flags: conversion/measure_block_importance.py, whose
    importance.json conversion/search_plan.py makes a plan of.
    """
    from vdmini_diffusers.analysis.parts import MEASURED_KINDS
    from vdmini_diffusers.cli.importance_command import ImportanceArguments, importance_command

    importance_command(
        ImportanceArguments(
            model,
            str(out),
            real_videos=None if real_videos is None else str(real_videos),
            prompts=None if prompts is None else str(prompts),
            num_videos=num_videos,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
            parts=parts or list(MEASURED_KINDS),
            fvd=fvd,
            variant=variant,
        )
    )
