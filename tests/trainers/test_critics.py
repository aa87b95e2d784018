"""What critics stand on and start from, and what a run with them leaves behind."""

import json
import logging
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from scripts_run import command_of, logged_losses, run
from tiny import tiny_image
from written_latents import write_latents

from vdmini_diffusers import distill
from vdmini_diffusers.demo.teachers import I2V_TEACHER
from vdmini_diffusers.distillation.arguments import CriticArguments, ICMDArguments
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError
from vdmini_diffusers.trainers.critics import (
    DISCRIMINATOR,
    ModelSource,
    find_discriminator,
    find_multi_step_model,
    make_critics,
    read_origin,
)
from vdmini_diffusers.trainers.unet_pair import UNetPair


HEADS = f"{DISCRIMINATOR}/diffusion_pytorch_model.safetensors"
CHANNELS = {f"down_blocks.{i}": size for i, size in enumerate((32, 32, 64, 64))}
FEW = {"max_train_steps": 1, "train_batch_size": 1, "gradient_accumulation_steps": 1, "logging_steps": 1}


@pytest.fixture(scope="module")
def distilled(teacher_folder, tmp_path_factory):
    """A multi-step model, a one-step teacher made of it beside it, that teacher's student, and latents."""
    folder = tmp_path_factory.mktemp("critics")
    shutil.copytree(teacher_folder, folder / "svd")
    latents = write_latents(folder / "latents", num_samples=6)
    settings = {
        **FEW,
        "pretrained_model_name_or_path": folder / "svd",
        "precomputed_data_dir": latents,
        "output_dir": folder / "sf-v",
        "discriminator_width": 32,
        "critic_warmup_steps": 0,
    }
    run(command_of("train_sf_v.py", settings), folder / "log")
    return folder / "svd", folder / "sf-v", prune_pipeline(folder / "sf-v", folder / "student"), latents


def record(folder: Path, **changes) -> ModelSource:
    """A teacher whose `training.json` says this."""
    (folder / "sf-v").mkdir()
    text = json.dumps({"teacher": "svd", "student": None, "teacher_variant": None, **changes})
    (folder / "sf-v" / "training.json").write_text(text)
    return ModelSource(str(folder / "sf-v"))


class TestTheMultiStepModelOfATeacher:
    def test_is_a_folder_beside_it_of_the_name_that_was_recorded(self, tmp_path):
        teacher = record(tmp_path, teacher_variant="fp16")
        assert read_origin(teacher) is None
        (tmp_path / "svd").mkdir()
        assert read_origin(teacher) == ModelSource(str(tmp_path / "svd"), "fp16")

    def test_or_a_repository_on_the_hub(self, tmp_path):
        teacher = record(tmp_path, teacher="org/svd", teacher_revision="abc")
        assert read_origin(teacher) == ModelSource("org/svd", None, "abc")

    def test_or_other_weights_of_the_same_pipeline_as_those_of_the_demo_teacher(self):
        assert read_origin(ModelSource(str(I2V_TEACHER))) == ModelSource(str(I2V_TEACHER), "multi_step")

    def test_at_the_start_of_the_line_where_the_teacher_was_made_in_several_turns(self, tmp_path):
        multi_step = record(tmp_path, teacher=".", teacher_variant="multi_step")
        (tmp_path / "again").mkdir()
        (tmp_path / "sf-v").rename(tmp_path / "regressed")
        teacher = record(tmp_path, teacher="regressed")
        assert find_multi_step_model(teacher) == ModelSource(str(tmp_path / "regressed"), "multi_step")
        assert find_multi_step_model(multi_step._replace(name=str(tmp_path / "again"))) is None

    def test_of_two_that_name_each_other_ends_at_the_other(self, tmp_path):
        (tmp_path / "svd").mkdir()
        (tmp_path / "svd" / "training.json").write_text(json.dumps({"teacher": "sf-v", "student": None}))
        assert find_multi_step_model(record(tmp_path)) == ModelSource(str(tmp_path / "svd"))

    @pytest.mark.parametrize("name", ["../svd", "/etc", "..", "a/b/c", "svd/..", "", 7, None, "a\0b", "https://x.y/z"])
    def test_and_never_a_path(self, tmp_path, name):
        (tmp_path / "svd").mkdir()
        assert read_origin(record(tmp_path, teacher=name)) is None

    def test_nor_the_teacher_itself(self, tmp_path):
        assert read_origin(record(tmp_path, teacher="sf-v")) is None
        (tmp_path / "again").mkdir()
        assert read_origin(record(tmp_path / "again", teacher=".")) is None

    def test_a_student_s_record_names_none(self, tmp_path):
        (tmp_path / "svd").mkdir()
        assert read_origin(record(tmp_path, student="pruned")) is None

    def test_a_damaged_record_is_refused_by_name(self, tmp_path):
        teacher = record(tmp_path, teacher_variant=7)
        with pytest.raises(CheckpointError, match=r"training\.json: the teacher's variant"):
            read_origin(teacher)
        Path(teacher.name, "training.json").write_text("[")
        with pytest.raises(CheckpointError, match=r"training\.json"):
            read_origin(teacher)


