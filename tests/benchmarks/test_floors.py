"""What the floors count: known numbers of single operators, and of networks at the paper's size."""

import dataclasses

import pytest
import torch
from checkout import as_module
from torch import nn

from vdmini_diffusers.evaluation.paper_components import SIZES, ClipSize, pipeline_components


@pytest.fixture(scope="module")
def floors():
    with as_module("benchmarks/floors.py") as module:
        yield module


@pytest.fixture
def count(floors):
    return lambda work: [(kernel.flops, kernel.bytes) for kernel in floors.count(work)[0]]


@pytest.fixture
def x():
    return torch.empty(2, 8, 6, 4, dtype=torch.bfloat16, device="meta")  # 384 values of two bytes


def test_a_product_takes_its_factors_and_gives_its_output(count):
    a, b = torch.empty(3, 5, device="meta"), torch.empty(5, 7, device="meta")
    assert count(lambda: a @ b) == [(2 * 3 * 5 * 7, 4 * (3 * 5 + 5 * 7 + 3 * 7))]


def test_views_are_free_and_empty_tensors_as_well(count, x):
    assert count(lambda: (x.transpose(1, 2).unflatten(2, (2, 4))[:, :2], x.new_empty(9))) == []


@pytest.mark.parametrize(
    "work, tensors",
    [
        (lambda x: x + x, 2),
        (lambda x: x + x.clone(), 2 + 3),
        (lambda x: x.mul_(2), 2),
        (lambda x: x + x.new_zeros(1).expand(x.shape), 2),
        (lambda x: x.transpose(1, 2).reshape(-1), 2),
        (lambda x: nn.functional.silu(x), 2),
        (lambda x: nn.functional.group_norm(x, 4), 3),
    ],
    ids=["sum with itself", "copy", "in place", "expanded", "reshaped", "activation", "group norm"],
)
def test_tensors_count_once_each_way_but_for_group_norms(count, x, work, tensors):
    found = sum(num_bytes for _, num_bytes in count(lambda: work(x)))
    assert tensors * 768 <= found < tensors * 768 + 100  # and a few for statistics and single values


def test_attention_is_one_kernel_whose_output_is_joined_without_a_copy(count):
    query, key = torch.empty(2, 3, 10, 8, device="meta"), torch.empty(2, 3, 7, 8, device="meta")

    def attend():
        output = nn.functional.scaled_dot_product_attention(query, key, key)
        assert output.shape == query.shape
        return output.transpose(1, 2).flatten(2)

    assert count(attend) == [(4 * 2 * 3 * 10 * 7 * 8, 4 * 2 * 3 * 8 * (10 + 7 + 7 + 10))]


def test_the_memory_of_a_pass_is_that_of_its_weights_layers_and_living_tensors(floors):
    network = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).to("meta")
    assert floors.weights_of(network) == (4 * (40 + 18), 4 * 40)
    x = torch.empty(3, 4, device="meta")
    _, peak = floors.count(lambda: network(x), [*network.parameters(), x])
    assert peak == 4 * 3 * (8 + 2)


def test_a_floor_is_set_by_the_slower_of_products_and_traffic(floors):
    ceilings = floors.Ceilings(flops=10.0, bytes=2.0)
    assert floors.Kernel("product", 100, 2).seconds(ceilings) == 10
    assert floors.Kernel("copy", 0, 8).seconds(ceilings) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "part, network, tera_macs, gigabytes, milliseconds",
    [
        ("U-Net, one step", "SVD's U-Net", 22.40, 198.6, 328),
        ("VAE decoder", "SVD's VAE", 48.60, 598.4, 865),
        ("VAE decoder", "VDMini-I2V's VAE", 14.43, 214.4, 283),
    ],
)
def test_the_counts_are_those_that_were_first_made_by_hand(floors, part, network, tera_macs, gigabytes, milliseconds):
    component = next(each for each in pipeline_components("i2v", SIZES["i2v"]) if each.name == part)
    component = dataclasses.replace(component, networks=(network,))
    row = floors.passes_of("i2v", component, floors.Arguments())[0].row(floors.GPUS)
    assert row["TMAC"] == pytest.approx(tera_macs, abs=0.006)
    assert row["GB"] == pytest.approx(gigabytes, abs=0.06)
    assert row["A100 in reach ms"] == pytest.approx(milliseconds, rel=0.002)


@pytest.mark.slow
def test_on_a_cpu_the_rewrites_are_counted_that_compute_there(floors):
    components = pipeline_components("i2v", ClipSize(2, 128, 192))
    component = next(each for each in components if each.name == "VAE decoder")
    component = dataclasses.replace(component, networks=("VDMini-I2V's VAE",))
    stock, rewritten = floors.passes_of("i2v", component, floors.Arguments(device="cpu", dtype="fp32", rounds=1))
    assert rewritten.optimized and stock.milliseconds and rewritten.milliseconds
    flops = [sum(kernel.flops for kernel in each.kernels) for each in (stock, rewritten)]
    # Upsampling convolutions have 4 / 9 of their products, and those over two frames 4 / 6.
    assert 0.8 < flops[1] / flops[0] < 0.9
