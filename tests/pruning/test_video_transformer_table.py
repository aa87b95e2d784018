"""The page on video transformers lists what the walk over all of them tries, row by row.

    VDMINI_WRITE_TABLE=1 python -m pytest tests/pruning/test_video_transformer_table.py

writes the tables anew.
"""

import os
import re

from checkout import ROOT
from tiny_video_transformers import TRANSFORMERS

from vdmini_diffusers.families.block_lists import BLOCK_LISTS, NOT_PRUNED, BlockList
from vdmini_diffusers.families.stock import PIPELINES


PAGE = ROOT / "conversion" / "VIDEO_TRANSFORMERS.md"


def remarks(blocks: BlockList) -> list[str]:
    name, found = f"`{blocks.name}`", []
    if blocks.attached_to:
        places = f"`{blocks.places}`" if blocks.places else "their index"
        found.append(f"{name} run after blocks of `{blocks.attached_to}`, by {places}, and stay or go with them")
    if blocks.needs:
        found.append(f"{name} only with `{blocks.needs}`")
    found += [f"`{blocks.name}[{i}]` stays" for i in blocks.never_remove]
    found += [f"`{blocks.name}[{i}]` and all before it stay" for i in blocks.in_place]
    found += [f"the first of {name} differ, as many as `{field}`" for field in blocks.leading]
    if blocks.trailing:
        found.append(f"the last of {name}, as many as `{blocks.trailing}`, are a chain of their own, and one stays")
    if blocks.period:
        every = f"every n-th of {name} {blocks.period.difference}, n being `{blocks.period.field}`"
        found.append(every if blocks.period.removable else f"{every}, and stays")
    return found


def tables() -> dict[str, str]:
    """The lines between the marks of the page, by mark."""
    rows = ["| transformer | lists of blocks | what a block returns | besides |", "| --- | --- | --- | --- |"]
    for name in TRANSFORMERS:
        lists = BLOCK_LISTS[name]
        counted = ", ".join(f"`{blocks.name}` (`{blocks.count}`)" for blocks in lists)
        streams = dict.fromkeys(stream for b in lists for stream in (*b.streams, *b.trailing_streams) if stream)
        besides = "; ".join(remark for blocks in lists for remark in remarks(blocks))
        rows.append(f"| `{name}` | {counted} | {', '.join(streams)} | {besides} |")
    tasks = ["| task | pipelines |", "| --- | --- |"]
    tasks += [f"| {task} | {', '.join(f'`{name}`' for name in names)} |" for task, names in PIPELINES.items()]
    reasons = [f"- `{name}`: {reason}" for name, reason in NOT_PRUNED.items()]
    return {"transformers": "\n".join(rows), "pipelines": "\n".join(tasks), "not pruned": "\n".join(reasons)}


def test_the_page_lists_what_is_tried():
    text = PAGE.read_text(encoding="utf-8")
    for mark, lines in tables().items():
        pattern = re.compile(rf"(<!-- {mark} -->\n).*?(\n<!-- /{mark} -->)", re.DOTALL)
        assert len(pattern.findall(text)) == 1
        text = pattern.sub(lambda match, lines=lines: f"{match[1]}{lines}{match[2]}", text)
    if os.environ.get("VDMINI_WRITE_TABLE") == "1":
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text, __doc__
