"""The paper's tables with what was measured here beside them, read from the files that benchmarks write."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdmini_diffusers.serialization.checkpoint_error import short_repr


NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class MeasuredRow:
    """What stands below a row of the paper: `values` by column; none where what was measured is no column of the
    paper's and `where` says it, or where there is no result yet. `is_computed` where nothing ran: parameters, plans,
    and totals of the paper's own figures."""

    where: str
    values: Mapping[str, str]
    command: str
    is_computed: bool = False

    @property
    def is_there(self) -> bool:
        return self.where != NOT_MEASURED


@dataclass(frozen=True)
class PaperRow:
    name: str
    values: tuple[str, ...]
    measured: tuple[MeasuredRow, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper, e.g. of `number` A1."""

    number: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]


def compare_tables(paper_file: Path, sources_file: Path, root: Path) -> list[PaperTable]:
    """Every table of the paper, with the results that there are.

    Args:
        paper_file: a list of tables: `id`, `title`, `columns`, and `rows` of a `name` and `values`.
        sources_file: a list of where results are: the paper's `table` and `row`; `where` they were measured and by
            which `command`; `values` by column, each the path of a value in `file` (see `look_up`). Without a `file`,
            the values themselves, which were computed. In `where`, `{path}` stands for a value of the file: one that
            is no column, say.
        root: the folder that files are relative to. One that does not exist is a result that is not there yet.

    Raises:
        ValueError: if a source names a table, row or column that the paper does not have, or a file that is there does
            not hold what is looked up in it.
    """
    sources = _read_json(sources_file)
    tables = []
    for table in _read_json(paper_file):
        own = [source for source in sources if source["table"] == table["id"]]
        names = {row["name"] for row in table["rows"]}
        for source in own:
            unknown = ({source["row"]} - names) | (set(source["values"]) - set(table["columns"]))
            if unknown:
                raise ValueError(f"{sources_file}: Table {table['id']} has no {', '.join(map(short_repr, unknown))}.")
        rows = tuple(
            PaperRow(
                row["name"],
                tuple(row["values"]),
                tuple(_measure(source, root) for source in own if source["row"] == row["name"]),
            )
            for row in table["rows"]
        )
        tables.append(PaperTable(table["id"], table["title"], tuple(table["columns"]), rows))
    if unknown := {source["table"] for source in sources} - {table.number for table in tables}:
        raise ValueError(f"{sources_file}: the paper has no Table {', '.join(sorted(unknown))}.")
    return tables


def count_results(tables: Sequence[PaperTable]) -> str:
    """A sentence: how many of the paper's rows were measured here, and how many have computed values only."""
    rows = [[each for each in row.measured if each.is_there] for table in tables for row in table.rows]
    measured = sum(not all(each.is_computed for each in row) for row in rows)
    nothing = sum(not row for row in rows)
    return (
        f"The paper's {len(tables)} tables have {len(rows)} rows: {measured} with results that were measured here,"
        f" {len(rows) - measured - nothing} only with what was computed (parameters, plans, totals of the paper's own"
        f" figures), {nothing} with nothing yet."
    )


def look_up(content: Any, path: str, file: Path) -> Any:
    """The value at a path of steps with slashes between them: a key, an index, or `key=value` for the first such row.

    Raises:
        ValueError: if there is none.
    """
    found = content
    for step in path.split("/"):
        key, equals, value = step.partition("=")
        try:
            if equals:
                found = next(row for row in found if str(row.get(key)) == value)
            else:
                found = found[int(step)] if isinstance(found, list) else found[step]
        except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError) as error:
            raise ValueError(f"{file} holds no {short_repr(step)} of {short_repr(path)}.") from error
    return found


def _measure(source: Mapping[str, Any], root: Path) -> MeasuredRow:
    command = source.get("command", "")
    if "file" not in source:
        return MeasuredRow(source["where"], source["values"], command, is_computed=True)
    file = root / source["file"]
    if not file.exists():
        return MeasuredRow(NOT_MEASURED, {}, command)
    content = _read_rows(file)
    values = {column: _text(look_up(content, path, file)) for column, path in source["values"].items()}
    where = re.sub(r"\{([^}]+)\}", lambda path: str(look_up(content, path[1], file)), source["where"])
    return MeasuredRow(where, values, command)


def _read_rows(file: Path) -> Any:
    """JSON as it is, or the rows of CSV or of all tables in Markdown, where a first column without a name is `row`."""
    if file.suffix == ".json":
        return _read_json(file)
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    rows, heading = [], []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            heading = []
        elif not heading:
            heading = [cells[0] or "row", *cells[1:]]
        elif set("".join(cells)) - set("-: "):
            rows.append(dict(zip(heading, cells, strict=False)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 100 else f"{value:.1f}"
    if isinstance(value, Sequence) and not isinstance(value, str):  # the ends of an interval
        return " to ".join(dict.fromkeys(f"{float(end):.2f}" for end in value))
    return str(value)


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}.") from error
