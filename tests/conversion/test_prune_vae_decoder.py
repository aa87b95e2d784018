"""A VAE's folder becomes that of the VAE with a pruned decoder, equal to the one pruned in memory."""

import json
import shutil

import forked_scripts
import huggingface_hub
import pytest
import safetensors.torch
import torch
from diffusers import StableVideoDiffusionPipeline
from tiny import VAE_CLASSES, decode, tiny_decoder_plans, tiny_image, tiny_latents, tiny_svd_pipeline, tiny_teacher_vae
from written_videos import write_video

from vdmini_diffusers import VDMiniAutoencoderKLTemporalDecoder, VDMiniI2VPipeline, __version__
from vdmini_diffusers.pruning import P1, Q2, DecoderPruningPlan, PruningPlan
from vdmini_diffusers.pruning.channels import empty_decoder, prune_channels, without_layers
from vdmini_diffusers.pruning.prune_vae_decoder import prune_vae_decoder, survey_vae_decoder
from vdmini_diffusers.serialization.hashes import sha256_of
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError


WEIGHTS = "diffusion_pytorch_model.safetensors"
PLANS = {kind: tiny_decoder_plans(kind) for kind in VAE_CLASSES}
PLAN = PLANS["image"]["folds"]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """`<kind>/vae` for both kinds. Read only."""
    folder = tmp_path_factory.mktemp("vaes")
    for kind in VAE_CLASSES:
        tiny_teacher_vae(kind).save_pretrained(folder / kind / "vae")
    return folder


@pytest.fixture
def teacher(teachers, tmp_path):
    """A copy of the smaller one to spoil; the only thing in its parent."""
    return shutil.copytree(teachers / "image", tmp_path / "teacher")


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pruned_in_memory(kind, plan):
    vae = tiny_teacher_vae(kind)
    arguments = (type(vae).__name__, dict(vae.config))
    decoder = without_layers(plan, *arguments, vae.state_dict())
    prune_channels(decoder, empty_decoder(plan, *arguments))
    return vae, decoder


