"""The script as users start it, in processes of its own, on tiny VAEs of both kinds."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forked_scripts import start
from PIL import Image
from safetensors.torch import load_file
from scripts_run import command_of, largest_difference, logged_losses, run
from tiny import VAE_CLASSES, tiny_decoder_plans, tiny_teacher_vae
from written_videos import write_video

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.latents import LatentShards
from vdmini_diffusers.data.vae_clips import encode_for_decoder
from vdmini_diffusers.distillation.decoder_arguments import DecoderLossArguments, DecoderTrainingArguments
from vdmini_diffusers.pruning.prune_vae_decoder import prune_vae_decoder
from vdmini_diffusers.trainers.vae_decoder import train_vae_decoder


WEIGHTS = "diffusion_pytorch_model.safetensors"
SIZE = 32  # pixels


def write_clips(folder: Path, vae: torch.nn.Module, num_clips: int, num_frames: int = 4) -> Path:
    """Smooth random clips and what `vae` encodes them to."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(num_clips, num_frames, 3, 4, 4, generator=generator) * 2 - 1
    clips = torch.nn.functional.interpolate(coarse.flatten(0, 1), SIZE, mode="bilinear").unflatten(0, coarse.shape[:2])
    encoded = encode_for_decoder({"pixel_values": clips}, vae)
    shards = LatentShards(folder, {"made_by": "tests"})
    samples = [{name: tensor[i] for name, tensor in encoded.items()} for i in range(num_clips)]
    shards.write(0, samples, [{"name": str(i), "caption": ""} for i in range(num_clips)])
    shards.finish([])
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Teacher, pruned VAE and precomputed clips, of each kind."""
    made = {}
    for kind in VAE_CLASSES:
        folder = tmp_path_factory.mktemp(kind)
        teacher = tiny_teacher_vae(kind)
        teacher.save_pretrained(folder / "teacher" / "vae")
        (folder / "teacher" / "LICENSE.md").write_text("the teacher's licence")
        student = prune_vae_decoder(folder / "teacher", folder / "student", plan=tiny_decoder_plans(kind)["folds"])
        made[kind] = folder / "teacher", student, write_clips(folder / "clips", teacher, 6)
    return made


def command(folders, output_dir: Path, kind: str = "image", **settings: object) -> list[object]:
    teacher, student, clips = folders[kind]
    chosen = {
        "pretrained_vae_model_name_or_path": student,
        "pretrained_teacher_model_name_or_path": teacher,
        "precomputed_data_dir": clips,
        "output_dir": output_dir,
        "max_train_steps": 2,
        "train_batch_size": 2,
        "checkpointing_steps": 1,
        "logging_steps": 1,
        "min_num_frames": 2,
        "perceptual_loss": "none",
        "discriminator_width": 8,
        **settings,
    }
    return command_of("train_vae_decoder.py", chosen)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


DISTILLED = {"output_distillation_weight": 1.0, "feature_distillation_weight": 1.0}
WHOLE = {"max_train_steps": 4, "use_ema": True, "learning_rate": 1e-3, **DISTILLED}


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """Four steps without a stop, with all losses that need no further package."""
    output_dir = tmp_path_factory.mktemp("trained")
    return output_dir, run(command(folders, output_dir, **WHOLE), output_dir / "log")


def test_a_trained_vae_opens_and_only_its_decoder_has_changed(folders, trained):
    output_dir, output = trained
    vae = VAE_CLASSES["image"][1].from_pretrained(output_dir)
    before, after = weights(folders["image"][1]), vae.state_dict()
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("decoder.")}
    (losses, *_) = logged_losses(output)
    names = {"reconstruction", "output_distillation", "feature_distillation", "adversarial", "discriminator", "lr"}
    assert set(losses) == names


def test_what_came_with_the_pruned_vae_goes_on_and_the_card_says_that_it_was_trained(folders, trained):
    student, output_dir = folders["image"][1], trained[0]
    for name in ("pruning_plan.json", "pruning_channels.json", "pruning_provenance.json", "LICENSE.md"):
        assert (output_dir / name).read_bytes() == (student / name).read_bytes()
    before, after = ((folder / "README.md").read_text() for folder in (student, output_dir))
    assert "not yet trained" in before
    assert "not yet trained" not in after and "fine-tuned** (appendix A) for 4 steps" in after
    assert json.loads((output_dir / "training.json").read_text())["reconstruction_weight"] == 1.0


@pytest.mark.parametrize("kind", VAE_CLASSES)
@pytest.mark.slow
def test_the_reconstruction_gets_better(folders, tmp_path, kind):
    settings = {"max_train_steps": 12, "learning_rate": 5e-3, "adversarial_weight": 0, "checkpointing_steps": 12}
    settings |= {"train_batch_size": 6, "min_num_frames": 4, "lr_scheduler": "constant"}  # the same clips each time
    teacherless = {"pretrained_teacher_model_name_or_path": None, "gradient_checkpointing": True}
    output = run(command(folders, tmp_path, kind, **settings, **teacherless), tmp_path / "log")
    losses = [values["reconstruction"] for values in logged_losses(output)]
    assert losses[-1] < 0.95 * losses[0]  # a random encoder leaves little to go by
    vae = VAE_CLASSES[kind][1].from_pretrained(tmp_path)
    before, after = weights(folders[kind][1]), vae.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("decoder."))


@pytest.mark.slow
def test_killed_the_same_command_ends_bit_equal(folders, trained, tmp_path):
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
    settings = {"discriminator": "3d", **DISTILLED}
    one = run(command(folders, tmp_path / "one", train_batch_size=4, **settings), tmp_path / "log-one")
    two = run(command(folders, tmp_path / "two", **settings), tmp_path / "log-two", processes=2)
    for a, b in zip(logged_losses(one), logged_losses(two), strict=True):
        assert b == pytest.approx(a, rel=1e-3)
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-3


def test_training_on_videos_encodes_what_it_takes_and_shows_pictures(folders, tmp_path):
    (tmp_path / "videos").mkdir()
    for i in range(3):
        write_video(tmp_path / "videos" / f"{i}.mp4", 10, 7)
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    data = {
        "precomputed_data_dir": None,
        "train_data_dir": tmp_path / "videos",
        "cache_dir": tmp_path / "cache",
        **{"num_frames": 3, "height": SIZE, "width": SIZE},
    }
    shown = {"validation_images": tmp_path / "picture.png", "validation_steps": 1, "adaptive_adversarial_weight": True}
    output = run(command(folders, tmp_path / "out", "temporal", **data, **shown), tmp_path / "log")
    assert len(re.findall(r"step \d: PSNR \d+\.\d\d dB", output)) == 2
    for step in (1, 2):
        with Image.open(tmp_path / "out" / "validation" / f"step-{step:06d}.png") as sheet:
            assert sheet.size == (3 * SIZE, SIZE)  # the picture, the teacher's decoder, this one
    assert VAE_CLASSES["temporal"][1].from_pretrained(tmp_path / "out")


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(folders, tmp_path):
    flags = command(folders, tmp_path / "none", "temporal", dry_run=True, **DISTILLED)
    output = run(flags, tmp_path / "log")
    assert '"learning_rate": 5e-05' in output and '"lr_scheduler": "cosine"' in output
    shortcut = "up_blocks.2.resnets.0.spatial_res_block.conv_shortcut"
    assert f"distilled: up_blocks.1 towards 64 channels of {shortcut}" in output
    assert "trained parameters of the discriminator" in output
    assert not (tmp_path / "none").exists()


def test_the_defaults_are_the_paper_s():
    args, loss_args = DecoderTrainingArguments(), DecoderLossArguments()
    assert (args.max_train_steps, args.train_batch_size, args.gradient_accumulation_steps) == (15_000, 8, 1)
    assert (args.learning_rate, args.lr_scheduler, loss_args.min_num_frames) == (5e-5, "cosine", 14)
    weights = loss_args.reconstruction_weight, loss_args.perceptual_weight, loss_args.adversarial_weight
    assert weights == (1, 1, 0.2) and not loss_args.uses_teacher


def refused(folders, tmp_path: Path, kind: str = "image", **settings: object) -> str:
    output = run(command(folders, tmp_path / "out", kind, **settings), tmp_path / "log", fails=True)
    assert not (tmp_path / "out" / WEIGHTS).exists()
    return output


def test_what_cannot_be_meant_is_refused_with_the_reason(folders, tmp_path):
    teacher = folders["image"][0]
    names = "pretrained_vae_model_name_or_path", "pretrained_teacher_model_name_or_path"
    assert "is not pruned" in refused(folders, tmp_path, **{names[0]: teacher})
    assert "Distillation needs" in refused(folders, tmp_path, **{names[1]: None}, output_distillation_weight=1)
    assert "clips of 4 frames, fewer than `--min_num_frames` 14" in refused(folders, tmp_path, min_num_frames=None)
    assert "are not those of this VAE's encoder" in refused(
        folders, tmp_path, precomputed_data_dir=folders["temporal"][2]
    )


def test_another_teacher_s_config_is_refused(folders, tmp_path):
    teacher = shutil.copytree(folders["image"][0], tmp_path / "other")
    file = teacher / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scaling_factor": 0.5}))
    output = refused(folders, tmp_path, pretrained_teacher_model_name_or_path=teacher, **DISTILLED)
    assert "makes a VAE with `scaling_factor` 0.5" in output and "Use the teacher that it was pruned from" in output


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_checkpoint(folders, tmp_path):
    def broken(decoded, target):
        return (decoded - target).square().mean(dim=(1, 2, 3)) / (steps.pop() if steps else 0)

    steps = [1.0]
    _, student, clips = folders["image"]
    with pytest.raises(FloatingPointError, match=r"loss of step 2 is not finite .*perceptual inf"):
        train_vae_decoder(
            DecoderTrainingArguments(output_dir=tmp_path, train_batch_size=2, checkpointing_steps=1),
            DecoderLossArguments(min_num_frames=2, adversarial_weight=0),
            VideoDataArguments(precomputed_data_dir=str(clips)),
            str(student),
            perceptual=broken,  # any callable will do
        )
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-000001"]
    assert not (tmp_path / WEIGHTS).exists()
