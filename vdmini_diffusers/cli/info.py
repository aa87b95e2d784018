"""`vdmini info`: what a folder or a repository on the Hub is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer


if TYPE_CHECKING:  # `vdmini --help` imports this file
    from rich.console import Console

    from vdmini_diffusers.publishing.model_info import ModelInfo


def info(
    name: Annotated[
        str, typer.Argument(metavar="FOLDER_OR_ID", help="A folder, or the id of a repository on the Hub.")
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Write the picture of the network to this PNG file as well.", dir_okay=False)
    ] = None,
) -> None:
    """Say what a model is: family, plan, what was removed, parameters, licence, training. No weights are loaded.

    Example: vdmini info outputs/quickstart/vdmini-i2v
    """
    from rich.console import Console

    from vdmini_diffusers.publishing.model_info import describe_model
    from vdmini_diffusers.publishing.model_picture import draw_model
    from vdmini_diffusers.serialization.atomic import write_file

    if picture is not None and (picture.suffix.lower() != ".png" or picture.exists()):
        wrong = "exists" if picture.exists() else "should end in .png"
        raise ValueError(f"{picture} {wrong}: give another name for the picture.")
    described = describe_model(name, revision)
    png = draw_model(described) if picture is not None else None
    print_info(described, Console(highlight=False))
    if picture is not None and png is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_file(picture, png)
        print(f"The picture is in {picture}.")
    elif picture is not None:
        raise ValueError(f"{name} has no network that is pruned by layers or blocks: there is nothing to draw.")


def print_info(described: "ModelInfo", console: "Console") -> None:
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from vdmini_diffusers.publishing.network_picture import short_count, terminal_lines

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, value in facts_of(described):
        facts.add_row(label, escape(printable(value)))
    console.print(facts)

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("component", "class"):
        table.add_column(heading)
    for heading in ("parameters", "before"):
        table.add_column(heading, justify="right")
    for part in described.components:
        before, now = part.num_teacher_parameters, part.num_parameters
        cells = (
            part.name or ".",
            part.class_name,
            "-" if now is None else f"{now:,}",
            f"{before:,}" if before else "",
        )
        table.add_row(*map(escape, map(printable, cells)))
    console.print()
    console.print(table)

    styles = {"kept": "green", "narrowed": "yellow", "removed": "dim red", None: ""}
    for part in described.components:
        if part.sketch is None:
            continue
        console.print()
        what = f"{part.name} " * bool(part.name) + f"({part.sketch.network})"
        change = ""
        if part.num_parameters and part.num_teacher_parameters:
            percent = 100 * part.num_parameters / part.num_teacher_parameters
            sizes = f"{short_count(part.num_teacher_parameters)} to {short_count(part.num_parameters)}"
            change = f": {sizes} parameters ({percent:.1f} %)"
        console.print(Text(what + change, style="bold"))
        for line in terminal_lines(part.sketch):
            console.print(Text.assemble("  ", *((text, styles[state]) for text, state in line)))
        named = "■ kept" + "  ◧ fewer channels" * bool(part.sketch.count("narrowed"))
        console.print(Text(f"  {named}{'  □ removed' * bool(part.sketch.count('removed'))}", style="dim"))


def printable(text: str) -> str:
    """Without the control characters with which a stranger's file could write anything on a terminal."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def facts_of(described: "ModelInfo") -> list[tuple[str, str]]:
    """What is known, line by line; what is not known is said to be so where people look for it."""
    family, source = described.family, described.provenance.get("teacher", {})
    kind = "" if described.is_pipeline else ", without a pipeline"
    lines = [("model", described.name), ("class", described.class_name + kind)]
    if described.commit:
        lines.append(("commit", described.commit))
    if described.is_pipeline:
        lines.append(("family", family.name if family else "none that this package prunes"))
    plans = dict.fromkeys(f"{part.plan.name} ({part.plan.kind})" for part in described.pruned if part.plan)
    lines.append(("plan", ", ".join(plans) or "none: nothing was removed"))
    if source:
        at = f" at commit {source['commit']}" if source.get("commit") else ", a local folder"
        lines.append(("pruned from", f"{source.get('name')}{at}"))
    if described.base_model:
        lines.append(("base model", ", ".join(described.base_model)))
    lines.append(("training", training_line(described)))
    terms = described.license
    named = " ".join(filter(None, (terms.get("license_name"), terms.get("license_link"))))
    lines.append(("licence", (terms["license"] + f" ({named})" * bool(named)) if terms else "unknown"))
    trust = f"yes: {', '.join(described.code_files)}" if described.needs_trust_remote_code else "no"
    if described.is_pipeline:
        lines.append(
            ("trust_remote_code", trust + ("; not with this package" if family and described.code_files else ""))
        )
    return lines


def training_line(described: "ModelInfo") -> str:
    training = described.training
    if training is None:
        return "pruned and not trained" if described.pruned else "no record"
    steps = training.settings.get("max_train_steps")
    verb = "distilled" if training.is_distilled else "trained"
    towards = f" towards {training.settings.get('teacher')}" if training.is_distilled else ""
    long = f", {steps:,} steps" if isinstance(steps, int) else ""
    return f"{verb}{towards}{long}" + (f", losses: {', '.join(training.losses)}" if training.losses else "")
