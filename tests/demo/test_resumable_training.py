"""A run that is stopped ends where another does."""

import pytest
import torch
from torch import nn

from vdmini_diffusers.demo import resumable_training
from vdmini_diffusers.demo.resumable_training import Deadline, OutOfTimeError, cached_rows, train_steps


class OverAfter:
    """A deadline that is over after so many looks at it."""

    def __init__(self, looks: int):
        self.looks = looks

    @property
    def is_over(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def check(self) -> None:
        if self.looks < 0:
            raise OutOfTimeError


def trained(path, deadline, num_steps: int = 7) -> torch.Tensor:
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    train_steps(
        path,
        {"network": network},
        lambda step: (network(torch.randn(4, 3)) - step).square().mean(),
        num_steps=num_steps,
        learning_rate=0.1,
        deadline=deadline,
        ema_decay=0.5,
        checkpointing_steps=100,
    )
    return network.weight.detach().clone()


def test_a_stopped_run_goes_on_and_ends_bit_equal(tmp_path):
    whole = trained(tmp_path / "whole.pt", Deadline(None))
    with pytest.raises(OutOfTimeError):
        trained(tmp_path / "stopped.pt", OverAfter(3))
    assert torch.load(tmp_path / "stopped.pt", weights_only=True)["step"] == 4
    assert torch.equal(trained(tmp_path / "stopped.pt", Deadline(None)), whole)


def test_a_finished_stage_is_not_trained_again(tmp_path):
    first = trained(tmp_path / "state.pt", Deadline(None))
    written = (tmp_path / "state.pt").stat().st_mtime_ns
    assert torch.equal(trained(tmp_path / "state.pt", Deadline(0)), first)
    assert (tmp_path / "state.pt").stat().st_mtime_ns == written


def test_rows_that_were_made_before_a_stop_are_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(resumable_training, "ROWS_PER_FILE", 2)
    made = []

    def make(parts):
        for part in parts:
            made.extend(part)
            yield {"squares": torch.tensor([row**2 for row in part]), "names": [str(row) for row in part]}

    class OverAtOnce(Deadline):
        is_over = True

    for expected in ([0, 1], [0, 1, 2, 3]):
        with pytest.raises(OutOfTimeError):
            cached_rows(tmp_path, 5, make, OverAtOnce(None))
        assert made == expected
    columns = cached_rows(tmp_path, 5, make, Deadline(None))
    assert made == [0, 1, 2, 3, 4]
    assert columns["squares"].tolist() == [0, 1, 4, 9, 16] and columns["names"] == ["0", "1", "2", "3", "4"]


def test_a_deadline_is_over_after_its_seconds_and_without_seconds_never():
    Deadline(None).check()
    Deadline(1000).check()
    with pytest.raises(OutOfTimeError):
        Deadline(-1).check()
