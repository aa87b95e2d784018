"""Stock video pipelines, pruned: each is opened by its own class, and its transformer by `AutoModel`."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    AutoModel,
    ClassifierFreeGuidance,
    DiffusionPipeline,
    SkipLayerGuidance,
)
from fresh_python import run_python
from tiny import in_own_memory, randomise
from tiny_video_transformers import TRANSFORMERS, cut_by_hand, outputs, tiny_transformer
from tiny_wan import tiny_t5_tokenizer, tiny_wan_pipeline, tiny_wan_vae
from torch import nn

from vdmini_diffusers.families import FAMILIES, family_of
from vdmini_diffusers.families.block_lists import BLOCK_LISTS
from vdmini_diffusers.families.stock import PIPELINES
from vdmini_diffusers.pruning import MiddleRule, PruningPlanError, TransformerPruningPlan
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline, survey_pipeline
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError


def available() -> list[str]:
    """The pipelines that the installed packages can make."""
    found = []
    for name in (name for names in PIPELINES.values() for name in names):
        try:
            family_of(name)
        except ValueError:
            continue
        found.append(name)
    own_files = [f for f in FAMILIES if any(d.plan_kind == "transformer" for d in f.denoisers.values())]
    return list(dict.fromkeys([f.layout.class_names[0] for f in own_files] + found))


PIPELINE_NAMES = available()


def transformer_of(pipeline_name):
    (kinds, *_) = family_of(pipeline_name).denoisers.values()
    return kinds.student.__name__


def tiny_pipeline(name):
    """With its transformers, and without all else that its class can do without."""
    family = family_of(name)
    parts = dict.fromkeys(family.layout.components)
    parts |= {denoiser: tiny_transformer(transformer_of(name)) for denoiser in family.denoisers}
    if name.startswith(("Cosmos2_5", "Cosmos3")):
        parts["vae"] = tiny_wan_vae()
    if name.startswith("Cosmos3"):
        parts["text_tokenizer"] = tiny_t5_tokenizer()
    if name.startswith("HunyuanVideo15"):
        vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1)
        parts["vae"] = randomise(vae).eval()
    if not name.startswith("Cosmos"):
        return family.pipeline(**parts)
    pipe = family.pipeline(**{**parts, "safety_checker": nn.Identity()})  # else it would be downloaded
    pipe.register_modules(safety_checker=None)
    return pipe


def reopened(name, folder):
    index = json.loads((folder / "model_index.json").read_text())
    nulls = {part: None for part in family_of(name).layout.components if index[part] == [None, None]}
    if name.startswith("Cosmos"):
        nulls["safety_checker"] = nn.Identity()
    return family_of(name).pipeline.from_pretrained(folder, **nulls)


def check_pruned(name, tmp_path):
    pipe = tiny_pipeline(name)
    pipe.save_pretrained(tmp_path / "teacher")
    class_name = transformer_of(name)
    tiny = TRANSFORMERS[class_name]
    plan = TransformerPruningPlan("tiny", class_name, tiny.kept)
    student = prune_pipeline(tmp_path / "teacher", tmp_path / "student", plan)
    opened = reopened(name, student)
    for denoiser in family_of(name).denoisers:
        expected = outputs(cut_by_hand(getattr(pipe, denoiser), tiny), tiny)
        for transformer in (getattr(opened, denoiser), AutoModel.from_pretrained(str(student), subfolder=denoiser)):
            assert type(transformer).__name__ == class_name and type(transformer).__module__.startswith("diffusers.")
            assert all(map(torch.equal, outputs(in_own_memory(transformer), tiny), expected))
    return student


# A pipeline for each way in which blocks stand in lists, and all of them.
KINDS = {BLOCK_LISTS[transformer_of(name)]: name for name in reversed(PIPELINE_NAMES)}


@pytest.mark.parametrize("name", KINDS.values())
def test_a_pipeline_of_every_kind_of_block_lists(name, tmp_path):
    check_pruned(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINE_NAMES)
def test_every_pipeline(name, tmp_path):
    check_pruned(name, tmp_path)


@pytest.mark.slow
def test_students_are_opened_where_our_package_is_not_installed(tmp_path):
    names = {transformer_of(name): name for name in reversed(PIPELINE_NAMES)}.values()
    students = {}
    for name in names:
        (tmp_path / name).mkdir()
        students[name] = check_pruned(name, tmp_path / name)
    script = """
