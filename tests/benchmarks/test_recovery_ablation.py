"""The ablation's statistics and its controls. `recovery_ablation.py` itself runs for days."""

import json
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkout import ROOT, as_module
from diffusers.models.attention import TemporalBasicTransformerBlock
from diffusers.models.resnet import AlphaBlender, TemporalConvLayer, TemporalResnetBlock
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel

from vdmini_diffusers.demo.teachers import I2V_TEACHER, T2V_TEACHER
from vdmini_diffusers.distillation.arguments import ICMDArguments, UNetCriticArguments
from vdmini_diffusers.families import find_trainable_family
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.trainers import train_denoiser
from vdmini_diffusers.trainers.before_training import only_run_in


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


def test_a_rate_is_not_chosen_anew_beside_results(ablation, tmp_path):
    (tmp_path / "results.json").write_text("{}")
    only = SimpleNamespace(args=SimpleNamespace(learning_rates=[3e-4, 1e-3]), folder=tmp_path)
    with pytest.raises(ValueError, match=r"results.json without learning_rate.json: copy both"):
        ablation.Ablation.choose_learning_rate(only)


COMMITTED = ROOT / "benchmarks" / "results" / "recovery_ablation"
FEW_CLIPS = {"num_clips": 256, "max_train_steps": 300, "learning_rates": [1e-3]}


@pytest.mark.parametrize(
    ("settings", "given"),
    [("settings.json", {}), ("t2v_settings.json", {"teacher": T2V_TEACHER, **FEW_CLIPS})],
    ids=["image to video", "text to video"],
)
def test_the_committed_results_can_be_gone_on_with(ablation, tmp_path, settings, given):
    """By the commands of their document; a teacher or a row that has changed would begin something else."""
    shutil.copy(COMMITTED / settings, tmp_path / "settings.json")
    args = ablation.Arguments(output_dir=tmp_path, **given)
    family = ablation.find_trainable_family(str(args.teacher))
    rows = ablation.rows_of(family.given) | ablation.later_rows_of(family.given)
    ablation.Ablation.keep_settings(SimpleNamespace(args=args, family=family, rows=rows))
    grown = json.loads((tmp_path / "settings.json").read_text())["rows"]
    assert set(grown) == set(rows)
    name = next(iter(ablation.later_rows_of(family.given)))
    rows[name] = rows[name]._replace(flags={**rows[name].flags, "lambda_mca": 7.0})
    with pytest.raises(ValueError, match="has other settings"):
        ablation.Ablation.keep_settings(SimpleNamespace(args=args, family=family, rows=rows))


TEMPORAL_LAYERS = (
    *(AlphaBlender, TemporalBasicTransformerBlock, TemporalResnetBlock),  # image to video
    *(TemporalConvLayer, TransformerTemporalModel),  # text to video
)


def temporal_tensors(denoiser) -> set[str]:
    """By the classes of the layers; by its name, what embeds the frames' positions, which is of no such class."""
    layers = {
        name
        for name, layer in denoiser.named_modules()
        if isinstance(layer, TEMPORAL_LAYERS) or name.endswith("time_pos_embed")
    }
    return {key for key in denoiser.state_dict() if any(key.startswith(f"{name}.") for name in layers)}


@pytest.mark.parametrize("teacher", [I2V_TEACHER, T2V_TEACHER], ids=["image to video", "text to video"])
def test_the_still_student_is_the_pruned_one_with_every_temporal_layer_new_and_no_other(ablation, tmp_path, teacher):
    family, students = find_trainable_family(str(teacher)), {name: tmp_path / name for name in ("pruned", "still")}
    prune_pipeline(teacher, students["pruned"])
    ablation.Ablation.reset_temporal_layers(SimpleNamespace(family=family, students=students))

    cls, folder = family.denoisers[family.denoiser].student, family.denoiser
    pruned, still = (cls.from_pretrained(students[name], subfolder=folder) for name in ("pruned", "still"))
    before, after, temporal = pruned.state_dict(), still.state_dict(), temporal_tensors(pruned)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed <= temporal
    assert not any(before[key].any() for key in temporal - changed)  # biases that training has left at zero
    blocks = {".".join(key.split(".")[:2]) for key in before if key.startswith(("down_blocks", "mid_", "up_blocks"))}
    assert len(blocks) >= 6
    assert {".".join(key.split(".")[:2]) for key in changed} >= blocks
    for file in students["pruned"].rglob("*.safetensors"):
        other = students["still"] / file.relative_to(students["pruned"])
        assert (file.read_bytes() == other.read_bytes()) == (file.parent.name != folder)


class Stand:
    """In the place of the judge: what takes minutes. Every video goes a right way in half of the scenes."""

    detector = None

    def __init__(self, *args: Any):
        pass

    def measure(self, folder, beside=None) -> dict[str, list[float]]:
        return {name: [0.0, 1.0] for name in ("right_way", "speed", "sharpness", "psnr_to_teacher")}

    def write_sheet(self, folders, path) -> None:
        pass


@pytest.fixture
def untrained(ablation, tmp_path, monkeypatch):
    """A start that does not train: the runs that it would have trained, and the results in the end."""
    begun = []
    monkeypatch.setattr(ablation, "Judge", Stand)
    monkeypatch.setattr(ablation, "write_training_latents", lambda folder, *_: folder)
    monkeypatch.setattr(ablation, "prune_pipeline", lambda *_: None)
    monkeypatch.setattr(ablation.Ablation, "reset_temporal_layers", lambda self: None)
    monkeypatch.setattr(ablation.Ablation, "train", lambda self, job: begun.append((job.row, job.seed)))

    def start(only: list[str], seeds: list[int]):
        begun.clear()
        given = {"output_dir": tmp_path, "teacher": T2V_TEACHER, "learning_rates": [1e-3]}
        ablation.main(ablation.Arguments(only=only, seeds=seeds, sensitivity_seeds=[0], **given))
        return list(begun), json.loads((tmp_path / "results.json").read_text())

    return start


def test_a_later_start_trains_what_the_results_lack_and_loses_none(untrained):
    begun, results = untrained(["+ ICD"], [3, 1])
    assert begun == [("+ ICD", 1), ("+ ICD", 3)]  # whatever their order was
    assert list(results) == ["teacher", "pruned", "+ ICD"] and list(results["+ ICD"]) == ["1", "3"]
    begun, results = untrained(["+ ICD + MCA", "+ ICD", "lambda_MCA 0.5"], [0, 1])
    assert begun == [("+ ICD + MCA", 0), ("+ ICD", 0), ("lambda_MCA 0.5", 0), ("+ ICD + MCA", 1)]
    assert list(results) == ["teacher", "pruned", "+ ICD", "+ ICD + MCA", "lambda_MCA 0.5"]
    assert list(results["+ ICD"]) == ["0", "1", "3"]
    assert results["+ ICD"]["0"]["right_way"] == 0.5


def test_two_starts_in_one_folder_are_one_too_many(ablation, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "only_run_in", lambda folder: only_run_in(folder, timeout=0))
    with only_run_in(tmp_path), pytest.raises(OSError, match="Another training writes to"):
        ablation.main(ablation.Arguments(output_dir=tmp_path))


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
