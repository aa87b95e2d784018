"""What users of diffusers do with a model: adapters, attention backends, compilation, offloading, casting."""

import contextlib
import copy
from importlib.util import find_spec

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from tiny import (
    TINY_UNET_CONFIG,
    assert_close,
    cut_by_hand,
    output_of,
    randomise,
    student_of,
    tiny_unet_inputs,
)

from vdmini_diffusers import VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.pruning import VDMINI_UNET, UNetPruningPlan


def attention_modules(model):
    return [module for module in model.modules() if isinstance(module, Attention)]


class TestAttentionBackends:
    def test_all_attention_goes_through_the_dispatcher(self, student, backend_calls):
        output_of(student)
        assert backend_calls == ["native"] * len(attention_modules(student)) == ["native"] * 44

    @pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
    @pytest.mark.parametrize("backend", ["native", "_native_math", "_native_flash", "flex"])
    def test_a_backend_takes_effect_on_every_attention_module_and_is_reset(self, backend, student, backend_calls):
        expected = output_of(student)
        backend_calls.clear()
        student.set_attention_backend(backend)
        assert_close(output_of(student), expected)
        assert backend_calls == [backend] * 44
        backend_calls.clear()
        student.reset_attention_backend()
        _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
        assert torch.equal(output_of(student), expected)
        assert backend_calls == ["native"] * 44

    def test_the_context_manager_takes_effect_inside_it(self, student, backend_calls):
        with attention_backend("_native_math"):
            output_of(student)
        output_of(student)
        assert backend_calls == ["_native_math"] * 44 + ["native"] * 44

    def test_two_students_may_have_different_backends(self, student, backend_calls):
        other = copy.deepcopy(student)
        other.set_attention_backend("_native_math")
        student.set_attention_backend("_native_flash")
        output_of(other)
        output_of(student)
        assert backend_calls == ["_native_math"] * 44 + ["_native_flash"] * 44

    def test_an_unknown_backend_is_refused(self, student):
        with pytest.raises(ValueError, match="must be one of the following"):
            student.set_attention_backend("fastest")

    def test_a_backend_whose_package_is_missing_is_refused_before_it_is_used(self, student):
        if find_spec("sageattention"):
            pytest.skip("sageattention is installed here")
        with pytest.raises(RuntimeError, match="not usable because of missing package"):
            student.set_attention_backend("sage")

    def test_of_the_stock_u_net_no_attention_goes_through_the_dispatcher(self, teacher_unet, backend_calls):
        # Why the student has a processor of its own. When this fails, diffusers has one.
        teacher_unet.set_attention_backend("_native_math")
        output_of(teacher_unet)
        assert backend_calls == []


class TestProcessors:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    def test_ours_is_bit_equal_to_the_stock_one(self, dtype, student):
        student.to(dtype)
        inputs = [x.to(dtype) for x in tiny_unet_inputs(batch=2, height=12, width=20, tokens=3)]
        with torch.no_grad():
            ours = student(*inputs).sample
            student.set_attn_processor(AttnProcessor2_0())
            assert torch.equal(student(*inputs).sample, ours)

    def test_the_default_can_be_restored(self, student):
        ours = {type(processor) for processor in student.attn_processors.values()}
        student.set_attn_processor(AttnProcessor2_0())
        student.set_default_attn_processor()
        assert {type(processor) for processor in student.attn_processors.values()} == ours
        assert len({id(processor) for processor in student.attn_processors.values()}) == 44  # each with its state


