"""Sections of a Markdown text, by their headings: read, replaced, inserted."""

import re
from collections.abc import Iterable


HEADING = re.compile(r"## +(.+?)\s*$")
FENCE = re.compile(r"\s*(```|~~~)")


def split_sections(text: str) -> dict[str, str]:
    """The text of each section by its heading of the second level, in order; `""` is what stands before the first."""
    sections, heading, is_code = {"": ""}, "", False
    for line in text.splitlines(keepends=True):
        if FENCE.match(line):
            is_code = not is_code
        found = None if is_code else HEADING.match(line)
        if found:
            heading = found[1]
            sections.setdefault(heading, "")
        else:
            sections[heading] += line
    return sections


def join_sections(sections: dict[str, str]) -> str:
    parts = [
        body.strip("\n") if not name else f"## {name}\n\n{body.strip(chr(10))}" for name, body in sections.items()
    ]
    return "\n\n".join(parts) + "\n"


def with_section(sections: dict[str, str], heading: str, body: str, before: Iterable[str] = ()) -> dict[str, str]:
    """The sections with one replaced, or put before the first that there is of those named, or at the end."""
    if heading in sections:
        return {**sections, heading: body}
    order = list(sections)
    place = next((order.index(name) for name in before if name in sections), len(order))
    order.insert(place, heading)
    return {name: body if name == heading else sections[name] for name in order}
