"""VDMini-T2V-HY's transformer: the stock class with fewer blocks, to everyone who opens what it saves."""

import inspect
import json
import shutil

import pytest
import torch
from diffusers import AutoModel, HunyuanVideoTransformer3DModel
from tiny import assert_close
from tiny_hunyuan_video import tiny_hunyuan_inputs, tiny_hunyuan_transformer

from vdmini_diffusers import VDMiniHunyuanVideoTransformer3DModel


@pytest.fixture(scope="module")
def stock():
    return tiny_hunyuan_transformer(2, 3)


@pytest.fixture
def student(stock):
    model = VDMiniHunyuanVideoTransformer3DModel.from_config(stock.config)
    model.load_state_dict(stock.state_dict())
    return model.eval()


@torch.no_grad()
def output_of(model, **changes):
    return model(**{**tiny_hunyuan_inputs(), **changes}).sample


def test_without_arguments_it_is_the_paper_s():
    with torch.device("meta"):
        model, teacher = VDMiniHunyuanVideoTransformer3DModel(), HunyuanVideoTransformer3DModel()
    assert (len(model.transformer_blocks), len(model.single_transformer_blocks)) == (12, 28)
    assert model.num_parameters() == 8_403_260_480 and teacher.num_parameters() == 12_821_012_544
    with torch.device("meta"):
        same = VDMiniHunyuanVideoTransformer3DModel.from_config(teacher.config)  # the stock class's defaults
    assert (len(same.transformer_blocks), len(same.single_transformer_blocks)) == (20, 40)
    ours, theirs = (
        inspect.signature(cls).parameters
        for cls in (VDMiniHunyuanVideoTransformer3DModel, HunyuanVideoTransformer3DModel)
    )
    assert list(ours) == list(theirs)
    assert {name for name in ours if ours[name] != theirs[name]} == {"num_layers", "num_single_layers"}


def test_positional_arguments_and_defaults_may_be_mixed():
    with torch.device("meta"):
        model = VDMiniHunyuanVideoTransformer3DModel(4, 4, 2, 10, 1, num_single_layers=2, rope_axes_dim=(2, 4, 4))
    assert (model.config.num_layers, model.config.num_single_layers, model.config.in_channels) == (1, 2, 4)
    with pytest.raises(TypeError, match="num_layer"):
        VDMiniHunyuanVideoTransformer3DModel(num_layer=1)


def test_it_computes_what_the_stock_class_does(stock, student):
    assert torch.equal(output_of(student), output_of(stock))


def test_what_it_saves_is_a_stock_model_and_keeps_plan_and_provenance(stock, student, tmp_path):
    student.save_pretrained(tmp_path / "transformer")
    assert json.loads((tmp_path / "transformer" / "config.json").read_text())["_class_name"] == type(stock).__name__
    assert student.pruning_plan is None
    (tmp_path / "transformer" / "pruning_plan.json").write_text('{"name": "tiny"}')
    (tmp_path / "transformer" / "pruning_provenance.json").write_text('{"teacher": "hy"}')
    for opened in (
        VDMiniHunyuanVideoTransformer3DModel.from_pretrained(tmp_path, subfolder="transformer"),
        VDMiniHunyuanVideoTransformer3DModel.from_pretrained(tmp_path / "transformer"),
    ):
        assert opened.pruning_plan == {"name": "tiny"} and opened.pruning_provenance == {"teacher": "hy"}
    opened.save_pretrained(tmp_path / "again")
    opened.save_pretrained(tmp_path / "transformer")  # where it came from
    shutil.rmtree(tmp_path / "transformer")
    assert (tmp_path / "again" / "pruning_plan.json").read_text() == '{"name": "tiny"}'
    for cls in (HunyuanVideoTransformer3DModel, AutoModel):
        again = cls.from_pretrained(str(tmp_path / "again"))
        assert type(again) is HunyuanVideoTransformer3DModel
        assert torch.equal(output_of(again), output_of(stock))


def test_a_teacher_opens_with_its_own_depth(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    opened = VDMiniHunyuanVideoTransformer3DModel.from_pretrained(tmp_path)
    assert (len(opened.transformer_blocks), len(opened.single_transformer_blocks)) == (2, 3)


class TestFeaturesOfDiffusers:
    def test_lora_is_added_saved_and_merged(self, student, stock, tmp_path):
        from peft import LoraConfig

        student.add_adapter(LoraConfig(r=2, target_modules=["to_q", "add_k_proj"], init_lora_weights=False))
        adapted = output_of(student)
        assert not torch.allclose(adapted, output_of(stock), atol=1e-3)
        student.save_lora_adapter(tmp_path, adapter_name="default")
        fresh = VDMiniHunyuanVideoTransformer3DModel.from_config(stock.config).eval()
        fresh.load_state_dict(stock.state_dict())
        fresh.load_lora_adapter(str(tmp_path), prefix=None, use_safetensors=True)
        assert_close(output_of(fresh), adapted)
        fresh.fuse_lora()
        fresh.unload_lora()
        assert set(fresh.state_dict()) == set(stock.state_dict())
        assert_close(output_of(fresh), adapted)

    @pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
    def test_group_offloading_is_exact(self, student, kind):
        expected, cpu = output_of(student), torch.device("cpu")
        blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        student.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=kind, **blocks)
        assert torch.equal(output_of(student), expected)

    def test_layerwise_casting_stores_blocks_in_half_precision(self, student):
        expected = output_of(student)
        student.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
        assert student.single_transformer_blocks[0].proj_mlp.weight.dtype == torch.bfloat16
        assert student.x_embedder.proj.weight.dtype == torch.float32
        found = output_of(student)
        assert not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)

    def test_gradient_checkpointing_changes_no_gradient(self, student):
        gradients = []
        for _ in range(2):
            student.train().zero_grad()
            student(**tiny_hunyuan_inputs()).sample.square().mean().backward()
            gradients.append(student.transformer_blocks[0].ff.net[0].proj.weight.grad.clone())
            student.enable_gradient_checkpointing()
        assert torch.equal(*gradients)

    def test_attention_backends_reach_all_its_blocks(self, student):
        student.set_attention_backend("native")
        processors = [p for p in student.attn_processors.values() if hasattr(p, "_attention_backend")]
        assert len(processors) == 5 and {p._attention_backend.value for p in processors} == {"native"}

    def test_blocks_are_what_diffusers_repeats_and_does_not_split(self, student):
        kinds = {type(student.transformer_blocks[0]).__name__, type(student.single_transformer_blocks[0]).__name__}
        assert kinds <= set(student._repeated_blocks) and kinds <= set(student._no_split_modules)

    @pytest.mark.slow  # compilation takes a quarter of a minute
    def test_compiled_block_by_block_it_computes_the_same(self, student):
        expected = output_of(student)
        student.compile_repeated_blocks(backend="eager", fullgraph=True)
        assert_close(output_of(student), expected)
