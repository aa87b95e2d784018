"""Bytes of tensors while they live, real and fake, and of a process."""

import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vdmini_diffusers.evaluation.live_bytes import LiveBytes, grown_by


def work(given: torch.Tensor) -> None:
    a = given + 1  # 4000 bytes
    b = a * 2  # 4000 more
    del a
    c = b[:10]  # no bytes of its own
    del b
    (c + 1).sum()  # 40 and 4, while `c` keeps 4000


@pytest.mark.parametrize("fake", [False, True])
def test_the_peak_is_that_of_what_lives_at_once(fake):
    mode = FakeTensorMode()
    given = mode.from_tensor(torch.zeros(1000)) if fake else torch.zeros(1000)
    with LiveBytes([given]) as counter:
        work(given)
    assert counter.peak == 8000 and counter.live == 0


def test_what_backward_needs_lives_until_it_is_over():
    weight = torch.ones(1000, requires_grad=True)
    with LiveBytes([weight]) as counter:
        loss = weight.exp().sum()  # keeps the exponential
        assert counter.live == 4000 + 4
        loss.backward()
    assert counter.live == 4000 + 4  # the gradient and the loss


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_grows_by_what_it_touches_even_if_it_has_touched_as_much_before():
    torch.ones(2**22)  # mapped and freed: what is smaller lies on the heap from now on
    *freed, _last = [torch.ones(2**20) for _ in range(60)]
    del freed  # below the last one, where the C library keeps it
    assert grown_by(lambda: torch.ones(2**25)) == pytest.approx(2**27, rel=0.1)