@pytest.mark.parametrize(("kind", "name"), [("temporal", "folds"), ("image", "folds"), ("image", "keeps")])
def test_from_pretrained_gives_the_decoder_that_was_pruned_in_memory_and_the_teacher_s_encoder(
    kind, name, teachers, tmp_path
):
    plan = PLANS[kind][name]
    folder = prune_vae_decoder(teachers / kind, tmp_path / "student", plan=plan)
    student = VAE_CLASSES[kind][1].from_pretrained(folder)
    vae, decoder = pruned_in_memory(kind, plan)
    tensors = student.state_dict()
    assert all(torch.equal(tensors[f"decoder.{key}"], tensor) for key, tensor in decoder.state_dict().items())
    rest = {key: tensor for key, tensor in vae.state_dict().items() if not key.startswith("decoder.")}
    assert all(torch.equal(tensors[key], tensor) for key, tensor in rest.items())
    vae.decoder = decoder
    with torch.no_grad():
        pictures = [decode(v, tiny_latents()) for v in (student, vae)]
    assert pictures[1].std() > 0.01
    torch.testing.assert_close(*pictures, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_shard_size", ["10GB", "100KB"])
def test_files_are_byte_equal_to_what_save_pretrained_writes(max_shard_size, teachers, tmp_path):
    folder = prune_vae_decoder(teachers / "image", tmp_path / "a", plan=PLAN, max_shard_size=max_shard_size)
    VAE_CLASSES["image"][1].from_pretrained(folder).save_pretrained(tmp_path / "b", max_shard_size=max_shard_size)
    ours, theirs = files_of(folder), files_of(tmp_path / "b")
    assert (len([name for name in theirs if name.endswith(".safetensors")]) > 1) == (max_shard_size == "100KB")
    for name, content in theirs.items():
        if name == "config.json":  # diffusers adds where it was loaded from
            content = json.dumps({k: v for k, v in json.loads(content).items() if k != "_name_or_path"})
            assert json.loads(ours[name]) == json.loads(content)
        else:
            assert ours[name] == content, name
    extra = {"README.md", "pruning_channels.json", "pruning_plan.json", "pruning_provenance.json"}
    assert ours.keys() == theirs.keys() | extra


@pytest.mark.parametrize("kind", VAE_CLASSES)
def test_a_plan_that_keeps_everything_keeps_every_byte(kind, teachers, tmp_path):
    config = json.loads((teachers / kind / "vae/config.json").read_text())
    folder = prune_vae_decoder(teachers / kind, tmp_path / "student", plan=DecoderPruningPlan.keep_everything(config))
    assert (folder / WEIGHTS).read_bytes() == (teachers / kind / "vae" / WEIGHTS).read_bytes()


def test_fp16_variant_keeps_dtype_name_and_bits(teachers, tmp_path):
    vae = tiny_teacher_vae("image").half()
    vae.save_pretrained(tmp_path / "teacher/vae", variant="fp16")
    folder = prune_vae_decoder(tmp_path / "teacher", tmp_path / "student", plan=PLAN, variant="fp16")
    tensors = safetensors.torch.load_file(folder / "diffusion_pytorch_model.fp16.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    kept = json.loads((folder / "pruning_channels.json").read_text())
    (kept,) = [entry["kept"] for entry in kept if entry["layers"] == ["up_blocks.0.resnets.0.conv1"]]
    assert torch.equal(
        tensors["decoder.up_blocks.0.resnets.0.conv1.bias"], vae.decoder.up_blocks[0].resnets[0].conv1.bias[kept]
    )


def test_a_vae_at_the_top_of_its_folder_and_in_shards_gives_the_same(teachers, tmp_path):
    expected = prune_vae_decoder(teachers / "image", tmp_path / "a", plan=PLAN)
    tiny_teacher_vae("image").save_pretrained(tmp_path / "vae", max_shard_size="100KB")
    folder = prune_vae_decoder(tmp_path / "vae", tmp_path / "b", plan=PLAN, subfolder="")
    assert (folder / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()


def test_former_names_of_attention_are_read_and_written_as_today(teacher):
    expected = prune_vae_decoder(teacher, teacher.parent / "a", plan=PLANS["image"]["keeps"])
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = safetensors.torch.load_file(teacher / "vae" / WEIGHTS)
    for present, name in former.items():
        tensors = {key.replace(f".{present}.", f".{name}."): tensor for key, tensor in tensors.items()}
    assert "encoder.mid_block.attentions.0.proj_attn.bias" in tensors
    safetensors.torch.save_file(tensors, teacher / "vae" / WEIGHTS)
    folder = prune_vae_decoder(teacher, teacher.parent / "b", plan=PLANS["image"]["keeps"])
    assert (folder / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()


def test_pickled_weights_need_consent_and_give_the_same(teacher):
    expected = prune_vae_decoder(teacher, teacher.parent / "a", plan=PLAN)
    state = safetensors.torch.load_file(teacher / "vae" / WEIGHTS)
    torch.save(state, teacher / "vae/diffusion_pytorch_model.bin")
    (teacher / "vae" / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin is a pickle"):
        prune_vae_decoder(teacher, teacher.parent / "b", plan=PLAN)
    folder = prune_vae_decoder(teacher, teacher.parent / "b", plan=PLAN, allow_pickle=True)
    assert (folder / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
    files = json.loads((folder / "pruning_provenance.json").read_text())["teacher"]["files"]
    assert files["vae/diffusion_pytorch_model.bin"]["sha256"] == sha256_of(teacher / "vae/diffusion_pytorch_model.bin")


def test_provenance_and_card_have_hashes_counts_and_licence_and_no_path_of_this_machine(teacher):
    (teacher / "README.md").write_text("---\nlicense: other\nlicense_name: svd-community\n---\nA teacher.\n")
    (teacher / "LICENSE.md").write_text("Only for good.")
    folder = prune_vae_decoder(teacher, teacher.parent / "student", plan=PLAN)
    text, card = (folder / "pruning_provenance.json").read_text(), huggingface_hub.ModelCard.load(folder / "README.md")
    assert str(teacher.parent) not in text + card.content
    record = json.loads(text)
    assert (record["package_version"], record["importance"], record["plan"]) == (__version__, "l2", "folds")
    assert set(record["teacher"]["files"]) == {"LICENSE.md", "vae/config.json", f"vae/{WEIGHTS}"}
    for name, entry in record["teacher"]["files"].items():
        assert entry == {"size": (teacher / name).stat().st_size, "sha256": sha256_of(teacher / name)}
    student = VAE_CLASSES["image"][1].from_pretrained(folder)
    assert record["num_parameters"]["student"] == sum(p.numel() for p in student.decoder.parameters())
    assert list(record["dropped_blocks"]) == [
        "mid_block.attentions.0",
        "mid_block.resnets.1",
        "up_blocks.1.resnets.1",
        "up_blocks.2.resnets.0.conv_shortcut",
        "up_blocks.3.resnets.0.conv_shortcut",
        "up_blocks.3.resnets.1",
        "up_blocks.3.resnets.2",
    ]
    assert card.data.license_name == "svd-community"
    assert (folder / "LICENSE.md").read_text() == "Only for good."
    assert "VDMiniAutoencoderKL.from_pretrained" in card.text and "$" not in card.text
    assert PruningPlan.from_json_string((folder / "pruning_plan.json").read_text()) == PLAN


def test_taylor_goes_by_the_clips_and_needs_some(teachers, tmp_path):
    clips = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    kept = []
    for name, chosen in (("a", clips), ("b", clips), ("c", clips[:1])):
        folder = prune_vae_decoder(
            teachers / "temporal", tmp_path / name, plan=PLANS["temporal"]["folds"], importance="taylor", clips=chosen
        )
        kept.append((folder / "pruning_channels.json").read_text())
    assert kept[0] == kept[1] != kept[2]
    with pytest.raises(ValueError, match="of which there are none"):
        prune_vae_decoder(teachers / "image", tmp_path / "d", plan=PLAN, importance="taylor")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize(("plan", "expected"), [(P1, 39_411_372), (Q2, 39_157_804)], ids=["P1", "Q2"])
def test_full_size_survey_has_the_known_numbers(plan, expected, tmp_path):
    config = {key: value for key, value in _default_config().items() if not key.startswith("decoder_")}
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text(json.dumps({**config, "_class_name": "AutoencoderKLTemporalDecoder"}))
    survey = survey_vae_decoder(tmp_path, plan)
    assert (survey.num_teacher_parameters, survey.num_student_parameters) == (63_579_183, expected)
    assert survey.student.config["decoder_mid_layers"] == 1


def _default_config():
    with torch.device("meta"):
        return {k: v for k, v in VDMiniAutoencoderKLTemporalDecoder().config.items() if not k.startswith("_")}


def test_a_pipeline_takes_the_pruned_vae_and_saves_it(tmp_path):
    tiny_svd_pipeline().save_pretrained(tmp_path / "teacher")
    plan = DecoderPruningPlan("one", (0,), False, {0: (0,), 1: (1,)}, (32, 32), (32,))
    folder = prune_vae_decoder(tmp_path / "teacher", tmp_path / "vae", plan=plan)
    vae = VDMiniAutoencoderKLTemporalDecoder.from_pretrained(folder)
    pipe = StableVideoDiffusionPipeline.from_pretrained(tmp_path / "teacher", vae=vae)
    VDMiniI2VPipeline(**pipe.components).save_pretrained(tmp_path / "student")
    pipe = VDMiniI2VPipeline.from_pretrained(tmp_path / "student")
    assert type(pipe.vae) is VDMiniAutoencoderKLTemporalDecoder
    pipe.set_progress_bar_config(disable=True)
    assert pipe(tiny_image(), height=16, width=16, num_frames=2, output_type="pt").frames.isfinite().all()


def run_script(tmp_path, *flags):
    log = tmp_path / "log"
    from checkout import ROOT  # skips the test where there is no checkout

    process = forked_scripts.start((ROOT / "conversion/prune_vae_decoder.py", *flags), log=log)
    process.join(120)
    assert process.exitcode == 0, log.read_text()
    return log.read_text()


def test_script_dry_run_prints_and_writes_nothing(teachers, tmp_path):
    (tmp_path / "plan.json").write_text(PLAN.to_json_string())
    flags = ("--output_dir", tmp_path / "student", "--plan", tmp_path / "plan.json", "--dry_run")
    printed = run_script(tmp_path, "--pretrained_model_name_or_path", teachers / "image", *flags)
    assert "teacher's decoder 228,387 parameters\nstudent's decoder " in printed
    assert "removes mid_block.attentions.0 (4,288 parameters)" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "plan.json"]


def test_script_goes_by_videos(teachers, tmp_path):
    (tmp_path / "plan.json").write_text(PLAN.to_json_string())
    (tmp_path / "videos").mkdir()
    for i in range(2):
        write_video(tmp_path / f"videos/{i}.mp4")
    size = ("--num_frames", "2", "--height", "16", "--width", "16", "--num_clips", "2")
    flags = (
        "--plan",
        tmp_path / "plan.json",
        "--importance",
        "taylor",
        "--train_data_dir",
        tmp_path / "videos",
        *size,
    )
    where = ("--pretrained_model_name_or_path", teachers / "image", "--output_dir", tmp_path / "student")
    run_script(tmp_path, *where, *flags)
    assert json.loads((tmp_path / "student/pruning_provenance.json").read_text())["importance"] == "taylor"
    VAE_CLASSES["image"][1].from_pretrained(tmp_path / "student")
