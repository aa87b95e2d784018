"""Every video transformer of the installed diffusers has a row in `BLOCK_LISTS` that works, or a reason why not."""

import functools
import inspect
import types
from typing import Any

import diffusers
import diffusers.models.transformers
import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline, ModelMixin
from tiny import in_own_memory
from tiny_video_transformers import TRANSFORMERS, cut_by_hand, outputs, tiny_transformer

from vdmini_diffusers.distillation.feature_taps import FeatureTaps
from vdmini_diffusers.families import FAMILIES, Denoiser
from vdmini_diffusers.families.block_lists import BLOCK_LISTS, NOT_PRUNED
from vdmini_diffusers.families.stock import PIPELINES, component_types
from vdmini_diffusers.pruning import MIDDLE, PruningPlan, PruningPlanError, TransformerPruningPlan
from vdmini_diffusers.pruning.survey import survey_denoiser


CLASSES = pytest.mark.parametrize("name", TRANSFORMERS)


@functools.cache
def pipelines() -> dict[str, type[Any]]:
    """The pipelines of diffusers by name, but for those that lack an optional package here."""
    found = {name: getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Pipeline")}
    return {name: cls for name, cls in found.items() if inspect.isclass(cls) and issubclass(cls, DiffusionPipeline)}


def transformers_of(pipeline: type[Any]) -> set[str]:
    classes = {cls for found in component_types(pipeline).values() for cls in found if inspect.isclass(cls)}
    return {cls.__name__ for cls in classes if cls.__module__.startswith("diffusers.models.transformers.")}


def video_transformers(namespace: Any = diffusers.models.transformers) -> set[str]:
    """Classes of transformers whose name says video, or that a pipeline with a number of frames is made of."""
    models = {
        name
        for name, cls in vars(namespace).items()
        if inspect.isclass(cls) and issubclass(cls, ModelMixin) and cls is not ModelMixin
    }
    for_frames = {
        name
        for pipeline in pipelines().values()
        if {"num_frames", "video_length"} & set(inspect.signature(pipeline.__call__).parameters)
        for name in transformers_of(pipeline)
    }
    return {name for name in models if "Video" in name or "3D" in name or name in for_frames}


def missing_rows(found: set[str]) -> str:
    new = sorted(found - BLOCK_LISTS.keys() - NOT_PRUNED.keys())
    gone = sorted((BLOCK_LISTS | NOT_PRUNED).keys() - found)
    where = "families/block_lists.py and tests/tiny_video_transformers.py"
    return "".join(
        [
            *(f"{name} is new in diffusers: add a row to {where}, or a reason to NOT_PRUNED. " for name in new),
            *(f"{name} is no longer a video transformer of diffusers: remove its row from {where}. " for name in gone),
        ]
    )


def test_every_video_transformer_has_a_row_or_a_reason():
    assert missing_rows(video_transformers()) == ""
    assert TRANSFORMERS.keys() == BLOCK_LISTS.keys()
    assert not BLOCK_LISTS.keys() & NOT_PRUNED.keys()


def test_a_new_video_transformer_would_be_missed():
    # A control for the test above.
    new = type("NewTransformer3DModel", (ModelMixin,), {})
    found = video_transformers(types.SimpleNamespace(NewTransformer3DModel=new, NewTransformer2DModel=new))
    assert found == {"NewTransformer3DModel"}
    assert "NewTransformer3DModel is new in diffusers: add a row to" in missing_rows(video_transformers() | found)
    assert "is no longer a video transformer" in missing_rows(video_transformers() - {"MochiTransformer3DModel"})


def test_every_pipeline_of_such_a_transformer_is_listed():
    made_of = {name for name, cls in pipelines().items() if transformers_of(cls) & BLOCK_LISTS.keys()}
    own_files = {name for family in FAMILIES for name in family.layout.class_names}
    listed = [name for names in PIPELINES.values() for name in names]
    assert made_of - own_files - set(listed) == set(), "add them to PIPELINES in families/stock.py"
    assert len(listed) == len(set(listed))
    # The rest need an optional package, and diffusers knows their names.
    assert {name for name in set(listed) - made_of if not hasattr(diffusers, name)} == set()


def student_of(teacher: Any, plan: PruningPlan) -> Any:
    student = type(teacher).from_config(plan.student_config(teacher.config))
    tensors = teacher.state_dict()
    weights = plan.weight_map(student.state_dict())
    assert len(set(weights.values())) == len(weights)
    student.load_state_dict({name: tensors[source] for name, source in weights.items()})
    return student.eval()


def all_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) > 0 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@CLASSES
def test_the_student_that_stock_diffusers_opens_is_the_teacher_with_blocks_deleted_by_hand(name, tmp_path):
    tiny, teacher = TRANSFORMERS[name], tiny_transformer(name)
    plan = TransformerPruningPlan("tiny", name, tiny.kept)
    whole = outputs(teacher, tiny)
    assert all(output.isfinite().all() for output in whole)
    student_of(teacher, plan).save_pretrained(tmp_path)
    student = in_own_memory(AutoModel.from_pretrained(str(tmp_path)))
    assert type(student) is type(teacher)

    pairs = plan.feature_pairs(teacher.config)
    taps = FeatureTaps(student, [pair[0] for pair in pairs]), FeatureTaps(teacher, [pair[1] for pair in pairs])
    with taps[0] as ours:
        ours_output = outputs(student, tiny)
    with taps[1] as theirs:
        outputs(teacher, tiny)
    assert pairs and all(ours[a].shape == theirs[b].shape for a, b in pairs)
    assert any(not torch.equal(ours[a], theirs[b]) for a, b in pairs)

    by_hand = outputs(cut_by_hand(teacher, tiny), tiny)
    assert all_equal(ours_output, by_hand)
    assert not torch.allclose(by_hand[0], whole[0])


