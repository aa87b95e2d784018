"""The command `vdmini`: its subcommands, one file each. Nothing heavy is imported before one of them runs."""

import typer

from vdmini_diffusers.cli.app import app as serve_app
from vdmini_diffusers.cli.command_errors import run_command
from vdmini_diffusers.cli.evaluate import evaluate
from vdmini_diffusers.cli.generate import generate
from vdmini_diffusers.cli.info import info
from vdmini_diffusers.cli.prune import prune
from vdmini_diffusers.cli.publish import publish
from vdmini_diffusers.cli.score import score


app = typer.Typer(
    name="vdmini",
    help="Pruned and distilled video diffusion models.\n\nExample: vdmini generate --image photo.jpg --out clip.mp4",
    epilog="`vdmini COMMAND --help` says more. An error is one line; --debug shows where it was raised.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command(rich_help_panel="Use a model")(generate)
app.command(rich_help_panel="Use a model")(serve_app)
app.command(rich_help_panel="Use a model")(info)
app.command(rich_help_panel="Make a model")(prune)
app.command(rich_help_panel="Make a model")(score)
app.command(rich_help_panel="Measure a model")(evaluate)
app.command(rich_help_panel="Share a model")(publish)


def vdmini() -> None:
    run_command(app)
