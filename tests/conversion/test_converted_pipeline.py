"""A teacher's folder becomes a student's folder that equals, bit for bit, what diffusers and torch would have made."""

import importlib.resources
import json
import shutil

import huggingface_hub
import pytest
import safetensors.torch
import torch
from checkout import ROOT
from diffusers import DiffusionPipeline, StableVideoDiffusionPipeline, UNetSpatioTemporalConditionModel
from forked_scripts import start
from tiny import tiny_svd_pipeline, tiny_unet_inputs
from torch import nn

from vdmini_diffusers import VDMiniI2VPipeline, VDMiniUNetSpatioTemporalConditionModel, __version__
from vdmini_diffusers.pruning import VDMINI_UNET, PruningPlan, UNetPruningPlan
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline, survey_pipeline
from vdmini_diffusers.serialization.hashes import sha256_of


UNET_FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def student_folder(teacher_folder, tmp_path_factory):
    return prune_pipeline(teacher_folder, tmp_path_factory.mktemp("students") / "tiny-vdmini")


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def saved_by_diffusers(teacher_folder, folder, **kwargs):
    """The student that diffusers alone makes: load the teacher, copy the state, save."""
    teacher = UNetSpatioTemporalConditionModel.from_pretrained(teacher_folder / "unet")
    student = VDMiniUNetSpatioTemporalConditionModel(**VDMINI_UNET.student_config(teacher.config))
    weights = VDMINI_UNET.weight_map(student.state_dict())
    state = teacher.state_dict()
    student.load_state_dict({new: state[old] for new, old in weights.items()}, strict=True)
    student.save_pretrained(folder, **kwargs)
    return student


def weight_files(folder):
    return {name: content for name, content in files_of(folder).items() if name.startswith("diffusion_pytorch_model")}


@pytest.mark.parametrize("kwargs", [{}, {"max_shard_size": "2MB"}], ids=["single", "sharded"])
def test_unet_files_are_byte_equal_to_what_save_pretrained_writes(teacher_folder, tmp_path, kwargs):
    saved_by_diffusers(teacher_folder, tmp_path / "expected", **kwargs)
    prune_pipeline(teacher_folder, tmp_path / "student", **kwargs)
    expected = weight_files(tmp_path / "expected")
    assert len(expected) == 1 or len(expected) > 3
    assert weight_files(tmp_path / "student" / "unet") == expected
    config = "unet/config.json"
    assert (tmp_path / "student" / config).read_bytes() == (tmp_path / "expected" / "config.json").read_bytes()


def test_every_student_tensor_is_bit_equal_to_the_teachers(teacher_folder, student_folder):
    teacher = safetensors.torch.load_file(teacher_folder / "unet" / UNET_FILE)
    student = safetensors.torch.load_file(student_folder / "unet" / UNET_FILE)
    weights = VDMINI_UNET.weight_map(student)
    for new, old in weights.items():
        assert student[new].dtype == teacher[old].dtype
        assert torch.equal(student[new], teacher[old]), new


def test_output_is_bit_equal_to_the_teacher_with_the_blocks_cut_out_by_hand(teacher_folder, student_folder):
    unet = UNetSpatioTemporalConditionModel.from_pretrained(teacher_folder / "unet").eval()
    unet.down_blocks = unet.down_blocks[:3]
    unet.down_blocks[2].downsamplers = None
    for block in unet.down_blocks[:2]:
        block.resnets, block.attentions = block.resnets[:1], block.attentions[:1]

    class Nothing(nn.Module):
        def forward(self, hidden_states, **kwargs):
            return hidden_states

    unet.mid_block = Nothing()
    unet.up_blocks = unet.up_blocks[1:]
    for block in unet.up_blocks[1:]:
        block.resnets = nn.ModuleList([block.resnets[0], block.resnets[2]])
        block.attentions = nn.ModuleList([block.attentions[0], block.attentions[2]])
    student = VDMiniUNetSpatioTemporalConditionModel.from_pretrained(student_folder / "unet").eval()
    with torch.no_grad():
        for parameter in (*unet.parameters(), *student.parameters()):
            parameter.data = parameter.data.clone()  # equal alignment in memory: the last bits depend on it
        expected, actual = unet(*tiny_unet_inputs()).sample, student(*tiny_unet_inputs()).sample
    assert expected.std() > 0.01
    assert torch.equal(actual, expected)


def test_other_components_are_byte_equal_to_the_teachers(teacher_folder, student_folder):
    teacher, student = files_of(teacher_folder), files_of(student_folder)
    others = [name for name in teacher if "/" in name and not name.startswith("unet/")]
    assert len(others) == 6
    assert {name: student[name] for name in others} == {name: teacher[name] for name in others}


def test_both_doors_open_the_folder(student_folder):
    pipe = VDMiniI2VPipeline.from_pretrained(student_folder)
    assert type(pipe) is VDMiniI2VPipeline
    assert type(pipe.unet) is VDMiniUNetSpatioTemporalConditionModel
    by_code = DiffusionPipeline.from_pretrained(student_folder, trust_remote_code=True)
    assert type(by_code).__name__ == "VDMiniI2VPipeline"
    assert torch.equal(by_code.unet.conv_in.weight, pipe.unet.conv_in.weight)


