#!/usr/bin/env python
"""The paper's tables beside ours, as Markdown and as one HTML page with the figures in it.

    python benchmarks/report.py --output_dir outputs/report
    python benchmarks/report.py --output_dir outputs/report --figures outputs/vbench_i2v/videos/*-0.mp4

The paper's figures are in `benchmarks/paper_tables.json`; `benchmarks/report_sources.json` says in which files the
results of our benchmarks are (`benchmarks/results`, `outputs/on_gpu/results.json`, ...). A result whose file is not
there is "not measured", with the command that makes it. A new result is a new entry there. Pictures and videos in
`benchmarks/results` are shown, and those given with `--figures`.
"""

from dataclasses import dataclass, field
from pathlib import Path

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.evaluation.report_pages import PICTURES, VIDEOS, html_page, markdown_page
from vdmini_diffusers.evaluation.report_tables import compare_tables, count_results
from vdmini_diffusers.serialization.atomic import write_file


BENCHMARKS = Path(__file__).resolve().parent


@dataclass
class Arguments:
    output_dir: Path = field(default=Path("outputs/report"), metadata={"help": "Where report.md and report.html go."})
    sources: Path = field(
        default=BENCHMARKS / "report_sources.json", metadata={"help": "JSON file that says where results are."}
    )
    figures: list[Path] = field(default_factory=list, metadata={"help": "Further pictures and videos."})


def main(args: Arguments) -> None:
    tables = compare_tables(BENCHMARKS / "paper_tables.json", args.sources, BENCHMARKS.parent)
    files = sorted((BENCHMARKS / "results").rglob("*"))
    # Some pictures are long: videos come first.
    figures = [file for kind in (VIDEOS, PICTURES) for file in files if file.suffix in kind] + args.figures
    page = html_page(tables, figures)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_file(args.output_dir / "report.md", markdown_page(tables, figures, args.output_dir).encode())
    write_file(args.output_dir / "report.html", page.encode())
    print(f"{count_results(tables)} {args.output_dir / 'report.html'}")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