@CLASSES
def test_plans_that_keep_everything_and_plans_that_do_not_fit(name):
    tiny, teacher = TRANSFORMERS[name], tiny_transformer(name)
    config = dict(teacher.config)
    plan = TransformerPruningPlan.keep_everything(name, config)
    assert plan.student_config(config) == {key: value for key, value in config.items() if not key.startswith("_")}
    assert all(ours == theirs for ours, theirs in plan.feature_pairs(config)) and plan.removed_runs(config) == ()
    assert all_equal(outputs(student_of(teacher, plan), tiny), outputs(teacher, tiny))

    beyond = {blocks: (*kept, 99) for blocks, kept in tiny.kept.items()}
    for kept, message in ((beyond, r"\.99; the teacher's .* blocks, which are counted from 0"), *tiny.refused):
        with pytest.raises(PruningPlanError, match=message):
            TransformerPruningPlan("wrong", name, kept).student_config(config)
    with pytest.raises(PruningPlanError, match=f"a plan for {name}, and the teacher is a 'Another'"):
        TransformerPruningPlan("tiny", name, tiny.kept).feature_pairs({**config, "_class_name": "Another"})
    with pytest.raises(PruningPlanError, match="and no 'resnets'"):
        TransformerPruningPlan("wrong", name, {**tiny.kept, "resnets": (0,)})

    counts = {blocks.count for blocks in BLOCK_LISTS[name] if isinstance(config[blocks.count], int)}
    deep = {**config, **dict.fromkeys(counts, 24), "vace_layers": list(range(0, 24, 4))}
    plan = MIDDLE.for_teacher(name, deep)
    removed = [block for run in plan.removed_runs(deep) for block in run]
    assert 0 < len(removed) <= sum(map(len, plan.running_order(deep).values())) / 3


# Where the defaults of a class are not those of the published model, or none.
FULL_SIZE = {
    "EasyAnimateTransformer3DModel": {"in_channels": 33, "out_channels": 16, "patch_size": 2},
    "LatteTransformer3DModel": {
        "attention_head_dim": 72,
        "in_channels": 4,
        "num_layers": 28,
        "patch_size": 2,
        "caption_channels": 4096,
        "cross_attention_dim": 1152,
        "norm_type": "ada_norm_single",
        "num_embeds_ada_norm": 1000,
        "norm_elementwise_affine": False,
    },
}


@pytest.mark.slow
@CLASSES
def test_the_rule_fits_the_full_size(name, tmp_path):
    """What is built from a config is bounded, and the largest of them is within the bounds."""
    cls = getattr(diffusers, name)
    with torch.device("meta"):
        cls(**FULL_SIZE.get(name, {})).save_config(tmp_path)
    survey = survey_denoiser(tmp_path, MIDDLE, Denoiser("transformer", (cls,), cls))
    assert 0.65 < survey.num_student_parameters / survey.num_teacher_parameters < 0.81


def test_the_rule_is_refused_where_nothing_can_go():
    config = TRANSFORMERS["WanAnimate2Transformer3DModel"].config
    with pytest.raises(PruningPlanError, match=r"finds no run of blocks .* Write a plan: a JSON file"):
        MIDDLE.for_teacher("WanAnimate2Transformer3DModel", config)
    with pytest.raises(PruningPlanError, match=r"finds no run of blocks .* with {} blocks"):
        MIDDLE.for_teacher("WanTransformer3DModel", {"num_layers": 0})
    with pytest.raises(PruningPlanError, match="prunes video transformers, of which a FluxTransformer2DModel is none"):
        MIDDLE.for_teacher("FluxTransformer2DModel", {"num_layers": 19})


def test_a_rotary_base_of_millions_is_no_number_of_layers(tmp_path):
    """Cosmos 3 has one, which JSON may hold as a whole number."""
    tiny, cls = TRANSFORMERS["Cosmos3OmniTransformer"], diffusers.Cosmos3OmniTransformer
    with torch.device("meta"):
        cls(**tiny.config, rope_theta=5_000_000).save_config(tmp_path)
    plan = TransformerPruningPlan("tiny", cls.__name__, tiny.kept)
    survey = survey_denoiser(tmp_path, plan, Denoiser("transformer", (cls,), cls))
    assert survey.config["rope_theta"] == 5_000_000