class TestFusedProjections:
    @pytest.fixture
    def projections(self, student):
        """Names of the projections in the order of their calls."""
        names = []

        def listen():
            for module in attention_modules(student):
                for name, layer in module.named_children():
                    if name in ("to_q", "to_k", "to_v", "to_qkv", "to_kv"):
                        layer.register_forward_hook(lambda *_, name=name: names.append(name))
            return names

        return listen

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    def test_the_output_is_equal_to_rounding(self, dtype, student):
        student.to(dtype)
        inputs = [x.to(dtype) for x in tiny_unet_inputs(batch=2, tokens=3)]
        with torch.no_grad():
            expected = student(*inputs).sample
            student.fuse_qkv_projections()
            fused = student(*inputs).sample
            student.unfuse_qkv_projections()
            assert torch.equal(student(*inputs).sample, expected)
        tolerance = 1e-5 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(fused, expected, rtol=tolerance, atol=tolerance)

    def test_the_fused_matrices_are_what_is_called(self, student, projections):
        student.fuse_qkv_projections()
        calls = projections()
        output_of(student)
        assert {name: calls.count(name) for name in sorted(set(calls))} == {"to_kv": 22, "to_q": 22, "to_qkv": 22}

    def test_unfusing_leaves_the_student_as_it_was(self, student, projections):
        keys = list(student.state_dict())
        student.unfuse_qkv_projections()  # nothing to undo
        student.fuse_qkv_projections()
        student.unfuse_qkv_projections()
        assert list(student.state_dict()) == keys
        calls = projections()
        output_of(student)
        assert {name: calls.count(name) for name in sorted(set(calls))} == {"to_k": 44, "to_q": 44, "to_v": 44}

    def test_the_stock_u_net_fuses_nothing(self, teacher_unet):
        # Why the student has methods of its own. When this fails, diffusers does it.
        keys = list(teacher_unet.state_dict())
        teacher_unet.fuse_qkv_projections()
        assert list(teacher_unet.state_dict()) == keys


class TestTraining:
    def test_gradient_checkpointing_computes_again_and_gives_the_same_gradients(self, student):
        calls = []
        student.mid_block.register_forward_hook(lambda *_: calls.append("mid"))
        # Before the forward: the second one ends as soon as it has what the backward pass needs.
        student.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: calls.append("resnet"))

        def gradients(model):
            model.zero_grad()
            model(*tiny_unet_inputs(batch=2, tokens=2)).sample.square().sum().backward()
            return {name: p.grad.clone() for name, p in model.named_parameters()}

        student.train()
        expected = gradients(student)
        assert calls == ["resnet", "mid"]
        calls.clear()
        student.enable_gradient_checkpointing()
        again = gradients(student)
        assert calls == ["resnet", "mid", "resnet"]
        assert all(torch.equal(again[name], gradient) for name, gradient in expected.items())
        student.disable_gradient_checkpointing()
        assert not student.is_gradient_checkpointing

    def test_forward_chunking_of_the_parent_still_works(self, student):
        expected = output_of(student)
        student.enable_forward_chunking(1, dim=1)
        assert_close(output_of(student), expected)


