"""The comparison with the paper as Markdown, and as one HTML page that needs no other file."""

import base64
import mimetypes
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from vdmini_diffusers.evaluation.report_tables import (
    NOT_MEASURED,
    MeasuredRow,
    PaperRow,
    PaperTable,
    count_results,
)


MAX_FIGURE_BYTES = 16 * 2**20
PICTURES, VIDEOS = frozenset({".png", ".jpg", ".gif", ".webp", ".svg"}), frozenset({".mp4", ".webm"})

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: light-dark(#0b57d0, #8ab4f8);
  --paper: light-dark(#fff, #16181c); --ink: light-dark(#1b1c1f, #e6e7ea); --faint: light-dark(#5c6066, #a4a9b1); }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1rem 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; scroll-margin-top: 1rem; }
p { max-width: 46rem; }
nav { display: flex; flex-wrap: wrap; gap: .4rem; margin: 1rem 0; }
nav a { border: 1px solid var(--line); border-radius: 1rem; padding: .2rem .8rem; text-decoration: none; }
a { color: var(--accent); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; }
th:first-child, td:first-child { text-align: left; min-width: min(14.5rem, 45vw); }
thead th { vertical-align: bottom; border-bottom-width: 2px; text-wrap: balance; }
tr.here { background: var(--soft); }
tr.here th { font-weight: 400; padding-left: 1.6rem; }
tr.missing th { color: var(--faint); }
details { font-size: .85rem; color: var(--faint); margin-top: .5rem; }
details ol { padding-left: 1.4rem; margin: .3rem 0 0; }
details li { margin-bottom: .4rem; }
summary { cursor: pointer; }
code { overflow-wrap: anywhere; font: .92em ui-monospace, monospace; }
.figures { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 0; max-width: 100%; }
figure img, figure video { display: block; max-width: 100%; height: auto; background: #fff; border-radius: .3rem; }
@media (max-width: 40rem) { figure:has(img) { overflow-x: auto; } figure img { max-width: none; } }
figcaption { font-size: .85rem; color: var(--faint); margin-bottom: .3rem; overflow-wrap: anywhere; }
"""
TITLE = "VDMini: the paper's tables, and what was measured here"
INTRODUCTION = (
    "The paper's figures as it prints them (Wu et al., ACM MM 2025), and below each row what was measured or computed"
    " here: where, and by which command (numbers in brackets). Demo teachers are small networks on synthetic clips:"
    " compare their rows with each other, not with the paper's."
)


def markdown_page(tables: Sequence[PaperTable], figures: Sequence[Path], folder: Path) -> str:
    """Markdown for `folder`, from which figures are linked."""
    parts = [f"# {TITLE}", INTRODUCTION, count_results(tables)]
    for table in tables:
        commands = _commands(table)
        lines = [f"| | {' | '.join(table.columns)} |", "| --- " * (len(table.columns) + 1) + "|"]
        for row in table.rows:
            lines.append(_line(row.name, row.values))
            for where, values in _lines_below(table, row, commands):
                lines.append(_line(f"*{where}*", values))
        parts += [f"## Table {table.number}: {table.title}", "\n".join(lines)]
        parts += ["\n".join(f"- [{number}] `{command}`" for command, number in commands.items())] * bool(commands)
    if figures:
        links = [f"[{_caption(figure)}]({_relative(figure, folder)})" for figure in figures]
        shown = [f"{'!' * (figure.suffix in PICTURES)}{link}" for figure, link in zip(figures, links, strict=True)]
        parts += ["## Figures", "\n\n".join(shown)]
    return "\n\n".join(parts) + "\n"


def html_page(tables: Sequence[PaperTable], figures: Sequence[Path]) -> str:
    """One page with all figures in it, which loads nothing.

    Raises:
        ValueError: if a figure is no picture or video that browsers show, or is larger than `MAX_FIGURE_BYTES`.
        OSError: if one cannot be read.
    """
    links = [f'<a href="#table-{escape(t.number)}">Table {escape(t.number)}</a>' for t in tables]
    links += ['<a href="#figures">Figures</a>'] * bool(figures)
    body = [f"<h1>{escape(TITLE)}</h1>", f"<p>{escape(INTRODUCTION)}</p>", f"<p>{escape(count_results(tables))}</p>"]
    body.append(f"<nav>{''.join(links)}</nav>")
    body += [_html_table(table) for table in tables]
    if figures:
        shown = "\n".join(_html_figure(figure) for figure in figures)
        body.append(f'<h2 id="figures">Figures</h2>\n<div class="figures">\n{shown}\n</div>')
    head = '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"\n<title>{escape(TITLE)}</title>"
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n<style>{STYLE}</style>\n</head>\n<body>\n' + (
        "\n".join(body) + "\n</body>\n</html>\n"
    )


def _commands(table: PaperTable) -> dict[str, int]:
    """The commands of a table, numbered in the order of its rows."""
    commands = dict.fromkeys(each.command for row in table.rows for each in row.measured if each.command)
    return {command: number for number, command in enumerate(commands, start=1)}


def _lines_below(table: PaperTable, row: PaperRow, commands: dict[str, int]) -> list[tuple[str, list[str]]]:
    """What stands below a row: how and where it was found, with the command's number, and a value for each column.

    Commands that have no result yet share the last line.
    """

    def numbers(measured: Sequence[MeasuredRow]) -> str:
        return "".join(f" [{commands[name]}]" for name in dict.fromkeys(each.command for each in measured) if name)

    there = [each for each in row.measured if each.is_there]
    lines = []
    for each in there:
        how = "computed" if each.is_computed else "measured"
        values = [each.values.get(name, "") for name in table.columns]
        lines.append((f"{how}: {each.where}{numbers([each])}", values))
    rest = [each for each in row.measured if not each.is_there]
    if rest or not there:
        lines.append((NOT_MEASURED + numbers(rest), [""] * len(table.columns)))
    return lines


def _line(name: str, values: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in (name, *values)) + " |"


def _caption(figure: Path) -> str:
    """Its name in its folder: files of several folders may have one name."""
    return "/".join(figure.parts[-2:])


def _relative(figure: Path, folder: Path) -> str:
    return Path(os.path.relpath(figure, folder)).as_posix().replace(" ", "%20")


def _html_table(table: PaperTable) -> str:
    commands = _commands(table)
    heading = "".join(f'<th scope="col">{escape(column)}</th>' for column in ("", *table.columns))
    rows = []
    for row in table.rows:
        rows.append(_html_row("paper", row.name, row.values))
        for where, values in _lines_below(table, row, commands):
            rows.append(_html_row("here missing" if where.startswith(NOT_MEASURED) else "here", where, values))
    listed = "".join(
        f'<li value="{number}"><code>{escape(command)}</code></li>' for command, number in commands.items()
    )
    return (
        f'<h2 id="table-{escape(table.number)}">Table {escape(table.number)}: {escape(table.title)}</h2>\n'
        f'<div class="wide"><table>\n<thead><tr>{heading}</tr></thead>\n<tbody>\n' + "\n".join(rows) + "\n</tbody>\n"
        "</table></div>\n" + (f"<details><summary>Commands</summary><ol>{listed}</ol></details>" if listed else "")
    )


def _html_row(kind: str, name: str, values: Sequence[str]) -> str:
    if not any(values):
        return f'<tr class="{kind}"><th scope="row" colspan="{len(values) + 1}">{escape(name)}</th></tr>'
    cells = "".join(f"<td>{escape(value)}</td>" for value in values)
    return f'<tr class="{kind}"><th scope="row">{escape(name)}</th>{cells}</tr>'


def _html_figure(figure: Path) -> str:
    kind = mimetypes.guess_type(figure.name)[0]
    if figure.suffix not in PICTURES | VIDEOS or kind is None:
        raise ValueError(f"{figure} is no picture or video that browsers show ({', '.join(PICTURES | VIDEOS)}).")
    if figure.stat().st_size > MAX_FIGURE_BYTES:
        raise ValueError(
            f"{figure} has more than {MAX_FIGURE_BYTES >> 20} MiB, too much for one page: make it smaller."
        )
    data = f"data:{kind};base64,{base64.b64encode(figure.read_bytes()).decode()}"
    caption = escape(_caption(figure))
    if figure.suffix in VIDEOS:
        shown = f'<video src="{data}" controls autoplay loop muted playsinline></video>'
    else:
        shown = f'<img src="{data}" alt="{caption}">'
    return f"<figure><figcaption>{caption}</figcaption>{shown}</figure>"
