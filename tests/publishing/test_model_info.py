"""What `describe_model` says of tiny pipelines and models, and of what is none."""

import json
import shutil

import pytest
from fake_hub import FakeHub
from fresh_python import run_python
from tiny import randomise, tiny_decoder_plans, tiny_teacher_vae
from typer import Typer
from typer.testing import CliRunner

from vdmini_diffusers import VDMiniI2VPipeline, VDMiniT2VPipeline, prune_vae_decoder
from vdmini_diffusers.cli.info import info as info_command
from vdmini_diffusers.publishing.model_info import describe_model
from vdmini_diffusers.publishing.model_picture import draw_model
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError


PIPELINES = {"i2v": VDMiniI2VPipeline, "t2v": VDMiniT2VPipeline, "hy": VDMiniT2VPipeline}


def component(info, name):
    return next(part for part in info.components if part.name == name)


@pytest.mark.parametrize("kind", PIPELINES)
def test_parameters_are_those_of_the_loaded_models(students, kind):
    teacher, student = (PIPELINES[kind].from_pretrained(folder) for folder in students[kind])
    described = describe_model(students[kind][1])
    models = {name: model for name, model in student.components.items() if hasattr(model, "num_parameters")}
    assert {part.name: part.num_parameters for part in described.components if part.num_parameters} == {
        name: model.num_parameters() for name, model in models.items()
    }
    (pruned,) = described.pruned
    assert pruned.num_teacher_parameters == teacher.components[pruned.name].num_parameters()
    assert pruned.num_parameters + sum(pruned.dropped_blocks.values()) == pruned.num_teacher_parameters
    assert described.family.name == describe_model(students[kind][0]).family.name
    assert set(pruned.dtypes) == {"F32"} and pruned.variants == (None,)


@pytest.mark.parametrize("kind", PIPELINES)
def test_what_is_hollow_is_what_was_dropped(students, kind):
    (pruned,) = describe_model(students[kind][1]).pruned
    hollow = {
        f"{stage.name}.{layer.name}"
        for stage in pruned.sketch.stages
        for layer in stage.layers
        if layer.state == "removed"
    } | {stage.name for stage in pruned.sketch.stages if not stage.layers}
    assert hollow == {name for name in pruned.dropped_blocks if "samplers" not in name}
    whole = describe_model(students[kind][0])
    assert component(whole, pruned.name).sketch.count("removed") == 0 and not whole.pruned
    kept, all_layers = pruned.sketch.count("kept"), component(whole, pruned.name).sketch.count("kept")
    assert kept < all_layers


def test_who_needs_trust(students, teacher_folder):
    assert describe_model(students["i2v"][1]).code_files == (
        "pipeline_vdmini_i2v.py",
        "unet/unet_spatio_temporal_vdmini.py",
    )
    assert not describe_model(students["hy"][1]).needs_trust_remote_code
    assert not describe_model(teacher_folder).needs_trust_remote_code


def test_a_model_alone_and_pruned_denoisers_without_their_pipeline(student, tmp_path):
    alone = describe_model(student / "unet")
    assert (alone.is_pipeline, alone.family, alone.class_name) == (
        False,
        None,
        "VDMiniUNetSpatioTemporalConditionModel",
    )
    assert alone.pruned[0].num_parameters == describe_model(student).pruned[0].num_parameters
    shutil.copytree(student / "unet", tmp_path / "denoiser" / "unet")
    assert [part.name for part in describe_model(tmp_path / "denoiser").pruned] == ["unet"]


def test_a_vae_with_a_pruned_decoder_in_its_pipeline(student, tmp_path):
    teacher = randomise(tiny_teacher_vae("temporal"), 1)
    teacher.save_pretrained(tmp_path / "teacher")
    plan = tiny_decoder_plans("temporal")["folds"]
    folder = shutil.copytree(student, tmp_path / "student")
    shutil.rmtree(folder / "vae")
    prune_vae_decoder(tmp_path / "teacher", folder / "vae", plan=plan, subfolder="")
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"] = ["autoencoder_kl_vdmini", "VDMiniAutoencoderKLTemporalDecoder"]
    (folder / "model_index.json").write_text(json.dumps(index))
    described = describe_model(folder)
    vae = component(described, "vae")
    assert [part.name for part in described.pruned] == ["unet", "vae"]
    assert vae.num_teacher_parameters == teacher.num_parameters() > vae.num_parameters
    assert (vae.sketch.network, vae.sketch.count("removed"), vae.sketch.count("narrowed") > 0) == (
        "VAE decoder",
        5,
        True,
    )
    assert "vae/autoencoder_kl_vdmini.py" in described.code_files
    assert draw_model(described) != draw_model(describe_model(student))


