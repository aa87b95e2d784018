"""The recipes in `training/configs`: each is read by its script, and started on tiny networks."""

import importlib.util
import json
import re

import pytest
import torch
from printed_commands import ROOT, command_lines_read, printed_commands
from scripts_run import command_of, logged_losses, run
from tiny_hunyuan_video import TINY_PLAN, tiny_hunyuan_pipeline, write_hunyuan_latents
from tiny_text_to_video import VIDEOCRAFTER2, tiny_t2v_pipeline, tiny_t2v_teacher
from written_latents import write_latents, write_text_to_video_latents

from vdmini_diffusers.demo.teachers import I2V_TEACHER
from vdmini_diffusers.distillation.arguments import TrainingArguments
from vdmini_diffusers.distillation.engine import make_optimizer
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


CONFIGS = sorted((ROOT / "training" / "configs").glob("*.yaml"))


def named(path):
    return path.stem


def test_every_recipe_prints_a_command_that_its_script_takes_with_the_recipe():
    commands = []
    for path in CONFIGS:
        text = re.sub(r"(?m)^# ?", "", path.read_text(encoding="utf-8"))
        text = re.sub(r"accelerate launch.*?(?=training/train)", "python ", text, flags=re.DOTALL)
        found = [c for c in printed_commands(text) if str(path.relative_to(ROOT)) in c]
        assert len(found) == 1 and found[0][0] == "training/train_icmd.py", path
        commands += printed_commands(text)
    commands = [command for command in commands if not command[0].startswith("benchmarks")]
    endings = command_lines_read(commands)
    wrong = {" ".join(c): e.printed[-300:] for c, e in zip(commands, endings, strict=True) if e.status is not None}
    assert len(CONFIGS) == 6 and not wrong, json.dumps(wrong, indent=2)


@pytest.fixture(scope="module")
def i2v(teacher_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("i2v")
    student = prune_pipeline(teacher_folder, folder / "student")
    return teacher_folder, student, write_latents(folder / "latents", num_samples=4)


@pytest.fixture(scope="module")
def t2v(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t2v")
    tiny_t2v_pipeline(tiny_t2v_teacher(layers_per_block=2)).save_pretrained(folder / "teacher")
    student = prune_pipeline(folder / "teacher", folder / "student")
    tiny_t2v_pipeline(tiny_t2v_teacher(**VIDEOCRAFTER2)).save_pretrained(folder / "base")
    return folder / "teacher", student, write_text_to_video_latents(folder / "latents", num_samples=4)


@pytest.fixture(scope="module")
def t2v_hy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hy")
    tiny_hunyuan_pipeline().save_pretrained(folder / "teacher")
    student = prune_pipeline(folder / "teacher", folder / "student", TINY_PLAN)
    return folder / "teacher", student, write_hunyuan_latents(folder / "latents", num_samples=2)


def started(path, folders, output_dir, **settings: object):
    teacher, student, latents = folders
    chosen = {
        "config": path,
        "pretrained_teacher_model_name_or_path": teacher,
        "pretrained_student_model_name_or_path": student,
        "precomputed_data_dir": latents,
        "output_dir": output_dir,
        **settings,
    }
    return command_of("train_icmd.py", chosen)


@pytest.mark.parametrize("path", CONFIGS, ids=named)
def test_every_recipe_passes_the_checks_of_a_run_on_tiny_networks(path, request, tmp_path):
    # What one CPU process without bitsandbytes cannot do is overridden, as is the backbone that no tiny teacher names.
    task = next(task for task in ("t2v_hy", "t2v", "i2v") if task in path.stem)
    folders = request.getfixturevalue(task)
    without: dict[str, object] = {"dry_run": True}
    without |= {"t2v_hy": {"shard_teacher": "False"}, "i2v": {"critic_backbone": "teacher"}}.get(task, {})
    if task == "t2v":
        without["ode_teacher_model_name_or_path"] = folders[0].with_name("base")
    if "adamw_8bit" in path.read_text() and importlib.util.find_spec("bitsandbytes") is None:
        printed = run(started(path, folders, tmp_path / "out", **without), tmp_path / "log", fails=True)
        assert "needs bitsandbytes" in printed
        without["optimizer"] = "adamw"
    printed = run(started(path, folders, tmp_path / "out", **without), tmp_path / "log")
    assert "trained parameters of the denoiser" in printed and not (tmp_path / "out").exists()
    for line in re.findall(r"(?m)^(\w+: [^#\n]+)", path.read_text()):
        name, value = line.strip().split(": ")
        if name not in without and name not in ("task", "num_frames", "height", "width"):  # the latents' own
            value = {"true": "true", "false": "false"}.get(value, value)
            shown = re.search(rf'"{name}": "?([^",\n]+)"?', printed)
            assert shown and (shown[1] == value or float(shown[1]) == float(value)), line


@pytest.mark.slow
def test_the_recipe_of_the_demo_runs(tmp_path):
    pytest.importorskip("skimage")
    from vdmini_diffusers.demo.training_latents import write_training_latents

    folders = (I2V_TEACHER, prune_pipeline(I2V_TEACHER, tmp_path / "student"))
    latents = write_training_latents(tmp_path / "latents", I2V_TEACHER, 8)
    path = ROOT / "training" / "configs" / "icmd_i2v_demo.yaml"
    few = {"max_train_steps": 2, "logging_steps": 1, "critic_warmup_steps": 0, "mca_start_step": 1}
    losses = logged_losses(run(started(path, (*folders, latents), tmp_path / "out", **few), tmp_path / "log"))
    assert len(losses) == 2 and "mca" in losses[1] and "sf_v" in losses[1]
    assert (tmp_path / "out" / "model_index.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["i2v", "t2v"])
def test_the_recipe_for_24_gb_needs_less_than_22_by_the_formula(task, tmp_path):
    recipe = ROOT / "training" / "configs" / f"icmd_{task}_24gb.yaml"
    script = ROOT / "benchmarks" / "icmd_memory.py"
    printed = run([script, "--recipes", recipe, "--divided", "False"], tmp_path / "log")
    found = float(re.search(rf"icmd_{task}_24gb: ([\d.]+) GiB per GPU", printed)[1])
    said = float(re.search(r"all weights, ([\d.]+) GiB", recipe.read_text())[1])
    assert found < 22 and found == pytest.approx(said, abs=0.05)
    fake, real = re.search(r"counted ([\d.]+) MiB of fake and ([\d.]+) MiB of real", printed).groups()
    assert fake == real


def test_weights_trained_by_8_bit_adam_are_near_those_by_adam(tmp_path):
    """The recipe for 24 GB: the distance between both is a small part of the way."""
    pytest.importorskip("bitsandbytes")
    target = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    ends = []
    for name in ("adamw", "adamw_8bit"):
        weight = torch.nn.Parameter(torch.zeros_like(target))
        settings = TrainingArguments(output_dir=tmp_path, optimizer=name, learning_rate=1e-2, adam_weight_decay=0.0)
        optimizer = make_optimizer(settings, [weight])
        generator = torch.Generator().manual_seed(1)
        for _ in range(50):
            weight.grad = weight.detach() - target + 0.1 * torch.randn(target.shape, generator=generator)
            optimizer.step()
        ends.append(weight.detach())
    assert (ends[1] - ends[0]).norm() < 0.05 * ends[0].norm()
    assert (ends[0] - target).norm() < 0.8 * target.norm()
