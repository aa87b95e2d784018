"""The report: the paper's figures agree, results are found where sources say, and the page needs nothing else."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from checkout import ROOT
from PIL import Image

from vdmini_diffusers.evaluation.report_pages import PICTURES, VIDEOS, html_page, markdown_page
from vdmini_diffusers.evaluation.report_tables import compare_tables, count_results, look_up
from vdmini_diffusers.evaluation.vbench_scores import T2V_SUITE, total_of_parts
from vdmini_diffusers.pruning import VDMINI_UNET


BENCHMARKS = ROOT / "benchmarks"
TABLES = {table["id"]: table for table in json.loads((BENCHMARKS / "paper_tables.json").read_text())}


def paper(table, row, column):
    values = next(each["values"] for each in TABLES[table]["rows"] if each["name"] == row)
    return values[TABLES[table]["columns"].index(column)]


class TestPaper:
    def test_all_tables_are_there_and_each_row_has_every_column(self):
        assert list(TABLES) == ["1", "2", "3", "4", "5", "6", "A1", "A2", "A3", "A4", "A5"]
        for table in TABLES.values():
            assert all(len(row["values"]) == len(table["columns"]) for row in table["rows"])

    def test_what_several_tables_print_is_the_same(self):
        unet, hunyuan = "U-Net, 14 x 72 x 128", [("HunyuanVideo", "FastVideo"), ("VDMini-T2V-HY", "VDMini-T2V-HY")]
        for model in ("SF-V", "VDMini-I2V"):
            assert paper("2", model, "latency, ms") == paper("A1", f"{model}, latency, ms", unet)
        assert paper("2", "VDMini-I2V", "FVD") == paper("3", "VDMini-I2V", "FVD") == paper("4", "L_ICD + L_MCA", "FVD")
        assert paper("5", "lambda_ICD 0.1, lambda_MCA 1", "FVD") == paper("4", "L_ICD + L_MCA", "FVD")
        for model in ("T2V-Turbo-v2", "VDMini-T2V-Turbo"):
            a3 = paper("A3", f"{model}, latency, ms", "U-Net, 16 x 40 x 64, 16 steps")
            assert paper("6", model, "latency, ms") == a3
        for column in ("quality, %", "semantic, %", "total, %"):
            assert [paper("A5", a, column) for a, _ in hunyuan] == [paper("6", b, column) for _, b in hunyuan]
        assert [paper("A5", a, "inference, ms") for a, _ in hunyuan] == ["366.11", "292.89"]

    def test_the_speed_ups_that_its_text_names(self):
        total = {}
        for model in ("SF-V", "VDMini-I2V"):
            row = next(row for row in TABLES["A1"]["rows"] if row["name"] == f"{model}, latency, ms")
            total[model] = sum(map(float, row["values"]))
        assert total == {"SF-V": 3454, "VDMini-I2V": 1295.5}  # "2.5 times"
        assert float(paper("2", "SVD, 16 steps", "latency, ms")) / 345 == pytest.approx(37, abs=0.5)
        assert pytest.approx(1.25, abs=0.005) == 366.11 / 292.89

    def test_totals_of_table_6_and_blocks_of_table_a4(self):
        for row in TABLES["6"]["rows"]:
            quality, semantic, total = map(float, row["values"][:3])
            assert abs(total_of_parts({"quality": quality, "semantic": semantic}, T2V_SUITE) - total) <= 0.01
        kept = {**{f"Down-{stage}": len(layers) for stage, layers in VDMINI_UNET.down.items()}}
        kept |= {f"Up-{stage}": len(layers) for stage, layers in VDMINI_UNET.up.items()}
        table = {row["name"]: int(row["values"][2]) for row in TABLES["A4"]["rows"]}
        assert {stage: number for stage, number in table.items() if number} == kept


class Page(HTMLParser):
    """Counts tags, and collects what a page would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.counts = [], [], {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


TUNED = "lambda_ICD 0.1, lambda_MCA 1"


@pytest.fixture
def sources(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([{"name": "a", "device": "<H100>", "rows": [{"ms": 1.25}]}]))
    (tmp_path / "x.md").write_text("# T\n\n| | FVD |\n| --- | --- |\n| + ICD | 1346.2 ± 27.1 |\n")
    entries = [
        {"table": "A2", "row": "Original", "where": "{name=a/device}", "file": "x.json"}
        | {"values": {"PSNR": "name=a/rows/0/ms"}, "command": "python x.py --a"},
        {"table": "4", "row": "L_ICD", "where": "demo", "file": "x.md", "values": {"FVD": "row=+ ICD/FVD"}},
        {
            "table": "4",
            "row": "L_MCA",
            "where": "demo",
            "file": "gone.json",
            "values": {"FVD": "fvd"},
            "command": "go",
        },
        {"table": "4", "row": "neither", "where": "counted", "values": {"FVD": "7"}},
        {"table": "5", "row": TUNED, "where": "another measure: {row=+ ICD/FVD}", "file": "x.md", "values": {}},
    ]

    def write(*more):
        (tmp_path / "sources.json").write_text(json.dumps([*entries, *more]))
        return compare_tables(BENCHMARKS / "paper_tables.json", tmp_path / "sources.json", tmp_path)

    return write


def rows_of(tables):
    return {(table.number, row.name): row.measured for table in tables for row in table.rows}


def test_results_stand_below_their_rows_and_what_is_not_there_is_not_measured(sources):
    rows = rows_of(sources())
    assert rows["A2", "Original"][0].values == {"PSNR": "1.25"} and rows["A2", "Original"][0].where == "<H100>"
    assert rows["4", "L_ICD"][0].values == {"FVD": "1346.2 ± 27.1"}
    assert (rows["4", "L_MCA"][0].where, rows["4", "L_MCA"][0].values) == ("not measured", {})
    (other,) = rows["5", TUNED]
    assert other.is_there and (other.where, other.values) == ("another measure: 1346.2 ± 27.1", {})
    assert rows["4", "neither"][0].values == {"FVD": "7"} and rows["1", "SF-V"] == ()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"table": "9", "row": "x", "values": {}}, "no Table 9"),
        ({"table": "4", "row": "x", "values": {}}, "Table 4 has no 'x'"),
        ({"table": "4", "row": "neither", "values": {"KVD": "1"}}, "Table 4 has no 'KVD'"),
        ({"table": "4", "row": "neither", "values": {"FVD": "name=b/rows"}, "file": "x.json"}, "holds no 'name=b'"),
        ({"table": "4", "row": "neither", "values": {"FVD": "0/rows/7/ms"}, "file": "x.json"}, "holds no '7'"),
    ],
)
def test_sources_that_name_what_is_not_there_are_refused(sources, wrong, message):
    with pytest.raises(ValueError, match=message):
        sources({"where": "here", **wrong})