import json, sys
import diffusers, torch
from torch import nn
from diffusers import AutoModel, DiffusionPipeline
found = {}
for name, folder in json.loads(sys.argv[1]).items():
    index = json.load(open(f"{folder}/model_index.json"))
    nulls = {part: None for part, entry in index.items() if entry == [None, None]}
    if name.startswith("Cosmos"):
        nulls["safety_checker"] = nn.Identity()
    pipe = DiffusionPipeline.from_pretrained(folder, **nulls)
    model = AutoModel.from_pretrained(folder, subfolder="transformer")
    found[name] = [type(pipe).__name__, type(model).__name__, sum(t.numel() for t in model.state_dict().values())]
print(json.dumps(found))
"""
    found = run_python(script, json.dumps({n: str(f) for n, f in students.items()}), home=tmp_path, package=False)
    for name, folder in students.items():
        record = json.loads((folder / "transformer" / "pruning_provenance.json").read_text())
        assert found[name] == [name, transformer_of(name), record["num_parameters"]["student"]]


def test_a_guider_that_names_blocks_by_their_index_is_refused(tmp_path):
    pipe = tiny_pipeline("MotifVideoPipeline")
    pipe.register_modules(guider=SkipLayerGuidance(skip_layer_guidance_layers=[1]))
    pipe.save_pretrained(tmp_path / "teacher")
    with pytest.raises(CheckpointError, match=r"guider_config\.json names blocks by their index \(`skip_layer_\w+`\)"):
        prune_pipeline(tmp_path / "teacher", tmp_path / "student")
    pipe.register_modules(guider=ClassifierFreeGuidance(guidance_scale=3.5))
    pipe.save_pretrained(tmp_path / "teacher")
    student = prune_pipeline(tmp_path / "teacher", tmp_path / "student")
    assert reopened("MotifVideoPipeline", student).guider.config.guidance_scale == 3.5


@pytest.fixture(scope="module")
def wan_folder(tmp_path_factory):
    """Wan 2.2's layout, complete."""
    folder = tmp_path_factory.mktemp("wan") / "teacher"
    tiny_wan_pipeline().save_pretrained(folder)
    return folder


