"""The name of the device beside a time."""

import platform

import pytest
import torch

from vdmini_diffusers.evaluation.device_name import device_name


@pytest.mark.parametrize(("threads", "said"), [(1, "1 thread"), (2, "2 threads")])
def test_a_cpu_is_named_with_its_threads_and_nothing_of_the_host(monkeypatch, threads, said):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    kind, model, number = device_name("cpu").rsplit(", ", 2)
    assert (kind, number) == ("CPU", said) and model
    assert platform.node() not in device_name("cpu")
