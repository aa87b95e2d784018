"""The training scripts for text to video, as users start them: processes of their own, on tiny components."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from forked_scripts import start
from PIL import Image
from safetensors.torch import load_file
from scripts_run import command_of, largest_difference, logged_losses, run
from tiny import student_of
from tiny_text_to_video import (
    CLIP_EXCERPT,
    VIDEOCRAFTER2,
    tiny_t2v_pipeline,
    tiny_t2v_teacher,
)
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from written_latents import write_text_to_video_latents
from written_videos import write_video

from vdmini_diffusers import VDMiniT2VPipeline
from vdmini_diffusers.pruning import VDMINI_UNET


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CARD = "---\nlicense: apache-2.0\n---\n# Student\n<!-- training -->pruned and not yet trained<!-- /training -->\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Teacher, pruned student, precomputed latents, and the teacher's own teacher."""
    folder = tmp_path_factory.mktemp("t2v")
    teacher = tiny_t2v_teacher()
    tiny_t2v_pipeline(teacher).save_pretrained(folder / "teacher")
    tiny_t2v_pipeline(student_of(teacher, VDMINI_UNET)).save_pretrained(folder / "student")
    (folder / "student" / "unet" / "pruning_plan.json").write_text(VDMINI_UNET.to_json_string())
    (folder / "student" / "unet" / "pruning_provenance.json").write_text("{}")
    (folder / "student" / "README.md").write_text(CARD)
    tiny_t2v_pipeline(tiny_t2v_teacher(**VIDEOCRAFTER2)).save_pretrained(folder / "base")
    latents = write_text_to_video_latents(folder / "latents", num_samples=8)
    return folder / "teacher", folder / "student", latents, folder / "base"


def command(folders, output_dir: Path, **settings: object) -> list[object]:
    teacher, student, latents, base = folders
    chosen = {
        "task": "t2v",
        "pretrained_teacher_model_name_or_path": teacher,
        "pretrained_student_model_name_or_path": student,
        "ode_teacher_model_name_or_path": base,
        "precomputed_data_dir": latents,
        "output_dir": output_dir,
        "max_train_steps": 2,
        "train_batch_size": 1,
        "checkpointing_steps": 1,
        "logging_steps": 1,
        "discriminator_width": 32,
        "mca_start_step": 1,
        "critic_warmup_steps": 0,
        **settings,
    }
    return command_of("train_icmd.py", chosen)


def turbo_command(folders, output_dir: Path, **settings: object) -> list[object]:
    names = {"pretrained_model_name_or_path": folders[3], "precomputed_data_dir": folders[2]}
    few = {"max_train_steps": 2, "train_batch_size": 2, "logging_steps": 1, "time_cond_proj_dim": 16}
    chosen = {**names, "output_dir": output_dir, **few, "motion_cond_proj_dim": 8, **settings}
    return command_of("train_t2v_turbo.py", chosen)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