def critics_of(discriminator=None, critic=None, icmd=None, channels=CHANNELS, seed=0):
    arguments = CriticArguments(discriminator_width=32, **(critic or {})), ICMDArguments(**(icmd or {}))
    made = make_critics(channels, 4, 16, *arguments, discriminator, torch.device("cpu"), seed)
    return {critic.name: critic for critic in made}


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


FLAGS = [  # with a value that is not the default: what it changes of the settings of MCA's critic, and of the other's
    ("critic_loss", "relativistic", {"loss": "relativistic"}, {"loss": "relativistic"}),
    ("generator_loss", "hinge", {"generator_loss": "hinge"}, {}),
    ("data_generator_loss", "non_saturating", {}, {"generator_loss": "non_saturating"}),
    ("discriminator_steps", 5, {"num_discriminator_steps": 5}, {"num_discriminator_steps": 5}),
    ("adaptive_critic_weight", True, {"adaptive_weight": True}, {"adaptive_weight": True}),
    ("r1_weight", 0.3, {"r1_weight": 0.3}, {"r1_weight": 0.3}),
    ("r1_sigma", 0.01, {"r1_sigma": 0.01}, {"r1_sigma": 0.01}),
    ("critic_warmup_steps", 7, {"warmup_steps": 7}, {"warmup_steps": 7, "real": {"data": 7}}),
    ("mca_start_step", 40, {"real": {"teacher": 40}}, {}),
    ("lambda_mca", 0.5, {"weight": 0.5}, {}),
    ("lambda_data_critic", 0.25, {}, {"weight": 0.25}),
]


class TestSettings:
    @pytest.mark.parametrize(("flag", "value", "mca", "sf_v"), FLAGS, ids=[flag for flag, *_ in FLAGS])
    def test_a_flag_arrives_at_its_critics_and_changes_nothing_else(self, flag, value, mca, sf_v):
        kind = "icmd" if hasattr(ICMDArguments, flag) else "critic"
        needed = {"r1_weight": 1.0} if flag == "r1_sigma" else {}
        before, after = (critics_of(**{kind: flags}) for flags in (needed, needed | {flag: value}))
        changed = {
            name: {
                setting: given
                for setting, given in asdict(critic.settings).items()
                if given != getattr(before[name].settings, setting)
            }
            for name, critic in after.items()
        }
        assert changed == {"mca": mca, "sf_v": sf_v}

    def test_rate_and_momentum_are_those_of_the_heads_optimiser(self):
        flags = {"discriminator_learning_rate": 3e-3, "discriminator_adam_beta1": 0.25}
        for critic in critics_of(critic=flags).values():
            (group,) = critic.optimizer.param_groups
            assert (group["lr"], group["betas"]) == (3e-3, (0.25, 0.999))

    def test_the_joint_critic_takes_those_of_the_data_critic(self):
        flags = {"generator_loss": "hinge", "data_generator_loss": "non_saturating", "discriminator_steps": 5}
        (joint,) = critics_of(critic=flags, icmd={"joint_critic": True, "lambda_data_critic": 0.25}).values()
        found = joint.settings
        assert (found.generator_loss, found.num_discriminator_steps, found.weight) == ("non_saturating", 5, 0.25)


