"""The ablation's statistics and its controls. `recovery_ablation.py` itself runs for days."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkout import as_module

from vdmini_diffusers.distillation.arguments import ICMDArguments, UNetCriticArguments
from vdmini_diffusers.trainers import train_denoiser


@pytest.fixture(scope="module")
def ablation():
    with as_module("benchmarks/recovery_ablation.py") as module:
        yield module


@pytest.mark.parametrize("given", ["image", "text"])
def test_every_row_is_compared_with_one_that_exists_and_differs_from_it(ablation, given):
    rows = ablation.rows_of(given) | ablation.later_rows_of(given)
    for row in rows.values():
        if row.against is not None:
            other = rows[row.against]
            assert (row.flags, row.student, row.script) != (other.flags, other.student, other.script)
    assert len({repr((sorted(row.flags.items()), row.student, row.script)) for row in rows.values()}) == len(rows)


def test_rows_that_there_are_not_are_refused_before_anything_is_written(ablation, tmp_path):
    with pytest.raises(ValueError, match=r"`--only` has 'ICD', and the rows are 'reconstruction'"):
        ablation.Ablation(ablation.Arguments(output_dir=tmp_path, only=["+ ICD", "ICD"]))
    assert not any(tmp_path.iterdir())


def test_one_learning_rate_is_taken_without_a_run(ablation):
    only = SimpleNamespace(args=SimpleNamespace(learning_rates=[1e-3]))  # has nothing that could train
    assert ablation.Ablation.choose_learning_rate(only) == 1e-3


@pytest.fixture(scope="module")
def control():
    with as_module("benchmarks/train_with_random_mca.py") as module:
        yield module


def critics_of(make, seed: int) -> dict[str, Any]:
    """Called as `train_denoiser` calls it: all by position."""
    settings = UNetCriticArguments(discriminator_width=8), ICMDArguments()
    made = make({"down_blocks.0": 8}, 4, 16, *settings, None, torch.device("cpu"), seed, "blocks of svd")
    return {critic.name: critic for critic in made}


def weights(critic) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in critic.heads.state_dict().values()]


def are_equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_the_controls_heads_of_mca_are_not_silent_and_never_learn(control):
    critics = critics_of(control.with_random_mca, seed=3)
    features, condition = {"down_blocks.0": torch.randn(2, 8, 4, 4)}, (torch.zeros(1), torch.zeros(1, 16))
    before = weights(critics["mca"])
    loss = torch.stack([logits.square().sum() for logits in critics["mca"].heads(features, *condition)]).sum()
    assert loss > 0
    loss.backward()
    critics["mca"].optimizer.step()
    assert are_equal(weights(critics["mca"]), before)
    assert are_equal(weights(critics["sf_v"]), weights(critics_of(control.make_critics, seed=3)["sf_v"]))


def test_the_controls_heads_of_mca_are_others_in_every_seed(control):
    first, again, other = (critics_of(control.with_random_mca, seed)["mca"] for seed in (3, 3, 4))
    assert are_equal(weights(first), weights(again)) and not are_equal(weights(first), weights(other))


def test_training_makes_its_critics_as_the_control_says(control, monkeypatch):
    used = train_denoiser.train_denoiser.__globals__
    monkeypatch.setitem(used, "make_critics", used["make_critics"])  # to be put back
    control.replace_critics()
    assert used["make_critics"] is control.with_random_mca
    with pytest.raises(AttributeError, match="does not make its critics"):
        control.replace_critics()