WHOLE = {"max_train_steps": 3, "use_ema": True, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """The student after three steps without a stop, and what was printed."""
    output_dir = tmp_path_factory.mktemp("trained")
    return output_dir, run(command(folders, output_dir, **WHOLE), output_dir / "log")


def test_a_trained_student_is_a_pipeline_that_films_texts(folders, trained):
    pipe = VDMiniT2VPipeline.from_pretrained(trained[0])
    assert largest_difference(pipe.unet.state_dict(), weights(folders[1])) > 0
    plans = [(folder / "unet" / "pruning_plan.json").read_text() for folder in (trained[0], folders[1])]
    assert plans[0] == plans[1]
    assert "by ICMD (section 3.3) for 3 steps" in (trained[0] / "README.md").read_text()
    frames = pipe(
        "a photo of a cat", height=16, width=16, num_frames=2, num_inference_steps=2, output_type="np"
    ).frames
    assert frames.shape == (1, 2, 16, 16, 3)


def test_the_settings_are_those_of_the_task(folders, tmp_path):
    none = {"max_train_steps": None, "train_batch_size": None, "mca_start_step": None}
    output = run(command(folders, tmp_path / "none", dry_run=True, **none), tmp_path / "log")
    for setting in (
        '"learning_rate": 1e-05',
        '"max_train_steps": 8000',
        '"train_batch_size": 2',
        '"gradient_accumulation_steps": 1',
        '"discriminator_learning_rate": 1e-05',
        '"lambda_icd": 0.1',
        '"lambda_mca": 1.0',
        '"lambda_data_critic": 0.0',
        '"huber_c": 0.001',
    ):
        assert setting in output
    assert "ICD: student down_blocks.2.temp_attentions.1, teacher down_blocks.2.temp_attentions.1" in output
    assert not (tmp_path / "none").exists()


def test_its_losses_are_consistency_icd_and_mca(trained):
    losses = logged_losses(trained[1])
    assert set(losses[-1]) == {
        *("consistency", "icd", "mca", "mca_discriminator", "lr"),
        *("consistency_gradient", "mca_gradient", "mca_accuracy", "mca_gap"),
    }


@pytest.mark.slow
def test_killed_in_a_step_the_same_command_ends_bit_equal(folders, trained, tmp_path):
    arguments = command(folders, tmp_path, **WHOLE)
    process = start(arguments)
    while process.is_alive() and not (tmp_path / "checkpoint-000001").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / WEIGHTS).exists()
    assert "going on from" in run(arguments, tmp_path / "log")
    assert largest_difference(weights(tmp_path), weights(trained[0])) == 0


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_with_the_same_global_batch(folders, tmp_path):
    settings = {"temporal_dropout": 0, "gradient_checkpointing": True}
    one = run(command(folders, tmp_path / "one", train_batch_size=2, temporal_dropout=0), tmp_path / "log-one")
    two = run(command(folders, tmp_path / "two", **settings), tmp_path / "log-two", processes=2)
    losses = logged_losses(one)
    assert len(losses) == 2 and set(losses[1]) > {"consistency", "icd", "mca", "mca_discriminator"}
    for a, b in zip(losses, logged_losses(two), strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-4


@pytest.mark.slow  # three runs of two processes
@pytest.mark.timeout(1200)
def test_sharded_by_fsdp_the_losses_are_the_same_and_a_resumed_run_ends_like_an_unbroken_one(folders, tmp_path):
    settings = {"max_train_steps": 3, "learning_rate": 1e-3, "temporal_dropout": 0}
    alone = run(command(folders, tmp_path / "one", train_batch_size=2, **settings), tmp_path / "one-log")
    script = Path(__file__).parent / "train_icmd_sharded.py"

    def sharded(name: str, **changes: object) -> str:
        flags = command(folders, tmp_path / name, **settings | changes)[1:]
        return run([script, *flags], tmp_path / f"{name}-log", processes=2)

    for a, b in zip(logged_losses(alone), logged_losses(sharded("whole")), strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-6)
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "one")) < 1e-2
    sharded("halves", max_train_steps=2)
    assert "going on from" in sharded("halves")
    assert largest_difference(weights(tmp_path / "halves"), weights(tmp_path / "whole")) == 0


