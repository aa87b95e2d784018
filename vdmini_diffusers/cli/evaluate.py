"""`vdmini evaluate`: how far generated videos are from real ones."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def evaluate(
    real: Annotated[Path, Argument(help="Folder of real videos, in folders of classes or not.")],
    generated: Annotated[Path, Argument(help="Folder of generated ones; with --model, the one to fill.")],
    out: Annotated[Path, Option(help="JSON file of the result.", rich_help_panel="Output")] = Path("fvd.json"),
    model: Annotated[
        str | None,
        Option(help="Image-to-video pipeline that makes a clip from each first frame.", rich_help_panel="Model"),
    ] = None,
    variant: Annotated[
        str | None, Option(help="Variant of its weight files, e.g. fp16.", rich_help_panel="Model")
    ] = None,
    steps: Annotated[
        int | None, Option(min=1, help="Its denoising steps. Default: the pipeline's, 1.", rich_help_panel="Model")
    ] = None,
    num_clips: Annotated[int, Option(min=2, help="Clips of each set.", rich_help_panel="Protocol")] = 2048,
    num_frames: Annotated[int, Option(min=2, help="Frames of a clip.", rich_help_panel="Protocol")] = 16,
    seed: Annotated[int, Option(min=0, help="Seed of draws and noise.", rich_help_panel="Protocol")] = 0,
) -> None:
    """Measure FVD and KVD of generated against real videos by StyleGAN-V's protocol.

    Example: vdmini evaluate UCF-101 clips --model vdmini-i2v --num-frames 14 --num-clips 1200

    The same command goes on where it was stopped. More flags (detectors, sizes, guidance): benchmarks/fvd.py.
    """
    from vdmini_diffusers.cli.fvd_command import FVDArguments, fvd_command

    fvd_command(
        FVDArguments(
            real,
            generated,
            output=out,
            cache_dir=out.with_name(f"{out.stem}_cache"),
            pipeline=model,
            variant=variant,
            num_inference_steps=steps,
            num_clips=num_clips,
            num_frames=num_frames,
            seed=seed,
        )
    )