def test_a_path_leads_through_keys_indices_and_rows():
    content = {"a": [{"k": "x y", "v": [1, 2]}]}
    assert look_up(content, "a/k=x y/v/1", Path("f")) == 2


def test_the_page_is_whole_loads_nothing_and_shows_every_table_and_figure(sources, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a plot.png")
    (tmp_path / "clip.mp4").write_bytes(b"x")
    figures = [tmp_path / "a plot.png", tmp_path / "clip.mp4"]
    text = html_page(sources(), figures)
    assert f"<figcaption>{tmp_path.name}/clip.mp4</figcaption>" in text
    page = Page(text)
    assert page.counts["table"] == 11 and page.counts["img"] == page.counts["video"] == 1
    assert all(load.startswith(("data:", "#")) for load in page.loads)
    assert "&lt;H100&gt;" in text and "<H100>" not in text and "1346.2 ± 27.1" in text
    assert set(re.findall(r'href="#([\w-]+)"', text)) == set(re.findall(r'id="([\w-]+)"', text))

    lines = markdown_page(sources(), figures, tmp_path).splitlines()
    start = lines.index("## Table A2: Compressed VAE decoder on UCF-101")
    assert lines[start + 4 : start + 6] == [
        "| Original | 32.30 | 0.94 | 0.031 |",
        "| *measured: <H100> [1]* | 1.25 |  |  |",
    ]
    assert "| *computed: counted* | 7 |" in lines
    assert "- [1] `python x.py --a`" in lines and f"![{tmp_path.name}/a plot.png](a%20plot.png)" in lines
    assert f"[{tmp_path.name}/clip.mp4](clip.mp4)" in lines
    assert count_results(sources()) in lines and count_results(sources()) in unescape(text)


def test_what_was_measured_is_counted_apart_from_what_was_computed(sources):
    counted = "with results that were measured here, {} only with what was computed"
    assert f"11 tables have 48 rows: 3 {counted.format(1)}" in count_results(sources())
    both = {"table": "4", "row": "L_ICD", "where": "computed as well", "values": {"FVD": "7"}}
    assert f"11 tables have 48 rows: 3 {counted.format(1)}" in count_results(sources(both))
    assert ", 44 with nothing yet" in count_results(sources(both))


def test_a_figure_that_no_browser_shows_is_refused(sources, tmp_path):
    (tmp_path / "a.tiff").write_bytes(b"x")
    with pytest.raises(ValueError, match="no picture or video"):
        html_page(sources(), [tmp_path / "a.tiff"])


def test_the_sources_of_the_repository_name_rows_and_results_that_exist():
    tables = compare_tables(BENCHMARKS / "paper_tables.json", BENCHMARKS / "report_sources.json", BENCHMARKS.parent)
    rows = rows_of(tables)
    assert "753" in [
        measured.values.get("text encoder, 77 tokens") for measured in rows["A3", "T2V-Turbo-v2, latency, ms"]
    ]
    shown = [file for file in (BENCHMARKS / "results").rglob("*") if file.suffix in PICTURES | VIDEOS]
    page = Page(html_page(tables, shown))
    assert page.counts["img"] > 1 and page.counts["video"] > 1
    scripts = {s for each in rows.values() for m in each for s in re.findall(r"benchmarks/\w+\.py", m.command)}
    assert all((BENCHMARKS.parent / script).exists() for script in scripts)
    # What was measured stands in the file of its result alone; figures without one are asserted by a test.
    sources = json.loads((BENCHMARKS / "report_sources.json").read_text())
    assert all(source["command"].startswith("pytest ") for source in sources if "file" not in source)
