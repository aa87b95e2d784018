"""`vdmini publish`: a pipeline folder to the Hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer


if TYPE_CHECKING:  # `vdmini --help` imports this file
    from rich.console import Console

    from vdmini_diffusers.publishing.publish import Publication

CARD, UPLOAD = "What the card says", "How it is uploaded"


def publish(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a pipeline.", file_okay=False)],
    repo_id: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The repository; made if there is none.")],
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            help="JSON file with results of benchmarks/fvd.py, score_vbench.py or the quickstart.",
            rich_help_panel=CARD,
        ),
    ] = None,
    sample: Annotated[
        list[Path] | None,
        typer.Option(help="Video or picture to show; by default those in FOLDER/samples.", rich_help_panel=CARD),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            help="Licence, where the teacher's is not known, e.g. apache-2.0 or other.", rich_help_panel=CARD
        ),
    ] = None,
    license_name: Annotated[str | None, typer.Option(help="Its name, for other.", rich_help_panel=CARD)] = None,
    license_link: Annotated[str | None, typer.Option(help="Where it is.", rich_help_panel=CARD)] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.", rich_help_panel=UPLOAD)
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to commit to; refs/pr/N adds to a pull request.", rich_help_panel=UPLOAD)
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request.", rich_help_panel=UPLOAD)
    ] = False,
    commit_message: Annotated[
        str | None, typer.Option(help="First line of the commit.", rich_help_panel=UPLOAD)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all of it, and print what would go up.", rich_help_panel=UPLOAD)
    ] = False,
) -> None:
    """Upload a pipeline with its code, plan, provenance and a complete card, in one commit or as a pull request.

    Before, it is opened in a fresh process without this package. The token is that of `hf auth login`, or HF_TOKEN.

    Example: vdmini publish outputs/quickstart/vdmini-i2v org/vdmini-i2v --sample outputs/quickstart/distilled.gif
    """
    from rich.console import Console

    from vdmini_diffusers.publishing.publish import publish as publish_folder
    from vdmini_diffusers.publishing.published_card import LicenseTerms

    if license is None and (license_name or license_link):
        raise ValueError("--license-name and --license-link belong to --license other.")
    publication = publish_folder(
        folder,
        repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        terms=LicenseTerms(license, license_name, license_link) if license is not None else None,
        evaluations=evaluation or (),
        samples=sample or (),
        commit_message=commit_message,
        dry_run=dry_run,
    )
    console = Console(highlight=False)
    if dry_run:
        print_files(publication, console)
    elif (upload := publication.upload) is not None and upload.is_new:
        console.print(f"It is at {upload.url}", soft_wrap=True)
        if create_pr:
            console.print("--revision refs/pr/NUMBER instead of --create-pr adds to the same pull request.")
    elif upload is not None:
        console.print(
            f"{repo_id} has all of it already, at commit {upload.commit}: nothing was uploaded.", soft_wrap=True
        )


def print_files(publication: "Publication", console: "Console") -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(f"would go to {publication.repo_id}")
    table.add_column("bytes", justify="right")
    for name, size in publication.files.items():
        table.add_row(name, f"{size:,}")
    table.add_row("in all", f"{sum(publication.files.values()):,}", style="bold")
    console.print(table)
    if publication.left_out:
        console.print(f"\nleft out: {', '.join(publication.left_out)}", style="dim", soft_wrap=True)
    opened = publication.opened
    ran = f", and its denoiser's output {opened['output']} is finite" if opened["output"] else ""
    console.print(f"\nIt opens without this package as {opened['pipeline']}{ran}.")
