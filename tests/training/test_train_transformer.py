"""`training/train_icmd.py --task t2v_hy` as users start it: processes of their own, on a tiny HunyuanVideo."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoPipeline
from forked_scripts import start
from safetensors.torch import load_file
from scripts_run import command_of, largest_difference, logged_losses, run
from tiny_hunyuan_video import TINY_PLAN, tiny_hunyuan_pipeline, write_hunyuan_latents

from vdmini_diffusers import VDMiniT2VPipeline
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


SHARDED = Path(__file__).parent / "train_icmd_sharded.py"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Teacher, pruned student in several shards, precomputed latents."""
    folder = tmp_path_factory.mktemp("hy")
    tiny_hunyuan_pipeline().save_pretrained(folder / "teacher")
    student = prune_pipeline(folder / "teacher", folder / "student", TINY_PLAN, max_shard_size="100KB")
    return folder / "teacher", student, write_hunyuan_latents(folder / "latents", num_samples=8)


def command(folders, output_dir: Path, **settings: object) -> list[object]:
    teacher, student, latents = folders
    chosen = {
        "task": "t2v_hy",
        "pretrained_teacher_model_name_or_path": teacher,
        "pretrained_student_model_name_or_path": student,
        "precomputed_data_dir": latents,
        "output_dir": output_dir,
        "max_train_steps": 2,
        "lr_warmup_steps": 0,
        "learning_rate": 1e-3,
        "mixed_precision": "no",
        "checkpointing_steps": 1,
        "logging_steps": 1,
        "discriminator_width": 32,
        "critic_block_stride": 3,
        "mca_start_step": 1,
        "critic_warmup_steps": 0,
        **settings,
    }
    return command_of("train_icmd.py", chosen)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted((folder / "transformer").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


WHOLE = {"max_train_steps": 3, "use_ema": True, "task": None}  # the student says what it was made for


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """The student after three steps without a stop, and what was printed."""
    output_dir = tmp_path_factory.mktemp("trained")
    return output_dir, run(command(folders, output_dir, **WHOLE), output_dir / "log")


def test_a_trained_student_is_its_pruned_folder_with_other_weights(folders, trained):
    """In the same files, which stock diffusers opens as well."""
    out, student = trained[0], folders[1]
    assert largest_difference(weights(out), weights(student)) > 0
    for name in ("transformer", "text_encoder", "vae", "tokenizer_2", "scheduler"):
        files = {path.name for path in (out / name).iterdir()}
        assert files == {path.name for path in (student / name).iterdir()}
        for file in files - {"config.json"} - {path.name for path in (out / "transformer").glob("*.safetensors")}:
            assert (out / name / file).read_bytes() == (student / name / file).read_bytes(), file
    assert len(list((out / "transformer").glob("*.safetensors"))) > 2
    pipes = [cls.from_pretrained(out) for cls in (HunyuanVideoPipeline, VDMiniT2VPipeline)]
    assert all(largest_difference(pipe.transformer.state_dict(), weights(out)) == 0 for pipe in pipes)
    assert (out / "README.md").read_text().count("by ICMD (section 3.3) for 3 steps") == 1
    assert set(logged_losses(trained[1])[-1]) == {
        *("velocity", "icd", "mca", "mca_discriminator", "lr"),
        *("velocity_gradient", "mca_gradient", "mca_accuracy", "mca_gap"),
    }


def test_killed_in_a_step_the_same_command_ends_bit_equal(folders, trained, tmp_path):
    arguments = command(folders, tmp_path, **WHOLE)
    process = start(arguments)
    while process.is_alive() and not (tmp_path / "checkpoint-000001").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "model_index.json").exists()
    assert "going on from" in run(arguments, tmp_path / "log")
    assert largest_difference(weights(tmp_path), weights(trained[0])) == 0


@pytest.mark.slow  # two processes, which take their time to join
@pytest.mark.timeout(600)
def test_two_processes_have_the_losses_of_one_with_the_same_global_batch(folders, tmp_path):
    one = run(command(folders, tmp_path / "one", train_batch_size=2), tmp_path / "log-one")
    two = run(command(folders, tmp_path / "two"), tmp_path / "log-two", processes=2)
    losses = logged_losses(one)
    assert len(losses) == 2 and set(losses[1]) > {"velocity", "icd", "mca", "mca_discriminator"}
    for a, b in zip(losses, logged_losses(two), strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-4


@pytest.mark.slow  # five runs of two processes
@pytest.mark.timeout(1800)
def test_divided_over_processes_nothing_is_whole_and_a_resumed_run_ends_bit_equal(folders, tmp_path):
    settings = {"max_train_steps": 3, "use_ema": True}
    one = run(command(folders, tmp_path / "one", train_batch_size=2, **settings), tmp_path / "one-log")

    def divided(name: str, **changes: object) -> str:
        flags = command(folders, tmp_path / name, **settings | changes)[1:]
        return run([SHARDED, *flags], tmp_path / f"{name}-log", processes=2)

    shown = {"validation_prompts": "a cat", "validation_steps": 3}
    whole = divided("whole", **shown)
    for a, b in zip(logged_losses(one), logged_losses(whole), strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-6)
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "one")) < 1e-3
    assert (tmp_path / "whole" / "validation" / "step-000003-0.gif").is_file()

    # The averages lie in parts of both ranks, and the file of rank 0 holds none of them.
    checkpoint = tmp_path / "whole" / "checkpoint-000003"
    assert {path.name for path in (checkpoint / "parts").glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
    averages = torch.load(checkpoint / "state.pt", weights_only=True)["ema"]["shadow_params"]
    assert averages and all(set(average) == {"in parts"} for average in averages)

    divided("halves", max_train_steps=2)
    assert "going on from" in divided("halves")
    assert largest_difference(weights(tmp_path / "halves"), weights(tmp_path / "whole")) == 0

    with_teacher = divided("teacher", shard_teacher=True)
    for a, b in zip(logged_losses(whole), logged_losses(with_teacher), strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-6)


def test_lora_trains_few_weights_and_is_saved_both_alone_and_merged(folders, tmp_path):
    """In half precision, of which the merged weights have none of the rounding."""
    settings = {"rank": 2, "learning_rate": 1e-2, "mixed_precision": "bf16"}
    output = run(command(folders, tmp_path, **settings), tmp_path / "log")
    trained = int(re.search(r"trained parameters of the denoiser: ([\d,]+)", output)[1].replace(",", ""))
    after, before = weights(tmp_path), weights(folders[1])
    assert trained < 0.2 * sum(tensor.numel() for tensor in before.values())
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name.split(".", 2)[0] for name in changed} >= {"transformer_blocks", "single_transformer_blocks"}
    assert all(re.search(r"(to_(q|k|v|out\.0|add_out)|add_(q|k|v)_proj)\.weight", name) for name in changed)
    pipe = VDMiniT2VPipeline.from_pretrained(folders[1])
    pipe.load_lora_weights(str(tmp_path / "lora"))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert largest_difference(pipe.transformer.state_dict(), after) < 1e-5