class TestHeads:
    def test_new_ones_are_the_same_with_and_without_the_other_critic_and_differ_by_seed_and_name(self):
        before = torch.get_rng_state()
        both, alone = critics_of(), critics_of(icmd={"lambda_mca": 0.0})
        assert torch.equal(torch.get_rng_state(), before)
        assert set(both) == {"mca", "sf_v"} and set(alone) == {"sf_v"}
        assert same(both["sf_v"].heads, alone["sf_v"].heads)
        assert not same(both["sf_v"].heads, both["mca"].heads)
        assert not same(both["sf_v"].heads, critics_of(seed=1)["sf_v"].heads)

    def test_new_ones_warm_up_before_they_contribute_and_saved_ones_do_not(self, distilled):
        new = critics_of(critic={"critic_warmup_steps": 7}, icmd={"mca_start_step": 20})
        assert {name: (c.settings.start_step, c.settings.warmup_steps) for name, c in new.items()} == {
            "mca": (20, 7),
            "sf_v": (7, 7),
        }
        found = find_discriminator(ModelSource(str(distilled[1])), CriticArguments())
        saved = critics_of(found, critic={"critic_warmup_steps": 7})["sf_v"].settings
        assert (saved.start_step, saved.warmup_steps) == (0, 0)

    def test_the_original_ones_are_the_data_critic_s_and_on_request_those_of_mca(self, distilled):
        teacher = ModelSource(str(distilled[1]))
        saved = load_file(distilled[1] / HEADS)
        for request in (False, True):
            arguments = CriticArguments(mca_from_discriminator=request)
            made = critics_of(find_discriminator(teacher, arguments), critic={"mca_from_discriminator": request})
            from_saved = {
                name: all(torch.equal(tensor, saved[key]) for key, tensor in critic.heads.state_dict().items())
                for name, critic in made.items()
            }
            assert from_saved == {"sf_v": True, "mca": request}

    def test_one_critic_in_place_of_two(self):
        (joint,) = critics_of(
            critic={"critic_warmup_steps": 5}, icmd={"joint_critic": True, "mca_start_step": 9}
        ).values()
        assert joint.name == "sf_v" and joint.settings.real == {"data": 5, "teacher": 9}
        with pytest.raises(ValueError, match="`--lambda_data_critic` must be above 0"):
            ICMDArguments(joint_critic=True, lambda_data_critic=0.0)

    def test_of_other_features_are_refused(self, distilled):
        found = find_discriminator(ModelSource(str(distilled[1])), CriticArguments())
        with pytest.raises(ValueError, match=r"judges .*down_blocks.* and a condition of 16; here there are"):
            critics_of(found, channels={"down_blocks.0": 32})
        with pytest.raises(ValueError, match=r"here there are \{'latents': 4\}"):
            critics_of(found, channels=None)

    def test_that_learned_on_another_backbone_are_refused_before_models_are_loaded(self, distilled, tmp_path):
        """The other backbone has the same architecture, so that its features have the same names and channels."""
        _, teacher, student, latents = distilled
        assert json.loads((teacher / DISCRIMINATOR / "config.json").read_text())["features"] == "blocks of svd"
        with pytest.raises(ValueError, match="learned on 'blocks of svd', and critics here see 'blocks of sf-v'"):
            distill(
                teacher, student, tmp_path / "out", precomputed_data_dir=str(latents), critic_backbone="teacher", **FEW
            )
        assert not (tmp_path / "out").exists()
        found = find_discriminator(ModelSource(str(teacher)), CriticArguments())
        found.check_features("blocks of svd")
        replace(found, config={}).check_features("blocks of sf-v")  # saved before backbones were noted

    def test_that_are_asked_for_and_not_there_are_refused(self, teacher_folder):
        teacher = ModelSource(str(teacher_folder))
        assert find_discriminator(teacher, CriticArguments()) is None
        with pytest.raises(ValueError, match="has no `discriminator` folder"):
            find_discriminator(teacher, CriticArguments(discriminator_model_name_or_path=str(teacher_folder)))
        with pytest.raises(ValueError, match="`--mca_from_discriminator` needs a `discriminator` folder"):
            find_discriminator(teacher, CriticArguments(mca_from_discriminator=True))

    def test_of_which_a_tensor_is_missing_are_refused(self, distilled, tmp_path):
        shutil.copytree(distilled[1] / DISCRIMINATOR, tmp_path / DISCRIMINATOR)
        tensors = load_file(tmp_path / HEADS)
        tensors.popitem()
        save_file(tensors, tmp_path / HEADS)
        found = find_discriminator(ModelSource(str(tmp_path)), CriticArguments())
        with pytest.raises(ValueError, match="does not hold the tensors of its config"):
            critics_of(found)
        config = json.loads((tmp_path / DISCRIMINATOR / "config.json").read_text())
        wide = json.dumps({**config, "width": 2**40})
        (tmp_path / DISCRIMINATOR / "config.json").write_text(wide)
        with pytest.raises(CheckpointError, match="`width` is out of bounds"):
            find_discriminator(ModelSource(str(tmp_path)), CriticArguments())
        even = json.dumps({**config, "temporal_kernel_size": 4})
        (tmp_path / DISCRIMINATOR / "config.json").write_text(even)
        with pytest.raises(CheckpointError, match="kernel sizes of a discriminator's heads are odd, not 4"):
            find_discriminator(ModelSource(str(tmp_path)), CriticArguments())
        (tmp_path / DISCRIMINATOR / "config.json").write_text('{"_class_name": "UNet2DModel"}')
        with pytest.raises(CheckpointError, match="describes a 'UNet2DModel'; a discriminator is one of"):
            find_discriminator(ModelSource(str(tmp_path)), CriticArguments())

    def test_with_nan_are_refused_by_the_tensor_s_name(self, distilled, tmp_path):
        shutil.copytree(distilled[1] / DISCRIMINATOR, tmp_path / DISCRIMINATOR)
        tensors = load_file(tmp_path / HEADS)
        tensors["embed_condition.bias"][3] = torch.nan
        save_file(tensors, tmp_path / HEADS)
        with pytest.raises(ValueError, match=r"holds NaN or infinity in the tensor 'embed_condition\.bias'"):
            find_discriminator(ModelSource(str(tmp_path)), CriticArguments()).load()