@pytest.mark.slow
def test_a_reward_by_name_trains_lora_and_one_without_weights_stops_at_the_start(folders, tmp_path):
    text = {"vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406, "hidden_size": 16}
    text |= {"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(tmp_path / "clip")
    CLIPTokenizer.from_pretrained(CLIP_EXCERPT).save_pretrained(tmp_path / "clip")
    settings = {"image_rewards": "clip_score:1", "max_train_steps": 1}
    lora = {"rank": 2, "learning_rate": 1e-2}
    found = command(folders, tmp_path / "out", clip_score_model=tmp_path / "clip", **settings, **lora)
    losses = logged_losses(run(found, tmp_path / "log"))
    assert losses[0]["image_reward"] != 0
    after, before = weights(tmp_path / "out"), weights(folders[1])
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert changed and all(re.search(r"to_(q|k|v|out\.0)\.weight", name) for name in changed)
    none = command(folders, tmp_path / "none", clip_score_model=tmp_path / "nothing", **settings)
    output = run(none, tmp_path / "log", fails=True)
    assert "leave 'clip_score' out of `--image_rewards`" in output and not (tmp_path / "none").exists()


def test_the_teacher_solves_the_ode_itself_on_request_only(folders, tmp_path):
    refused = command(folders, tmp_path / "out", ode_teacher_model_name_or_path=None)
    assert "`--ode_teacher_model_name_or_path` is missing" in run(refused, tmp_path / "log", fails=True)
    settings = {"ode_teacher_model_name_or_path": "teacher", "critic_backbone": "teacher", "max_train_steps": 1}
    assert logged_losses(run(command(folders, tmp_path, **settings), tmp_path / "log"))[0]["consistency"] > 0


def test_t2v_turbo_is_made_of_a_model_that_is_guided_at_run_time(folders, tmp_path):
    output = run(turbo_command(folders, tmp_path, learning_rate=1e-3), tmp_path / "log")
    assert set(logged_losses(output)[0]) == {"consistency", "consistency_gradient", "lr"}
    pipe = VDMiniT2VPipeline.from_pretrained(tmp_path)
    assert type(pipe.scheduler).__name__ == "LCMScheduler" and pipe.scheduler.config.original_inference_steps == 200
    config = pipe.unet.config
    assert (config.time_cond_proj_dim, config.motion_cond_proj_dim, config.fps_cond) == (16, 8, True)
    before, after = weights(folders[3]), weights(tmp_path)
    assert set(after) - set(before) == {
        f"time_embedding.{name}.weight" for name in ("cond_proj", "motion_cond_proj", "combine_proj")
    }
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert after["time_embedding.combine_proj.weight"].abs().max() > 0  # which began at zero
    assert "T2V-Turbo" in (tmp_path / "README.md").read_text()


def test_t2v_turbo_is_not_made_of_itself(folders, tmp_path):
    output = run(
        turbo_command(folders, tmp_path / "out", pretrained_model_name_or_path=folders[0]),
        tmp_path / "log",
        fails=True,
    )
    assert "it was distilled already" in output


def test_a_teacher_without_guidance_embedding_is_refused(folders, tmp_path):
    _, student, latents, base = folders
    output = run(command((base, student, latents, base), tmp_path / "out"), tmp_path / "log", fails=True)
    assert "does not embed guidance" in output and "train_t2v_turbo.py" in output


@pytest.mark.parametrize("task", ["i2v", "t2v"])
def test_models_of_the_other_task_are_refused(folders, teacher_folder, tmp_path, task):
    settings = {"ode_teacher_model_name_or_path": "teacher" if task == "t2v" else None, "task": task}
    if task == "t2v":
        settings["pretrained_teacher_model_name_or_path"] = teacher_folder
    output = run(command(folders, tmp_path / "out", **settings), tmp_path / "log", fails=True)
    assert ("is for image to video" if task == "t2v" else "is for text to video") in output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_training_on_videos_in_bfloat16_shows_validation_prompts_and_saves_whole_precision(folders, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for i in range(3):
        write_video(videos / f"{i}.mp4", 10, 8)
    lines = [json.dumps({"file_name": f"{i}.mp4", "caption": f"a photo of {i} cats"}) for i in range(3)]
    (videos / "metadata.jsonl").write_text("\n".join(lines))
    # On a CPU, torch gives a kernel of 3 frames no gradient in bfloat16, but NaN, where there are but 2.
    size = {"num_frames": 4, "height": 16, "width": 16}
    data = {"precomputed_data_dir": None, "train_data_dir": videos, "cache_dir": tmp_path / "cache", **size}
    validation = {"validation_prompts": "a cat", "validation_steps": 2}
    run(command(folders, tmp_path / "out", mixed_precision="bf16", **data, **validation), tmp_path / "log")
    vaes = [
        load_file(folder / "vae" / "diffusion_pytorch_model.safetensors") for folder in (tmp_path / "out", folders[0])
    ]
    assert largest_difference(*vaes) == 0 and {tensor.dtype for tensor in vaes[0].values()} == {torch.float32}
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.float32}
    with Image.open(tmp_path / "out" / "validation" / "step-000002-0.gif") as gif:
        assert gif.n_frames == 4 and gif.size == (16, 16)


def test_a_yaml_file_may_name_the_task(folders, tmp_path):
    (tmp_path / "run.yaml").write_text("task: t2v\nhuber_c: 0.01\n")
    script, *flags = command(folders, tmp_path / "none", dry_run=True, task=None)
    assert '"huber_c": 0.01' in run([script, tmp_path / "run.yaml", *flags], tmp_path / "log")


def test_a_mistyped_student_is_named_and_not_the_flags_of_its_task(folders, tmp_path):
    teacher, student, *rest = folders
    mistyped = (teacher, student / "typo", *rest)
    output = run(command(mistyped, tmp_path / "out", task=None), tmp_path / "log", fails=True)
    assert "typo is not a folder here" in output and "unrecognized arguments" not in output
    assert not (tmp_path / "out").exists()


def test_a_student_of_another_teacher_is_refused(folders, tmp_path):
    teacher, student, *rest = folders
    other = tmp_path / "other"
    shutil.copytree(student, other)
    config = json.loads((other / "unet" / "config.json").read_text())
    (other / "unet" / "config.json").write_text(json.dumps(config | {"norm_eps": 1e-6}))
    output = run(command((teacher, other, *rest), tmp_path / "out"), tmp_path / "log", fails=True)
    assert "makes a U-Net with `norm_eps`" in output
