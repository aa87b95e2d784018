#!/usr/bin/env python
"""VBench's totals, from the results that its own `evaluate` has written.

    python benchmarks/score_vbench.py --results evaluation_results --suite t2v --output outputs/vbench_t2v/totals.json

Prints a table of the dimensions (raw, on VBench's range, and how many videos were scored of those that VBench scores)
and of the parts and the total, which is an interval where dimensions are missing. Fewer videos than VBench takes are
noted. `benchmarks/report.py` reads the output.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.evaluation.vbench_scores import (
    SUITES,
    is_partial,
    normalised,
    num_videos_of,
    read_results,
    totals_of,
)
from vdmini_diffusers.serialization.atomic import write_file


@dataclass
class Arguments:
    results: list[Path] = field(metadata={"help": "VBench's *_eval_results.json, or folders that hold them."})
    suite: Literal["t2v", "i2v"] = field(metadata={"help": "VBench-T2V or VBench-I2V."})
    output: Path | None = field(default=None, metadata={"help": "JSON file for scores and totals."})


def main(args: Arguments) -> None:
    suite = SUITES[args.suite]
    results = read_results(args.results, suite)
    totals = totals_of({name: result.score for name, result in results.items()}, suite)
    partial = [name for name, dimension in suite.dimensions.items() if is_partial(results.get(name), dimension)]
    rows = []
    for name, dimension in suite.dimensions.items():
        result, expected = results.get(name), num_videos_of(dimension)
        row = {
            "dimension": name,
            "part": dimension.part,
            "score, %": "missing",
            "on VBench's range, %": "",
            "videos": "",
        }
        if result is not None:
            row["score, %"] = f"{100 * result.score:.2f}"
            row["on VBench's range, %"] = f"{100 * normalised(result.score, dimension):.2f}"
            row["videos"] = f"{'?' if result.num_videos is None else result.num_videos} of {expected}"
        rows.append(row)
    sums = {**{f"{part} score, %": str(score) for part, score in totals.parts.items()}, "total, %": str(totals.total)}
    print(f"{suite.name}\n\n{markdown_table(rows)}\n\n{markdown_table([sums])}")
    if totals.missing:
        print(f"\nMissing: {', '.join(totals.missing)}. Intervals: with 0 and with 100 % for each of them.")
    if partial:
        print(f"\nFewer videos than VBench takes: {', '.join(partial)}. Do not compare their scores with others'.")
    if args.output is not None:
        record = {
            "suite": args.suite,
            "videos": f"not all in {', '.join(partial)}" if partial else "all",
            "scores": {name: result.score for name, result in results.items()},
            "per_cent": {name: 100 * result.score for name, result in results.items()},
            "num_videos": {name: result.num_videos for name, result in results.items()},
            "parts": totals.parts,
            "total": totals.total,
            "missing": totals.missing,
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_file(args.output, (json.dumps(record, indent=2) + "\n").encode())


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