def test_a_student_is_trained_by_what_its_teacher_s_folder_says(distilled, tmp_path):
    folder = shutil.copytree(distilled[0].parent, tmp_path / "line")
    svd, teacher, student, latents = (folder / path.name for path in distilled)
    weights = svd / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    origin = json.loads((teacher / "training.json").read_text())
    (teacher / "training.json").write_text(json.dumps({**origin, "teacher_variant": "fp16"}))
    heads = json.loads((teacher / DISCRIMINATOR / "config.json").read_text())
    (teacher / DISCRIMINATOR / "config.json").write_text(json.dumps({**heads, "features": "blocks of svd fp16"}))
    settings = {
        **FEW,
        "pretrained_teacher_model_name_or_path": teacher,
        "pretrained_student_model_name_or_path": student,
        "precomputed_data_dir": latents,
        "output_dir": tmp_path / "out",
        "num_held_out_clips": 2,
        "discriminator_width": 32,
        "mca_start_step": 0,
    }
    output = run(command_of("train_icmd.py", settings), tmp_path / "log")
    assert f"critics stand on {svd}" in output
    (losses,) = logged_losses(output)
    assert {"mca", "sf_v", "mca_accuracy", "sf_v_gap", "reconstruction_gradient", "mca_gradient"} <= set(losses)
    held_out = json.loads(output.partition("held-out clips: ")[2].partition("\n")[0])
    assert {"mca/teacher/accuracy", "sf_v/data/auc", "sf_v/data/spread"} <= set(held_out)
    kept = json.loads((tmp_path / "out" / "training.json").read_text())
    assert kept["teacher_variant"] is None
    backbone = [kept[f"critic_backbone{part}"] for part in ("", "_variant", "_revision")]
    assert backbone == ["svd", "fp16", None]  # as it was found
    shape = [kept[name] for name in ("num_frames", "height", "width", "fps", "motion_bucket_id")]
    assert shape == [2, 16, 16, 7, None]  # of the latents, and not the defaults of clips that are encoded
    before, after = (load_file(folder / HEADS) for folder in (teacher, tmp_path / "out"))
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)


def test_without_a_multi_step_model_training_is_refused_before_it_begins(teacher_folder, distilled, tmp_path):
    student, latents = distilled[2:]
    with pytest.raises(ValueError, match=r"does not name it .*: give it as `--critic_backbone`"):
        distill(teacher_folder, student, tmp_path / "out", precomputed_data_dir=str(latents), **FEW)
    assert not (tmp_path / "out").exists()
    none = {"lambda_mca": 0.0, "lambda_data_critic": 0.0}  # no critic needs it
    distill(teacher_folder, student, tmp_path / "out", precomputed_data_dir=str(latents), **FEW, **none)
    assert not (tmp_path / "out" / DISCRIMINATOR).exists()


def test_data_and_plans_that_do_not_work_are_refused_before_models_are_loaded(distilled, tmp_path, monkeypatch):
    _, teacher, student, latents = distilled
    monkeypatch.setattr(UNetPair, "load_teacher", lambda *_: pytest.fail("the teacher was loaded"))
    (tmp_path / "empty").mkdir()
    other = shutil.copytree(student, tmp_path / "other")
    config = other / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_attention_heads": [2, 2, 2]}))
    whole = {"precomputed_data_dir": str(latents)}
    for student_name, data, complaint in (
        (student, {"train_data_dir": str(tmp_path / "none")}, "none does not exist"),
        (student, {"precomputed_data_dir": str(tmp_path / "empty")}, "has no manifest.json"),
        (student, whole | {"num_held_out_clips": 1000}, "leaves none of"),
        (student, whole | {"shard_teacher": True}, "over several processes, and there is one"),
        (other, whole, "makes a U-Net with `num_attention_heads`"),
    ):
        with pytest.raises(ValueError, match=complaint):
            distill(teacher, student_name, tmp_path / "out", **data, **FEW)