def test_licence_training_and_base_model_come_from_its_files(student, tmp_path):
    folder = shutil.copytree(student, tmp_path / "student")
    assert describe_model(folder).license == {} and describe_model(folder).training is None
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: svd\nbase_model: a/b\n---\n")
    settings = {"student": "x", "teacher": "y", "lambda_icd": 0.1, "lambda_mca": 0, "lambda_data_critic": 1.0}
    (folder / "training.json").write_text(json.dumps(settings))
    described = describe_model(folder)
    assert described.license == {"license": "other", "license_name": "svd"} and described.base_model == ("a/b",)
    assert described.training.is_distilled
    assert described.training.losses == ("task (single_step)", "ICD x 0.1", "data critic x 1")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "unet" / "config.json").write_text("{"), "JSON"),
        (lambda f: (f / "unet" / "pruning_plan.json").write_text("{}"), "kind"),
        (lambda f: shutil.rmtree(f / "vae"), "'vae', which is missing"),
        (lambda f: (f / "model_index.json").write_text("[]"), "object"),
        (lambda f: (f / "model_index.json").write_text("{}"), "names no pipeline class"),
        (lambda f: cut(f / "unet" / "diffusion_pytorch_model.safetensors"), "truncated"),
        (lambda f: (f / "unet" / "config.json").write_text("{}"), "do not fit together"),
        (lambda f: (f / "model_index.json").write_text('{"_class_name": ["../x", "Y"]}'), "file of its pipeline"),
        (lambda f: (f / "model_index.json").unlink(), "pipeline"),
    ],
)
def test_damage_is_named(teacher_folder, student, tmp_path, damage, said):
    folder = shutil.copytree(student, tmp_path / "student")
    if said == "pipeline":
        folder = shutil.copytree(teacher_folder, tmp_path / "teacher")
    damage(folder)
    with pytest.raises(ValueError, match=said):
        describe_model(folder)


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"model_index\.json is missing"):
        describe_model(tmp_path)
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="single file"):
        describe_model(tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="neither a folder nor the id"):
        describe_model(tmp_path / "nothing")


def test_the_picture_is_of_what_was_pruned(students):
    for _, student in students.values():
        assert draw_model(describe_model(student)).startswith(b"\x89PNG")
    unknown = describe_model(students["i2v"][1] / "vae")
    assert draw_model(unknown) is None


def run_info(*arguments):
    app = Typer()
    app.command()(info_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


def test_the_command_prints_it_and_writes_the_picture(student, tmp_path):
    result = run_info(student, "--picture", tmp_path / "of" / "it.png")
    assert result.exit_code == 0, result.output
    for said in ("Stable Video Diffusion", "vdmini (unet)", "tiny-svd, a local folder", "pruned and not trained"):
        assert said in result.output
    assert "D.0 ■■ □□" in result.output and "M   removed" in result.output
    assert (tmp_path / "of" / "it.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_says_where_nothing_can_be_drawn(student, tmp_path):
    result = run_info(student / "vae", "--picture", tmp_path / "it.png")
    assert isinstance(result.exception, ValueError) and not (tmp_path / "it.png").exists()


@pytest.mark.slow
def test_of_a_repository_only_small_files_and_headers_are_fetched(student, tmp_path):
    (tmp_path / "hub").mkdir()
    with FakeHub(tmp_path / "hub") as hub:
        files = {
            path.relative_to(student).as_posix(): path.read_bytes() for path in student.rglob("*") if path.is_file()
        }
        commit = hub.commit("org/vdmini", files)
        found = run_python(
            """
import json
from vdmini_diffusers.publishing.model_info import describe_model
info = describe_model("org/vdmini")
print(json.dumps([info.commit, info.family.name, [[p.name, p.num_parameters] for p in info.components]]))
""",
            home=tmp_path,
            endpoint=hub.endpoint,
        )
    here = describe_model(student)
    assert found == [commit, here.family.name, [[part.name, part.num_parameters] for part in here.components]]
    weights = {name: len(content) for name, content in files.items() if name.endswith(".safetensors")}
    assert 0 < sum(hub.sent[name] for name in weights) < sum(weights.values()) / 4
    assert not [name for name in hub.sent if name.endswith(".py")]
