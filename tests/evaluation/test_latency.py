"""Timing in turns, networks built on a device, and counts."""

import pytest
import torch
from torch import nn

from vdmini_diffusers.evaluation.latency import Timing, build_network, time_in_turns


def test_works_take_turns_and_warm_ups_do_not_count():
    calls = []
    works = {name: lambda name=name: calls.append(name) for name in ("teacher", "student")}
    timings = time_in_turns(works, "cpu", rounds=3, warm_ups=2)
    assert calls == ["teacher", "student"] * 5
    assert [len(timing.milliseconds) for timing in timings.values()] == [3, 3]
    assert timings["teacher"].peak is None


def test_the_ratio_is_the_median_of_the_rounds_ratios():
    slow, fast = Timing([20, 300, 10]), Timing([10, 100, 10])
    assert slow.ratio(fast) == 2 and slow.median == 20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_network_is_built_in_its_dtype_and_the_default_stays(dtype):
    seen = []

    class Network(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            seen.append(self.weight.dtype)

    network = build_network(Network, "cpu", dtype)
    assert seen == [network.weight.dtype] == [dtype]
    assert not network.training and torch.get_default_dtype() == torch.float32


def test_a_network_that_cannot_be_built_leaves_the_default_dtype():
    with pytest.raises(ZeroDivisionError):
        build_network(lambda: 1 / 0, "cpu", torch.float16)
    assert torch.get_default_dtype() == torch.float32
