"""Which folders are checkpoints, which one is gone on from, and what is never saved or loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers.training_utils import EMAModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vdmini_diffusers.distillation.checkpoints import MANIFEST, STATE, Checkpoints, Progress, damage


@pytest.fixture(autouse=True)
def one_accelerator_a_test():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class Run:
    """A layer, its average and its checkpoints."""

    def __init__(self, output_dir: Path, *args, **options):
        self.accelerator = Accelerator(cpu=True)
        self.model = self.accelerator.prepare(nn.Linear(2, 2))
        self.ema = EMAModel(self.model.parameters())
        self.checkpoints = Checkpoints(output_dir, *args, **options)

    def resume(self) -> Progress:
        self.progress = self.checkpoints.resume(self.accelerator, {"ema": self.ema})
        return self.progress

    def save(self, step: int) -> Path:
        self.progress.step = step
        return self.checkpoints.save(self.accelerator, self.progress)


@pytest.fixture
def written(tmp_path):
    """A folder with the checkpoints of steps 1 and 2."""
    run = Run(tmp_path)
    run.resume()
    run.save(1)
    run.save(2)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_steps_are_sorted_as_numbers(tmp_path):
    run = Run(tmp_path, total_limit=1)
    run.resume()
    run.save(999_999)
    run.save(1_000_000)
    assert names(tmp_path) == ["checkpoint-1000000"]
    assert Run(tmp_path).resume().step == 1_000_000


@pytest.mark.parametrize("name", ["checkpoint-best", "checkpoint-9-copy", "checkpoint-", "checkpoint-٣"])
def test_a_copy_under_another_name_is_neither_gone_on_from_nor_counted_nor_removed(written, name):
    shutil.copytree(written / "checkpoint-000002", written / name)
    run = Run(written, total_limit=1)
    assert run.resume().step == 2
    run.save(3)
    assert names(written) == sorted([name, "checkpoint-000003"])


@pytest.mark.parametrize("name", ["checkpoint-000002", "checkpoint-2", "a path"])
def test_a_checkpoint_is_named_as_in_diffusers_examples_or_by_its_path(written, name):
    name = str(written / "checkpoint-000002") if name == "a path" else name
    assert Run(written, name).resume().step == 2


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(written):
    with pytest.raises(ValueError, match=r"no checkpoint checkpoint-7, .*checkpoint-000002, checkpoint-000001"):
        Checkpoints(written, "checkpoint-7").choose()


def test_going_on_from_an_older_checkpoint_beside_a_newer_is_refused(written):
    with pytest.raises(ValueError, match="holds checkpoint-000002, which is later"):
        Checkpoints(written, "checkpoint-000001").choose()


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "3", "null", '"x"', "{", "[" * 100_000, '{"a": 1}', f'{{"{STATE}": "1"}}']
)
def test_a_malformed_list_of_files_makes_no_checkpoint(written, content):
    (written / "checkpoint-000002" / MANIFEST).write_text(content)
    assert damage(written / "checkpoint-000002")
    assert Checkpoints(written).choose() == written / "checkpoint-000001"


def test_an_empty_folder_with_an_empty_list_of_files_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoint-000003").mkdir()
    (tmp_path / "checkpoint-000003" / MANIFEST).write_text("{}")
    assert Checkpoints(tmp_path).complete() == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just(STATE), inner),
)


@settings(max_examples=50)
@given(JSON)
def test_any_json_as_list_of_files_is_a_damage_and_no_exception(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "checkpoint-000001"
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps(content))
    assert damage(folder)


@pytest.mark.parametrize("name", [STATE, "model.safetensors"])
def test_a_file_of_the_right_size_with_other_bytes_is_an_error_of_our_own(written, name):
    file = written / "checkpoint-000002" / name
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(ValueError, match=r"checkpoint-000002 cannot be resumed from: .* Remove it"):
        Run(written).resume()


def test_a_state_of_other_things_is_refused(written):
    run = Run(written)
    with pytest.raises(ValueError, match="holds ema, progress, and this run needs progress"):
        run.checkpoints.resume(run.accelerator, {})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_or_averages_that_are_not_finite_are_not_saved(tmp_path, value):
    run = Run(tmp_path)
    run.resume()
    with torch.no_grad():
        run.model.weight[0, 0] = value
    with pytest.raises(FloatingPointError, match="After step 1, the trained weights hold values that are not finite"):
        run.save(1)
    with torch.no_grad():
        run.model.weight[0, 0] = 0
    run.ema.shadow_params[0][0, 0] = value
    with pytest.raises(FloatingPointError, match="After step 1, those of ema hold"):
        run.save(1)
    assert names(tmp_path) == []


def test_a_checkpoint_that_is_not_finite_is_not_gone_on_from(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.resume()
    with torch.no_grad():
        run.model.weight[0, 0] = float("nan")
    monkeypatch.setattr("vdmini_diffusers.distillation.checkpoints._not_finite", lambda *_: None)  # an older version
    run.save(1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="checkpoint-000001 cannot be resumed from: the trained weights hold"):
        Run(tmp_path).resume()
