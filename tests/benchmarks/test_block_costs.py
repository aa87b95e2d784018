"""What parts of the paper's networks cost, stage by stage. Their counting is tested with the tools."""

import pytest
from checkout import as_module

from vdmini_diffusers.analysis.cost_table import CostTable, PartCost


@pytest.fixture(scope="module")
def block_costs():
    with as_module("benchmarks/block_costs.py") as module:
        yield module


def table(kinds, costs):
    whole = PartCost(100, 200, 2**21)
    return CostTable("A", {}, (2, 64, 64), 2, whole, costs, kinds, dtype="float16")


def test_equal_blocks_share_a_row_and_shares_are_of_the_whole(block_costs):
    parts = {f"blocks.{i}": PartCost(20, 50, 2**20, milliseconds=float(i)) for i in range(3)}
    parts |= {"rest": PartCost(40, 50, 2**21, milliseconds=1.0)}
    each, rest = block_costs.shares(table({name: "block" for name in parts if name != "rest"}, parts))
    assert (each["part"], each["of all"], each["of all of them"]) == ("each of blocks.0 to 2", "20.0%", "25.0%")
    assert (each["ms"], each["activations at the peak, MiB"], rest["part"]) == ("1.00", "1", "rest")


def test_stages_of_a_u_net_stand_beside_their_samplers_and_those_of_a_decoder_hold_them(block_costs):
    kinds = {"D.0": "stage", "D.0.R.0": "block", "D.0.downsamplers": "sampler"}
    parts = {name: PartCost(i, i, i) for i, name in enumerate([*kinds, "rest"], 1)}
    assert [row["part"] for row in block_costs.shares(table(kinds, parts))] == ["D.0", "D.0.downsamplers", "rest"]
    kinds = {"up_blocks.0": "stage", "up_blocks.0.upsamplers.0": "sampler"}
    parts = {name: PartCost(i, i, i) for i, name in enumerate([*kinds, "rest"], 1)}
    assert [row["part"] for row in block_costs.shares(table(kinds, parts))] == ["up_blocks.0", "rest"]


@pytest.mark.slow  # four networks are built and run twice, tiny as they are
def test_all_networks_of_the_paper_are_counted_and_timed(block_costs, tmp_path, capsys):
    block_costs.main(block_costs.Arguments(output_dir=tmp_path, measure_on="cpu", dtype="fp32", rounds=1, tiny=True))
    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() in printed
    for name in ("SVD's U-Net", "SVD's VAE", "T2V-Turbo-v2's U-Net", "HunyuanVideo"):
        assert f"{name}, " in printed
    assert " ms on CPU, " in printed
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".md", ".png"}
    assert len(list(tmp_path.glob("*.csv"))) == 4 and len(list(tmp_path.glob("*.png"))) == 16