def test_index_and_code_are_what_the_pipeline_itself_saves(student_folder, tmp_path):
    VDMiniI2VPipeline.from_pretrained(student_folder).save_pretrained(tmp_path / "again")
    again, student = files_of(tmp_path / "again"), files_of(student_folder)
    assert again.keys() == student.keys()
    for name in student:
        if name.endswith("config.json") or name == "model_index.json":  # diffusers adds where it was loaded from
            saved = {key: value for key, value in json.loads(again[name]).items() if key != "_name_or_path"}
            assert saved == json.loads(student[name]), name
        else:
            assert again[name] == student[name], name


def test_fp16_variant_keeps_dtype_and_name(tmp_path):
    tiny_svd_pipeline().to(torch.float16).save_pretrained(tmp_path / "teacher", variant="fp16")
    prune_pipeline(tmp_path / "teacher", tmp_path / "student", variant="fp16")
    unet = VDMiniI2VPipeline.from_pretrained(tmp_path / "student", variant="fp16").unet
    tensors = safetensors.torch.load_file(tmp_path / "student/unet/diffusion_pytorch_model.fp16.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert torch.equal(unet.conv_in.weight, tensors["conv_in.weight"].float())


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_teacher_gives_the_same_student_as_a_single_file(teacher_folder, student_folder, tmp_path, variant):
    pipe = StableVideoDiffusionPipeline.from_pretrained(teacher_folder)
    pipe.save_pretrained(tmp_path / "sharded", max_shard_size="3MB", variant=variant)
    assert len(list((tmp_path / "sharded" / "unet").glob("*.safetensors"))) > 3
    prune_pipeline(tmp_path / "sharded", tmp_path / "student", variant=variant)
    name = f"diffusion_pytorch_model{'.fp16' if variant else ''}.safetensors"
    assert (tmp_path / "student/unet" / name).read_bytes() == (student_folder / "unet" / UNET_FILE).read_bytes()


def test_shards_in_diffusers_former_spelling_of_variants_are_read(teacher_folder, student_folder, tmp_path):
    folder = tmp_path / "legacy"
    shutil.copytree(teacher_folder, folder)
    for file in (folder / "vae" / UNET_FILE, folder / "image_encoder" / "model.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    state = safetensors.torch.load_file(folder / "unet" / UNET_FILE)
    (folder / "unet" / UNET_FILE).unlink()
    halves = {}
    for i, key in enumerate(state):
        shard = f"diffusion_pytorch_model-0000{i % 2 + 1}-of-00002.fp16.safetensors"
        halves.setdefault(shard, {})[key] = state[key]
    for shard, tensors in halves.items():
        safetensors.torch.save_file(tensors, folder / "unet" / shard)
    index = {"metadata": {}, "weight_map": {key: shard for shard, tensors in halves.items() for key in tensors}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text(json.dumps(index))
    prune_pipeline(folder, tmp_path / "student", variant="fp16")
    name = "diffusion_pytorch_model.fp16.safetensors"
    assert (tmp_path / "student/unet" / name).read_bytes() == (student_folder / "unet" / UNET_FILE).read_bytes()


def test_a_plan_that_keeps_everything_keeps_every_byte(teacher_folder, tmp_path):
    plan = UNetPruningPlan.keep_everything(json.loads((teacher_folder / "unet/config.json").read_text()))
    prune_pipeline(teacher_folder, tmp_path / "student", plan=plan)
    name = f"unet/{UNET_FILE}"
    assert (tmp_path / "student" / name).read_bytes() == (teacher_folder / name).read_bytes()


def test_provenance_has_real_hashes_and_no_path_of_this_machine(teacher_folder, student_folder):
    text = (student_folder / "unet/pruning_provenance.json").read_text()
    record = json.loads(text)
    assert str(teacher_folder.parent) not in text + (student_folder / "README.md").read_text()
    assert record["teacher"]["name"] == "tiny-svd"
    assert record["package_version"] == __version__
    for name, entry in record["teacher"]["files"].items():
        file = teacher_folder / name
        assert entry == {"size": file.stat().st_size, "sha256": sha256_of(file)}
    assert set(record["teacher"]["files"]) == set(files_of(teacher_folder))
    assert PruningPlan.from_json_string((student_folder / "unet/pruning_plan.json").read_text()) == VDMINI_UNET


def test_dropped_blocks_and_counts_add_up(teacher_folder, student_folder):
    record = json.loads((student_folder / "unet/pruning_provenance.json").read_text())
    counts, dropped = record["num_parameters"], record["dropped_blocks"]
    unet = VDMiniUNetSpatioTemporalConditionModel.from_pretrained(student_folder / "unet")
    assert counts["student"] == unet.num_parameters()
    assert counts["teacher"] == counts["student"] + sum(dropped.values())
    blocks = "D.0.A.1 D.0.R.1 D.1.A.1 D.1.R.1 D.2.downsamplers D.3 M U.0 U.2.A.1 U.2.R.1 U.3.A.1 U.3.R.1"
    assert list(dropped) == blocks.split()


def test_full_size_survey_has_the_papers_numbers(tmp_path):
    with torch.device("meta"):
        UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20)).save_config(tmp_path / "unet")
    index = StableVideoDiffusionPipeline.config_name
    tiny = tiny_svd_pipeline()
    tiny.save_config(tmp_path)
    assert (tmp_path / index).exists()
    survey = survey_pipeline(tmp_path)["unet"]
    assert len(survey.weights) == 898
    assert survey.num_teacher_parameters == 1_524_623_082
    assert survey.num_student_parameters == 939_884_186


def test_model_card_is_valid_and_speaks_of_this_conversion(student_folder):
    card = huggingface_hub.ModelCard.load(student_folder / "README.md")
    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "image-to-video"
    assert (card.data.license, card.data.license_name) == ("other", "inherited-from-the-teacher")
    record = json.loads((student_folder / "unet/pruning_provenance.json").read_text())
    for phrase in (
        f"{record['num_parameters']['student']:,}",
        "inherits the teacher's licence",
        "VDMiniI2VPipeline.from_pretrained",
        "trust_remote_code=True",
        "Do **not** open",
        "| `U.0` |",
    ):
        assert phrase in card.text
    assert "$" not in card.text


def test_licence_and_notice_of_the_teacher_travel(teacher_folder, tmp_path):
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    card = "---\nlicense: other\nlicense_name: svd-community\nlicense_link: LICENSE.md\n---\nA teacher.\n"
    (tmp_path / "teacher/README.md").write_text(card)
    (tmp_path / "teacher/LICENSE.md").write_text("Only for good.")
    (tmp_path / "teacher/NOTICE").write_text("By them.")
    (tmp_path / "teacher/notes.txt").write_text("private")
    prune_pipeline(tmp_path / "teacher", tmp_path / "student")
    data = huggingface_hub.ModelCard.load(tmp_path / "student/README.md").data
    assert (data.license, data.license_name, data.license_link) == ("other", "svd-community", "LICENSE.md")
    assert (tmp_path / "student/LICENSE.md").read_text() == "Only for good."
    assert (tmp_path / "student/NOTICE").read_text() == "By them."
    assert not (tmp_path / "student/notes.txt").exists()


def test_pickled_teacher_needs_consent_and_gives_the_same_student(teacher_folder, student_folder, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(teacher_folder, folder)
    state = safetensors.torch.load_file(folder / "unet" / UNET_FILE)
    torch.save(state, folder / "unet/diffusion_pytorch_model.bin")
    (folder / "unet" / UNET_FILE).unlink()
    with pytest.raises(ValueError, match=r"unet/diffusion_pytorch_model\.bin is a pickle.*--allow_pickle"):
        prune_pipeline(folder, tmp_path / "student")
    assert [path.name for path in tmp_path.iterdir()] == ["pickled"]
    prune_pipeline(folder, tmp_path / "student", allow_pickle=True)
    name = f"unet/{UNET_FILE}"
    assert (tmp_path / "student" / name).read_bytes() == (student_folder / name).read_bytes()
    files = json.loads((tmp_path / "student/unet/pruning_provenance.json").read_text())["teacher"]["files"]
    pickled = folder / "unet/diffusion_pytorch_model.bin"
    assert files["unet/diffusion_pytorch_model.bin"]["sha256"] == sha256_of(pickled)
    assert set(files_of(tmp_path / "student")) == set(files_of(student_folder))


def test_script_dry_run_prints_and_writes_nothing(teacher_folder, tmp_path):
    printed = run_script(tmp_path / "log", teacher_folder, tmp_path / "student", "--dry_run")
    assert "teacher 4,317,162 parameters\nstudent 2,645,082 parameters\n" in printed
    assert "removes D.3 (" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_script_takes_a_plan_from_a_file(teacher_folder, tmp_path):
    plan = UNetPruningPlan.keep_everything(json.loads((teacher_folder / "unet/config.json").read_text()))
    (tmp_path / "plan.json").write_text(plan.to_json_string())
    flags = "--plan", tmp_path / "plan.json", "--max_shard_size", "9MB"
    run_script(tmp_path / "log", teacher_folder, tmp_path / "student", *flags)
    assert len(list((tmp_path / "student/unet").glob("diffusion_pytorch_model-0000?-of-0000?.safetensors"))) >= 2


def run_script(log, teacher, output_dir, *flags):
    """In a process of its own; returns what it printed."""
    script = ROOT / "conversion/convert_svd_to_vdmini.py"
    command = [script, "--pretrained_model_name_or_path", teacher, "--output_dir", output_dir, *flags]
    process = start(command, log=log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    return log.read_text()


def test_model_card_template_is_package_data():
    template = importlib.resources.files("vdmini_diffusers.model_cards") / "vdmini_i2v.md"
    assert template.read_text() == (ROOT / "model_cards/vdmini_i2v.md").read_text()