class TestLora:
    @pytest.fixture
    def lora_config(self):
        peft = pytest.importorskip("peft")
        return peft.LoraConfig(
            r=2, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False
        )

    @pytest.fixture
    def adapted(self, student, lora_config):
        student.add_adapter(lora_config)
        return student

    def test_an_adapter_changes_the_output_and_only_its_tensors_train(self, student, lora_config):
        base = output_of(student)
        student.requires_grad_(False)
        student.add_adapter(lora_config)
        assert (output_of(student) - base).abs().max() > 1e-3
        trained = {name for name, p in student.named_parameters() if p.requires_grad}
        assert len(trained) == 44 * 4 * 2 and all("lora_" in name for name in trained)
        student(*tiny_unet_inputs(tokens=2)).sample.sum().backward()
        assert {name for name, p in student.named_parameters() if p.grad is not None} == trained

    def test_it_can_be_disabled_enabled_and_deleted(self, student, lora_config):
        base = output_of(student)
        student.add_adapter(lora_config)
        with_adapter = output_of(student)
        student.disable_adapters()
        assert_close(output_of(student), base)
        student.enable_adapters()
        assert_close(output_of(student), with_adapter)
        student.delete_adapters("default")
        assert_close(output_of(student), base)

    @pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
    def test_saved_and_loaded_into_a_fresh_student_it_does_the_same(
        self, low_cpu_mem_usage, adapted, original, tmp_path
    ):
        adapted.save_lora_adapter(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
        fresh = copy.deepcopy(original)
        fresh.load_lora_adapter(
            tmp_path, prefix=None, use_safetensors=True, low_cpu_mem_usage=low_cpu_mem_usage, adapter_name="style"
        )
        assert_close(output_of(fresh), output_of(adapted))
        assert fresh.active_adapters() == ["style"]

    def test_the_scale_of_an_adapter(self, student, lora_config):
        base = output_of(student)
        student.add_adapter(lora_config, adapter_name="style")
        whole = output_of(student)
        student.set_adapters(["style"], weights=[0.0])
        assert_close(output_of(student), base)
        student.set_adapters(["style"], weights=[1.0])
        assert_close(output_of(student), whole)

    def test_merged_into_the_weights_it_does_the_same_and_can_be_taken_out(self, student, lora_config):
        base, weight = output_of(student), student.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight
        before = weight.detach().clone()
        student.add_adapter(lora_config)
        expected = output_of(student)
        student.fuse_lora()
        assert not torch.allclose(weight, before)
        assert_close(output_of(student), expected)
        student.unfuse_lora()
        torch.testing.assert_close(weight, before)
        student.disable_adapters()
        assert_close(output_of(student), base)

    def test_it_works_with_gradient_checkpointing_and_other_attention_backends(self, adapted):
        expected = output_of(adapted)
        adapted.enable_gradient_checkpointing()
        adapted.train()
        with attention_backend("_native_math"):
            assert_close(output_of(adapted), expected)


class TestCompilation:
    @pytest.fixture(autouse=True)
    def forget_compiled_code(self):
        torch.compiler.reset()
        yield
        torch.compiler.reset()

    @pytest.mark.parametrize(
        "backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)], ids=["eager", "inductor"]
    )
    @pytest.mark.slow
    def test_the_repeated_blocks_compile_to_one_graph_per_width(self, backend):
        # As in the paper's student, each stage is wider than the one before; torch gives up after 8 graphs of a block.
        config = {**TINY_UNET_CONFIG, "block_out_channels": (32, 64, 128), "num_attention_heads": (1, 2, 4)}
        student = randomise(VDMiniUNetSpatioTemporalConditionModel(**config)).eval()
        expected = output_of(student, frames=3)
        torch._dynamo.utils.counters.clear()
        student.compile_repeated_blocks(backend=backend, fullgraph=True)
        compiled = [name for name, module in student.named_modules() if module._compiled_call_impl is not None]
        assert sorted(name.split(".")[2] for name in compiled) == ["attentions"] * 11 + ["resnets"] * 11
        for _ in range(2):
            assert_close(output_of(student, frames=3), expected)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3 + 3

    def test_compiled_blocks_keep_their_names_in_the_checkpoint(self, student):
        keys = list(student.state_dict())
        student.compile_repeated_blocks(backend="eager")
        assert list(student.state_dict()) == keys

    @pytest.mark.slow
    def test_the_whole_model_compiles_as_one_graph(self, student):
        expected = output_of(student)
        compiled = torch.compile(student, backend="aot_eager", fullgraph=True)
        assert_close(output_of(compiled), expected)


@pytest.mark.parametrize(
    "plan_of", [lambda config: VDMINI_UNET, UNetPruningPlan.keep_everything], ids=["paper", "keep everything"]
)
def test_a_backend_bit_equal_to_the_default_keeps_the_student_bit_equal_to_the_teacher(plan_of, teacher_unet):
    plan = plan_of(teacher_unet.config)
    student = student_of(teacher_unet, plan)
    with contextlib.ExitStack() as stack:
        stack.enter_context(attention_backend("_native_flash"))
        ours = output_of(student, height=12, width=20)
    assert torch.equal(ours, output_of(cut_by_hand(teacher_unet, plan), height=12, width=20))


def test_the_stock_class_declares_none_of_it():
    # Why the student declares it. When this fails, diffusers does, and our lines may go.
    assert UNetSpatioTemporalConditionModel._no_split_modules is None
    assert UNetSpatioTemporalConditionModel._repeated_blocks == []
    assert not hasattr(UNetSpatioTemporalConditionModel, "add_adapter")
