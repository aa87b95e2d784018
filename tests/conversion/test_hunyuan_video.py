"""HunyuanVideo's pipeline, pruned: the student is a folder that stock diffusers opens."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from tiny_hunyuan_video import TINY_PLAN, tiny_hunyuan_inputs, tiny_hunyuan_pipeline
from torch import nn

from vdmini_diffusers.distillation.feature_taps import FeatureTaps
from vdmini_diffusers.pruning import VDMINI_HY, VDMINI_UNET, PruningPlanError
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline, survey_pipeline


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hunyuan") / "teacher"
    tiny_hunyuan_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def student_folder(teacher_folder):
    return prune_pipeline(teacher_folder, teacher_folder.parent / "student", TINY_PLAN)


@torch.no_grad()
def test_the_student_is_the_teacher_with_its_blocks_deleted(teacher_folder, student_folder):
    pipe = DiffusionPipeline.from_pretrained(student_folder)
    assert type(pipe) is HunyuanVideoPipeline
    assert type(pipe.transformer) is HunyuanVideoTransformer3DModel
    teacher = HunyuanVideoTransformer3DModel.from_pretrained(teacher_folder, subfolder="transformer")
    whole = teacher(**tiny_hunyuan_inputs()).sample
    teacher.transformer_blocks = nn.ModuleList(teacher.transformer_blocks[i] for i in (0, 2))
    teacher.single_transformer_blocks = nn.ModuleList(teacher.single_transformer_blocks[i] for i in (1, 3, 4))
    expected = teacher(**tiny_hunyuan_inputs()).sample
    assert torch.equal(pipe.transformer(**tiny_hunyuan_inputs()).sample, expected)
    assert not torch.allclose(whole, expected)


@torch.no_grad()
def test_both_streams_of_every_pair_have_equal_shapes(teacher_folder, student_folder):
    networks = [
        HunyuanVideoTransformer3DModel.from_pretrained(folder, subfolder="transformer")
        for folder in (student_folder, teacher_folder)
    ]
    pairs = TINY_PLAN.feature_pairs(networks[1].config)
    found = []
    for network, names in zip(networks, zip(*pairs, strict=True), strict=True):
        with FeatureTaps(network, names) as features:
            network(**tiny_hunyuan_inputs())
        found.append([tuple(features[name].shape) for name in names])
    assert found[0] == found[1]
    assert set(found[0]) == {(2, 12, 20), (2, 5, 20)}  # video and text tokens


@torch.no_grad()
def test_a_pair_s_teacher_side_is_what_the_next_kept_block_is_given(teacher_folder):
    """So a student whose features agree gives its blocks the inputs for which they were trained."""
    teacher = HunyuanVideoTransformer3DModel.from_pretrained(teacher_folder, subfolder="transformer")
    kept = [f"{name}.{i}" for name, indices in TINY_PLAN.blocks.items() for i in indices]
    order = sorted(kept, key=lambda name: (name.startswith("single"), name))
    given = {}
    for name in order[1:]:
        teacher.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: given.__setitem__(name, args[:2])
        )
    pairs = TINY_PLAN.feature_pairs(teacher.config)
    with FeatureTaps(teacher, [name for _, name in pairs]) as features:
        teacher(**tiny_hunyuan_inputs())
    assert len(pairs) == 2 * len(order) - 1  # nothing reads the text after the last block
    read = tiny_hunyuan_inputs()["encoder_attention_mask"].bool()  # nor its padding, which is zero among the features
    for following, (video, text) in zip(order[1:], zip(pairs[0::2], pairs[1::2], strict=False), strict=True):
        assert torch.equal(features[video[1]], given[following][0])
        assert torch.equal(features[text[1]][read], given[following][1][read])


@torch.no_grad()
def test_the_student_s_pipeline_makes_videos(student_folder):
    pipe = HunyuanVideoPipeline.from_pretrained(student_folder)
    pipe.set_progress_bar_config(disable=True)
    template = {"template": "{}", "crop_start": 0}
    video = pipe(
        "a cat", height=16, width=16, num_frames=5, num_inference_steps=1, prompt_template=template,
        max_sequence_length=8, output_type="pt",
    ).frames  # fmt: skip
    assert video.shape == (1, 5, 3, 16, 16) and video.isfinite().all()


def test_the_rest_of_the_folder_is_the_teacher_s(teacher_folder, student_folder):
    for file in sorted(path for path in teacher_folder.rglob("*") if path.is_file()):
        name = file.relative_to(teacher_folder)
        if name.parts[0] != "transformer" and name.name != "model_index.json" and file.suffix != ".safetensors":
            assert (student_folder / name).read_bytes() == file.read_bytes()
    index = json.loads((student_folder / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "HunyuanVideoTransformer3DModel"]
    card = (student_folder / "README.md").read_text()
    assert "the indices are those of this package" in card and "`single_transformer_blocks.2`" in card


def test_plans_that_do_not_fit_are_refused_and_leave_nothing(teacher_folder):
    for plan, message in (
        (VDMINI_HY, r"keeps transformer_blocks\.19; the teacher's"),
        (VDMINI_UNET, "is a unet plan"),
    ):
        with pytest.raises(PruningPlanError, match=message):
            prune_pipeline(teacher_folder, teacher_folder.parent / "refused", plan)
        with pytest.raises(PruningPlanError, match=message):
            survey_pipeline(teacher_folder, plan)
    assert not (teacher_folder.parent / "refused").exists()
