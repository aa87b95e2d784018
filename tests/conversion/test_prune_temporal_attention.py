"""The script of F3-Pruning, from prompts and pictures to a plan beside the weights."""

import json

import pytest
import torch
from forked_scripts import start
from printed_commands import ROOT
from tiny import tiny_image, tiny_svd_pipeline
from tiny_wan import tiny_wan_pipeline

from vdmini_diffusers.analysis.f3 import F3Error, TemporalScores, load_f3, measure_temporal_attention
from vdmini_diffusers.analysis.f3.calibration import measure_pipeline


CLIP = {"num_frames": 5, "height": 16, "width": 16, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("f3")
    tiny_wan_pipeline(("transformer",)).save_pretrained(folder / "wan")
    tiny_svd_pipeline().save_pretrained(folder / "svd")
    (folder / "prompts.txt").write_text("a cat\n\na dog\n")
    (folder / "pictures").mkdir()
    tiny_image().save(folder / "pictures" / "a.png")
    return folder


def prune(folder, model, fails=False, **settings):
    """What the script prints."""
    inputs = folder / ("prompts.txt" if model == "wan" else "pictures")
    settings = {"pretrained_model_name_or_path": folder / model, "inputs": inputs, "alpha": 0.5} | CLIP | settings
    given = {name: value for name, value in settings.items() if value is not None}
    flags = [part for name, value in given.items() for part in (f"--{name}", value)]
    process = start([ROOT / "conversion" / "prune_temporal_attention.py", *flags], log=folder / "log.txt")
    process.join()
    printed = (folder / "log.txt").read_text()
    assert bool(process.exitcode) == fails, printed[-2000:]
    return printed


def test_prompts_become_a_plan_and_another_alpha_takes_no_new_measurement(folder):
    printed = prune(folder, "wan")
    pipe = tiny_wan_pipeline(("transformer",))
    with measure_temporal_attention(pipe.transformer, 64) as scores:
        for seed, prompt in enumerate(("a cat", "a dog")):
            pipe(prompt, **CLIP, generator=torch.Generator().manual_seed(seed), output_type="latent")
    plan = load_f3(pipe, folder / "wan")["transformer"]
    assert dict(plan.scores) == pytest.approx(scores.by_layer(), rel=1e-4)
    assert sorted(plan.scores, key=plan.scores.get)[:2] == sorted(plan.pruned, key=plan.scores.get)
    assert all(f"| {layer} | " in printed for layer in plan.scores) and printed.count("| yes |") == 2
    file = folder / "wan" / "f3_scores.json"
    before = file.stat().st_mtime_ns
    prune(folder, "wan", alpha=0.25)
    assert file.stat().st_mtime_ns == before
    assert len(load_f3(tiny_wan_pipeline(("transformer",)), folder / "wan")["transformer"].pruned) == 1
    prune(folder, "wan", order="highest")
    highest = load_f3(tiny_wan_pipeline(("transformer",)), folder / "wan")["transformer"]
    assert file.stat().st_mtime_ns == before and set(highest.pruned) == set(plan.scores) - set(plan.pruned)


@pytest.mark.slow
def test_pictures_and_steps_and_whole_blocks(folder, tmp_path):
    prune(folder, "svd", unit="step", part="block", num_frames=2, output_dir=tmp_path / "new" / "f3")
    plan = load_f3(tiny_svd_pipeline(), tmp_path / "new" / "f3")["unet"]
    assert plan.unit == "step" and plan.part == "block" and len(plan.pruned) == 1 and len(plan.scores) == 2


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("wan", {"alpha": 1.5}, "`alpha` is a number from 0 to 1"),
        ("wan", {"part": "block"}, "has no temporal blocks of their own"),
        ("svd", {"unit": "step", "num_inference_steps": 1}, "One step cannot be ranked"),
        ("svd", {"unit": "step", "num_inference_steps": None}, "One step cannot be ranked"),  # the pipeline's own
        ("wan", {"inputs": "nowhere.txt"}, "nowhere.txt must be a text file with one in each line"),
        ("svd", {"inputs": "nowhere.txt"}, "nowhere.txt must be a folder of them"),
    ],
)
def test_bad_input_ends_before_anything_is_sampled_or_written(folder, tmp_path, model, settings, message):
    printed = prune(folder, model, fails=True, output_dir=tmp_path / "out", **settings)
    assert message in printed.splitlines()[-1] and "F3Error" in printed and not (tmp_path / "out").exists()


def test_a_dry_run_counts_layers(folder, tmp_path):
    printed = prune(folder, "wan", dry_run=True, output_dir=tmp_path / "out")
    assert "transformer: 4 layers with temporal attention, of which 2 would be pruned: blocks.0, blocks.1" in printed
    assert not (tmp_path / "out").exists()


def test_an_interrupted_measurement_goes_on_where_it_was(tmp_path):
    pipe = tiny_wan_pipeline(("transformer",))
    prompts = {name: name for name in ("a cat", "a dog", "a bird")}
    file = tmp_path / "scores.json"
    whole = measure_pipeline(pipe, prompts, "prompt", tmp_path / "whole.json", CLIP)["transformer"]
    sampled = []

    def until_the_second(module, args, kwargs):
        sampled.append(kwargs["timestep"])
        if len(sampled) == 6:  # two steps with guidance take four
            raise KeyboardInterrupt

    handle = pipe.transformer.register_forward_pre_hook(until_the_second, with_kwargs=True)
    with pytest.raises(KeyboardInterrupt):
        measure_pipeline(pipe, prompts, "prompt", file, CLIP)
    handle.remove()
    assert json.loads(file.read_text())["done"] == ["a cat"]
    again = measure_pipeline(pipe, prompts, "prompt", file, CLIP)["transformer"]
    assert isinstance(again, TemporalScores) and again.by_layer() == whole.by_layer()
    with pytest.raises(F3Error, match=r"was measured with .* choose another folder"):
        measure_pipeline(pipe, prompts, "prompt", file, CLIP | {"num_inference_steps": 3})
    with pytest.raises(F3Error, match="was measured with"):
        measure_pipeline(pipe, {"a dog": "a dog"}, "prompt", file, CLIP)
    with torch.no_grad():
        pipe.transformer.blocks[0].attn1.to_q.weight.mul_(2)
    with pytest.raises(F3Error, match="was measured with"):  # by other weights, of the same name
        measure_pipeline(pipe, prompts, "prompt", file, CLIP)
    file.write_text(file.read_text()[:-40])
    with pytest.raises(F3Error, match="holds no scores that can be gone on with"):
        measure_pipeline(pipe, prompts, "prompt", file, CLIP)