def test_a_run_with_gradient_checkpointing_ends_bit_equal_and_shows_videos(distilled, tmp_path):
    """Critics on a network of their own, of which the down blocks are kept; encoders rest between validations."""
    _, teacher, student, latents = distilled
    tiny_image().save(tmp_path / "image.png")
    settings = {
        **FEW,
        "max_train_steps": 2,
        "precomputed_data_dir": str(latents),
        "discriminator_width": 32,
        "mca_start_step": 0,
        "validation_steps": 2,
        "validation_images": [tmp_path / "image.png"],
        "learning_rate": 1e-3,
    }
    ends = []
    for again in (False, True):
        out = distill(teacher, student, tmp_path / str(again), gradient_checkpointing=again, **settings)
        assert (out / "validation" / "step-000002-0.gif").is_file()
        ends.append(load_file(out / "unet" / "diffusion_pytorch_model.safetensors"))
    before = load_file(student / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in before)
    assert not any(torch.equal(ends[0][name], before[name]) for name in before if name.startswith("down_blocks"))


@pytest.mark.parametrize(("discriminator", "warns"), [("none", True), (None, False)])
def test_new_heads_of_a_joint_critic_that_learn_too_shortly_are_warned_of(
    distilled, tmp_path, caplog, discriminator, warns
):
    _, teacher, student, latents = distilled
    settings = {**FEW, "precomputed_data_dir": str(latents), "joint_critic": True, "dry_run": True}
    settings |= {"discriminator_model_name_or_path": discriminator, "discriminator_width": 32}
    settings |= {"mca_start_step": 0, "critic_warmup_steps": 1}
    with caplog.at_level(logging.WARNING):
        distill(teacher, student, tmp_path / "out", **settings)
    assert ("The joint critic's heads learn for 0 steps" in caplog.text) == warns


def test_heads_that_learned_on_another_backbone_are_not_resumed(distilled, tmp_path):
    _, teacher, student, latents = distilled
    settings = {**FEW, "discriminator_width": 32, "precomputed_data_dir": str(latents)}
    settings["discriminator_model_name_or_path"] = "none"
    distill(teacher, student, tmp_path / "out", **settings, critic_backbone="teacher")
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    with pytest.raises(ValueError, match="learned on blocks of sf-v, and now sees blocks of svd"):
        distill(teacher, student, tmp_path / "out", **{**settings, "max_train_steps": 2})


@pytest.mark.parametrize("count", [6, 7])
def test_at_least_one_clip_must_be_left_to_train_on(distilled, tmp_path, count):
    _, teacher, student, latents = distilled
    settings = {**FEW, "num_held_out_clips": count, "discriminator_width": 32}
    with pytest.raises(ValueError, match=f"{count} leaves none of 6 clips"):
        distill(teacher, student, tmp_path / "out", precomputed_data_dir=str(latents), **settings)


def test_the_hub_that_cannot_be_reached_is_no_teacher_without_a_discriminator(monkeypatch):
    def fetch(*_, **__):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    with pytest.raises(LocalEntryNotFoundError):
        find_discriminator(ModelSource("org/sf-v"), CriticArguments())
    with pytest.raises(LocalEntryNotFoundError):
        read_origin(ModelSource("org/sf-v"))


def test_an_output_folder_that_is_the_discriminator_s_pipeline_is_refused(distilled, tmp_path):
    _, teacher, student, latents = distilled
    own = shutil.copytree(teacher, tmp_path / "own")
    settings = {**FEW, "discriminator_model_name_or_path": str(own), "precomputed_data_dir": str(latents)}
    with pytest.raises(ValueError, match="is the pipeline of the discriminator"):
        distill(teacher, student, own, **settings)


@pytest.mark.parametrize("backbone", [None, "teacher", "none"])
@pytest.mark.parametrize("setting", ["critic_backbone_variant", "critic_backbone_revision"])
def test_a_variant_or_revision_of_a_backbone_that_is_not_named_is_refused(backbone, setting):
    with pytest.raises(ValueError, match=f"need `--critic_backbone`, a folder or Hub id, not {backbone}"):
        CriticArguments(critic_backbone=backbone, **{setting: "fp16"})


def test_an_output_folder_that_is_the_backbone_is_refused(distilled):
    svd, teacher, student, latents = distilled
    with pytest.raises(ValueError, match="is the critics' backbone"):
        distill(teacher, student, svd, precomputed_data_dir=str(latents), **FEW)
