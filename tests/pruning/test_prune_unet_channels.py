"""A pipeline's folder becomes that of the pipeline with a narrower U-Net, which can be opened and trained."""

import json

import pytest
import torch
from safetensors import safe_open
from tiny import TWO_STAGES, output_of, randomise, tiny_svd_pipeline, tiny_teacher_unet

from vdmini_diffusers import VDMiniI2VPipeline, VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.pruning import ChannelPruningPlan
from vdmini_diffusers.pruning.prune_unet_channels import prune_pipeline_channels
from vdmini_diffusers.pruning.student_folder import check_student, read_plan
from vdmini_diffusers.pruning.unet_channels import CRITERIA, count_parameters, prune_unet_channels
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError


NUM_PARAMETERS = 900_000


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "svd"
    pipe = tiny_svd_pipeline(**TWO_STAGES)
    pipe.to(torch.float16).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.fixture(scope="module")
def student(teacher):
    return prune_pipeline_channels(teacher, teacher.parent / "student", NUM_PARAMETERS, "magnitude_l2")


def test_the_unet_is_the_one_that_was_pruned_in_memory(teacher, student):
    pruned = randomise(tiny_teacher_unet(**TWO_STAGES)).eval().half().float()
    prune_unet_channels(pruned, NUM_PARAMETERS, CRITERIA["magnitude_l2"])
    opened = VDMiniI2VPipeline.from_pretrained(student, dtype=torch.float32, optimize=False).unet.eval()
    assert type(opened) is VDMiniUNetSpatioTemporalConditionModel
    assert abs(count_parameters(opened) / NUM_PARAMETERS - 1) < 0.01
    assert torch.equal(output_of(opened), output_of(pruned))


def test_its_plan_provenance_and_card_describe_it(teacher, student):
    plan, config = read_plan(str(student), "unet"), json.loads((student / "unet" / "config.json").read_text())
    assert isinstance(plan, ChannelPruningPlan)
    check_student(plan, json.loads((teacher / "unet" / "config.json").read_text()), config, "student")
    record = json.loads((student / "unet" / "pruning_provenance.json").read_text())
    assert record["criterion"]["layers"] == "first" and record["num_parameters"]["student"] < 1.01 * NUM_PARAMETERS
    card = (student / "README.md").read_text()
    assert "license: mit" in card and "`magnitude_l2`" in card and "$" not in card
    kept = json.loads((student / "unet" / "pruning_channels.json").read_text())
    assert {"layers", "kept"} == set(kept[0])


def test_the_rest_is_the_teachers_bit_for_bit(teacher, student):
    for path in teacher.rglob("*"):
        name = path.relative_to(teacher)
        if path.is_file() and name.parts[0] not in ("unet", "README.md", "model_index.json"):
            assert (student / name).read_bytes() == path.read_bytes()
    weights = student / "unet" / "diffusion_pytorch_model.safetensors"
    with safe_open(weights, "pt") as file:
        assert file.get_tensor("conv_in.weight").dtype == torch.float16


@pytest.mark.parametrize(
    ("criterion", "losses", "message"),
    [("depgraph", None, "`criterion` is one of"), ("depgraph_taylor", None, "needs `losses`")],
)
def test_what_is_wrong_is_said_before_anything_is_written(criterion, losses, message, teacher, tmp_path):
    with pytest.raises(ValueError, match=message):
        prune_pipeline_channels(teacher, tmp_path / "a", NUM_PARAMETERS, criterion, losses)
    assert not any(tmp_path.iterdir())


def test_a_number_that_cannot_be_reached_leaves_nothing_behind(teacher, tmp_path):
    with pytest.raises(ValueError, match="between 1 and the U-Net's"):
        prune_pipeline_channels(teacher, tmp_path / "a", 10**9, "depgraph_l2")
    assert not any(tmp_path.iterdir())


def test_other_pipelines_are_refused(teacher, tmp_path):
    index = {"_class_name": "WanPipeline"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="channels are pruned of U-Nets of Stable Video Diffusion"):
        prune_pipeline_channels(tmp_path, tmp_path.parent / "a", NUM_PARAMETERS, "depgraph_l2")