class TestWan:
    @torch.no_grad()
    def test_both_transformers_are_pruned_and_the_pipeline_makes_videos(self, wan_folder, tmp_path):
        student = prune_pipeline(wan_folder, tmp_path / "student", MiddleRule("half", keep=0.5))
        pipe = DiffusionPipeline.from_pretrained(student)
        assert type(pipe).__name__ == "WanPipeline" and pipe.config.boundary_ratio == 0.875
        for name in ("transformer", "transformer_2"):
            teacher = AutoModel.from_pretrained(str(wan_folder), subfolder=name)
            teacher.blocks = nn.ModuleList(teacher.blocks[i] for i in (0, 3))
            tiny = TRANSFORMERS["WanTransformer3DModel"]
            assert torch.equal(outputs(getattr(pipe, name), tiny)[0], outputs(teacher, tiny)[0])
        pipe.set_progress_bar_config(disable=True)
        options = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2, "max_sequence_length": 8}
        video = pipe("a cat", negative_prompt="", output_type="pt", **options).frames
        assert video.shape == (1, 5, 3, 16, 16) and video.isfinite().all()

    def test_the_card_and_the_records_are_of_both(self, wan_folder, tmp_path):
        student = prune_pipeline(wan_folder, tmp_path / "student")
        records = [
            json.loads((student / name / "pruning_provenance.json").read_text())
            for name in ("transformer", "transformer_2")
        ]
        assert records[0]["num_parameters"] == records[1]["num_parameters"]
        card = (student / "README.md").read_text()
        assert f"{2 * records[0]['num_parameters']['student']:,}" in card
        assert "| `transformer.blocks.2` |" in card and "| `transformer_2.blocks.2` |" in card
        assert card.count('"name": "middle"') == 1

    @pytest.mark.parametrize("present", ["transformer", "transformer_2"])
    def test_a_component_that_is_null_stays_null(self, tmp_path, present):
        tiny_wan_pipeline((present,)).save_pretrained(tmp_path / "teacher")
        student = prune_pipeline(tmp_path / "teacher", tmp_path / "student")
        (absent,) = {"transformer", "transformer_2"} - {present}
        assert json.loads((student / "model_index.json").read_text())[absent] == [None, None]
        assert not (student / absent).exists()
        pipe = DiffusionPipeline.from_pretrained(student)
        assert getattr(pipe, absent) is None and len(getattr(pipe, present).blocks) == 3
        assert list(survey_pipeline(tmp_path / "teacher")) == [present]

    def test_a_component_that_an_older_index_does_not_name(self, wan_folder, tmp_path):
        teacher = shutil.copytree(wan_folder, tmp_path / "teacher")
        shutil.rmtree(teacher / "transformer_2")
        index = json.loads((teacher / "model_index.json").read_text())
        del index["transformer_2"]
        (teacher / "model_index.json").write_text(json.dumps(index))
        assert DiffusionPipeline.from_pretrained(prune_pipeline(teacher, tmp_path / "student")).transformer_2 is None

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"transformer": [None, None], "transformer_2": [None, None]}, "has no transformer nor transformer_2"),
            ({"vae": ["transformers", "AutoencoderKLWan"]}, "'vae' must be a class of diffusers or null, not"),
            (
                {"vae": ["diffusers", "AutoencoderKL"]},
                "'vae' is an AutoencoderKL; this pipeline takes an AutoencoderKLWan",
            ),
            ({"refiner": ["diffusers", "WanTransformer3DModel"]}, "names the component 'refiner'; this pipeline has"),
            ({"_class_name": "FluxPipeline"}, r"'FluxPipeline'; .* conversion/VIDEO_TRANSFORMERS\.md lists them"),
        ],
    )
    def test_indices_that_are_refused(self, wan_folder, tmp_path, change, message):
        teacher = shutil.copytree(wan_folder, tmp_path / "teacher")
        index = json.loads((teacher / "model_index.json").read_text()) | change
        (teacher / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match=message):
            prune_pipeline(teacher, tmp_path / "student")
        assert not (tmp_path / "student").exists()

    def test_plans_that_do_not_fit_are_refused_and_leave_nothing(self, wan_folder, tmp_path):
        skyreels = TransformerPruningPlan("other", "SkyReelsV2Transformer3DModel", {"blocks": (0, 3)})
        beyond = TransformerPruningPlan("beyond", "WanTransformer3DModel", {"blocks": (0, 4)})
        for plan, message in (
            (
                skyreels,
                "'other' is a plan for SkyReelsV2Transformer3DModel, and the teacher is a 'WanTransformer3DModel'",
            ),
            (beyond, r"keeps blocks\.4; the teacher's blocks has 4 blocks"),
            ("vdmini_hy", "is a plan for HunyuanVideoTransformer3DModel"),
            ("vdmini", "'vdmini' is a unet plan"),
        ):
            with pytest.raises(PruningPlanError, match=message):
                prune_pipeline(wan_folder, tmp_path / "student", plan)
        assert list(tmp_path.iterdir()) == []

    def test_a_transformer_that_lacks_a_block(self, wan_folder, tmp_path):

        teacher = shutil.copytree(wan_folder, tmp_path / "teacher")
        file = teacher / "transformer_2" / "diffusion_pytorch_model.safetensors"
        tensors = safetensors.torch.load_file(file)
        safetensors.torch.save_file({k: v for k, v in tensors.items() if not k.startswith("blocks.2.")}, file)
        with pytest.raises(CheckpointError, match=r"transformer_2: the weights lack tensor 'blocks\.2\."):
            prune_pipeline(teacher, tmp_path / "student")
        assert not (tmp_path / "student").exists()
