"""What is known before the first step is refused before the first step."""

import importlib.util
import logging
import multiprocessing
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vdmini_diffusers.distillation.arguments import CriticArguments, ICMDArguments, RunArguments, UNetCriticArguments
from vdmini_diffusers.distillation.consistency_arguments import TextToVideoICMDArguments
from vdmini_diffusers.distillation.engine import check_optimizer, check_tracker, report_settings, without_folders
from vdmini_diffusers.distillation.flow_matching_arguments import FlowMatchingCriticArguments
from vdmini_diffusers.trainers.before_training import (
    check_critic_flags,
    check_images,
    check_sizes_of_saved_heads,
    only_run_in,
    seen_by_critics,
    warn_of_late_start,
    warn_of_short_warmup,
)
from vdmini_diffusers.trainers.critics import ModelSource


@given(st.binary(max_size=64))
def test_any_bytes_as_validation_image_are_taken_or_refused_with_the_file_s_name(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "picture.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"`--validation_images`: .*picture.png' cannot be read as a picture"):
        check_images([path])


def test_a_validation_image_is_decoded_to_its_end(tmp_path):
    path = tmp_path / "picture.png"
    Image.effect_noise((64, 64), 100).save(path)
    check_images([path])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        check_images([path])
    with pytest.raises(ValueError, match="there is no file"):
        check_images([tmp_path / "none.png"])


def test_a_tracker_that_is_unknown_or_not_installed_is_refused():
    for name in (None, "all"):
        check_tracker(name)
    with pytest.raises(ValueError, match=r"`--report_to` must be one of .*tensorboard.*, not 'tensorbord'"):
        check_tracker("tensorbord")
    if importlib.util.find_spec("aim") is None:
        with pytest.raises(ImportError, match="`--report_to aim` needs the package aim, which is not installed"):
            check_tracker("aim")


def test_an_optimiser_whose_package_is_not_installed_is_refused_before_models_are_loaded():
    check_optimizer(RunArguments())
    check_optimizer(RunArguments(optimizer="adafactor", lr_scheduler="polynomial"))
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(ImportError, match="needs bitsandbytes"):
            check_optimizer(RunArguments(optimizer="adamw_8bit"))


def test_a_loss_that_never_starts_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_late_start("MCA", "mca_start_step", 2999, 3000)
        assert not caplog.text
        warn_of_late_start("MCA", "mca_start_step", 3000, 3000)
    assert (
        "MCA never starts: `--mca_start_step` is 3000, and training ends after `--max_train_steps` 3000" in caplog.text
    )


@pytest.mark.parametrize(
    ("critic", "icmd", "why"),
    [
        ({}, {"joint_critic": True, "lambda_mca": 0.5}, "`--lambda_mca` has no effect with `--joint_critic`"),
        ({"mca_from_discriminator": True}, {"joint_critic": True}, "as `--joint_critic` has one critic for both"),
        ({"generator_loss": "hinge"}, {"joint_critic": True}, "the data critic's is `--data_generator_loss`"),
        ({"generator_loss": "hinge"}, {"lambda_mca": 0.0}, "`--generator_loss` has no effect, as `--lambda_mca` is 0"),
        ({"mca_from_discriminator": True}, {"lambda_mca": 0.0}, "has no effect, as `--lambda_mca` is 0"),
        ({"data_generator_loss": "non_saturating"}, {"lambda_data_critic": 0.0}, "MCA's is `--generator_loss`"),
        ({"discriminator_model_name_or_path": "x"}, {"lambda_data_critic": 0.0}, "with `--mca_from_discrim"),
        ({"num_held_out_clips": 2}, {"lambda_mca": 0.0, "lambda_data_critic": 0.0}, "no critic that could rank them"),
        ({"critic_loss": "relativistic", "generator_loss": "hinge"}, {}, "as `--critic_loss relativistic` is"),
        ({"critic_loss": "relativistic", "data_generator_loss": "non_saturating"}, {}, "`--data_generator_loss` has"),
    ],
)
def test_a_flag_of_a_critic_that_there_is_not_is_refused(critic, icmd, why):
    with pytest.raises(ValueError, match=why):
        check_critic_flags(CriticArguments(**critic), ICMDArguments(**icmd))


@pytest.mark.parametrize(
    ("kind", "taps"),
    [
        (UNetCriticArguments, {"critic_taps": "before_downsampling"}),
        (FlowMatchingCriticArguments, {"critic_block_stride": 2}),
    ],
)
def test_features_are_refused_where_critics_see_the_latents(kind, taps):
    check_critic_flags(kind(**taps), ICMDArguments())
    with pytest.raises(ValueError, match=r"`--critic_\w+` has no effect, as `--critic_backbone none` has the critics"):
        check_critic_flags(kind(**taps, critic_backbone="none"), ICMDArguments())


def test_a_recipe_may_leave_a_critic_out_and_defaults_may_be_given():
    recipe = {"critic_warmup_steps": 20, "discriminator_width": 64, "discriminator_model_name_or_path": "none"}
    for icmd in ({"lambda_mca": 0.0, "mca_start_step": 60}, {"lambda_data_critic": 0.0}):
        check_critic_flags(CriticArguments(**recipe, generator_loss="non_saturating"), ICMDArguments(**icmd))
    check_critic_flags(CriticArguments(), ICMDArguments(joint_critic=True, lambda_mca=1.0))
    check_critic_flags(CriticArguments(data_generator_loss="hinge"), TextToVideoICMDArguments())
    started = CriticArguments(mca_from_discriminator=True, discriminator_model_name_or_path="x")
    check_critic_flags(started, TextToVideoICMDArguments())


def test_sizes_of_new_heads_are_refused_where_all_are_saved_ones():
    saved, wide = {"width": 32, "temporal_kernel_size": 3}, CriticArguments(discriminator_width=64)
    with pytest.raises(ValueError, match=r"`--discriminator_width` 64 has no effect: .* which have 32"):
        check_sizes_of_saved_heads(wide, ICMDArguments(lambda_mca=0.0), saved)
    with pytest.raises(ValueError, match=r"`--temporal_kernel_size` 1 has no effect: .* which have 3"):
        from_discriminator = CriticArguments(mca_from_discriminator=True, temporal_kernel_size=1)
        check_sizes_of_saved_heads(from_discriminator, ICMDArguments(), {"widths": [8, 16, 32], **saved})
    check_sizes_of_saved_heads(wide, ICMDArguments(), saved)  # MCA's heads are new
    check_sizes_of_saved_heads(wide, ICMDArguments(joint_critic=True), None)
    check_sizes_of_saved_heads(CriticArguments(discriminator_width=32), ICMDArguments(joint_critic=True), saved)


def test_a_warmup_that_is_cut_short_is_warned_of(caplog):
    warn_of_short_warmup(CriticArguments(critic_warmup_steps=60), ICMDArguments(mca_start_step=60))
    assert not caplog.text
    warn_of_short_warmup(CriticArguments(critic_warmup_steps=100), ICMDArguments(mca_start_step=60))
    assert "MCA's heads learn for 60 steps, not the 100 of `--critic_warmup_steps`" in caplog.text
    warn_of_short_warmup(CriticArguments(), ICMDArguments(mca_start_step=60, joint_critic=True))
    assert "The joint critic's heads learn for 60 steps" in caplog.text


def test_a_backbone_is_named_as_in_the_record_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {".": tmp_path.name, str(tmp_path): tmp_path.name, "org/svd": "svd"}
    for name, in_words in names.items():
        assert seen_by_critics(ModelSource(name, "fp16"), UNetCriticArguments()) == f"blocks of {in_words} fp16"


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with (
        only_run_in(tmp_path / "out"),
        pytest.raises(OSError, match=r"Another training writes to .*out"),
        only_run_in(tmp_path / "out", timeout=0),
    ):
        pass
    with only_run_in(tmp_path / "out", timeout=0), only_run_in(tmp_path / "other", timeout=0):
        pass


def test_a_run_that_writes_nothing_leaves_no_folder(tmp_path):
    for name, kept in (("refused", False), ("trained", True)):
        with only_run_in(tmp_path / name):
            if kept:
                (tmp_path / name / "training.json").touch()
        assert (tmp_path / name).exists() == kept


def hold_lock(folder: Path, held) -> None:
    with only_run_in(folder):
        held.set()
        signal.pause()


def test_a_killed_run_holds_no_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=hold_lock, args=(tmp_path, held))
    process.start()
    assert held.wait(60)
    with pytest.raises(OSError, match="Another training"), only_run_in(tmp_path, timeout=0):
        pass
    process.kill()
    process.join()
    with only_run_in(tmp_path, timeout=0):
        pass


def test_published_settings_name_no_folder_of_this_machine(tmp_path, monkeypatch):
    (tmp_path / "data" / "clips").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    record = {
        "teacher": str(tmp_path / "data"),
        "student": "org/student",
        "train_data_dir": "data/clips",
        "output_dir": tmp_path / "out",
        "cache_dir": "/nowhere/cache",
        "validation_images": [tmp_path / "a.png"],
        "validation_prompts": ["a cat"],
        "lambda_icd": 0.1,
        "rank": None,
    }
    assert {name: without_folders(value) for name, value in record.items()} == {
        "teacher": "data",
        "student": "org/student",
        "train_data_dir": "clips",
        "output_dir": "out",
        "cache_dir": "cache",
        "validation_images": ["a.png"],
        "validation_prompts": ["a cat"],
        "lambda_icd": 0.1,
        "rank": None,
    }
    report_settings(record, tmp_path)
    assert str(tmp_path) not in (tmp_path / "training.json").read_text()
