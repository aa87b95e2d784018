"""`vdmini prune`: from a teacher to a student."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def prune(
    teacher: Annotated[str, Argument(help="Folder or Hub id of a video pipeline.")],
    out: Annotated[Path, Option(help="Folder of the student's pipeline.", rich_help_panel="Output")],
    plan: Annotated[
        str | None,
        Option(help="A plan's name or its JSON file. Default: the paper's, or middle.", rich_help_panel="Pruning"),
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print what would be removed; write nothing.", rich_help_panel="Pruning")
    ] = False,
    variant: Annotated[
        str | None, Option(help="Variant of the teacher's weight files, e.g. fp16.", rich_help_panel="Teacher")
    ] = None,
    revision: Annotated[str | None, Option(help="Branch, tag or commit.", rich_help_panel="Teacher")] = None,
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace a pipeline that is there.", rich_help_panel="Output")
    ] = False,
) -> None:
    """Remove the blocks of a video model that a plan names, and write the smaller pipeline.

    Example: vdmini prune stabilityai/stable-video-diffusion-img2vid --variant fp16 --out vdmini-i2v-pruned

    A student that was only pruned makes bad videos: the next step, which is printed, is training. More flags:
    conversion/prune_video_transformer.py.
    """
    from vdmini_diffusers.cli.prune_command import ConversionArguments, FolderArguments, prune_and_report

    files = FolderArguments(variant=variant, revision=revision, overwrite=overwrite, dry_run=dry_run)
    prune_and_report(ConversionArguments(teacher, str(out), plan), files)
