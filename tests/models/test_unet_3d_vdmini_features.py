"""What users of diffusers do with the T2V U-Net: train, adapters, attention backends, compilation, offloading."""

import copy

import pytest
import torch
from accelerate import cpu_offload, infer_auto_device_map
from accelerate.hooks import remove_hook_from_module
from diffusers import UNet3DConditionModel
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from tiny import cut_by_hand, randomise, student_of
from tiny_text_to_video import STOCK_CONFIG, TEACHER_CONFIG, tiny_t2v_inputs, tiny_t2v_teacher

from vdmini_diffusers import VDMiniUNet3DConditionModel
from vdmini_diffusers.pruning import VDMINI_UNET


@pytest.fixture(scope="module")
def original():
    return student_of(tiny_t2v_teacher(), VDMINI_UNET)


@pytest.fixture
def student(original):
    return copy.deepcopy(original)


@torch.no_grad()
def output_of(model, **shape):
    return model(**tiny_t2v_inputs(**{"batch": 1, "frames": 2, **shape})).sample


def assert_close(output, expected):
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def attention_modules(model):
    return [module for module in model.modules() if isinstance(module, Attention)]


class TestAttentionBackends:
    def test_a_backend_takes_effect_on_every_attention_module_and_is_reset(self, student, backend_calls):
        expected = output_of(student)
        assert backend_calls == ["native"] * len(attention_modules(student)) == ["native"] * 46
        backend_calls.clear()
        student.set_attention_backend("_native_math")
        assert_close(output_of(student), expected)
        assert backend_calls == ["_native_math"] * 46
        backend_calls.clear()
        student.reset_attention_backend()
        _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
        assert torch.equal(output_of(student), expected)
        assert backend_calls == ["native"] * 46

    def test_the_context_manager_takes_effect_inside_it(self, student, backend_calls):
        with attention_backend("_native_flash"):
            output_of(student)
        assert backend_calls == ["_native_flash"] * 46

    def test_of_the_stock_u_net_no_attention_goes_through_the_dispatcher(self, backend_calls):
        # Why ours has a processor of its own. When this fails, diffusers has one.
        stock = UNet3DConditionModel(**STOCK_CONFIG).eval()
        stock.set_attention_backend("_native_math")
        inputs = tiny_t2v_inputs(stock, batch=1, frames=1)
        with torch.no_grad():
            stock(**inputs)
        assert backend_calls == []


class TestProcessors:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    def test_ours_is_bit_equal_to_the_stock_one(self, dtype, student):
        student.to(dtype)
        ours = output_of(student, dtype=dtype)
        student.set_attn_processor(AttnProcessor2_0())
        assert torch.equal(output_of(student, dtype=dtype), ours)
        student.set_default_attn_processor()
        assert len({id(processor) for processor in student.attn_processors.values()}) == 46  # each with its state

    def test_sliced_attention_of_the_parent_still_works(self, student):
        expected = output_of(student)
        student.set_attention_slice("auto")
        assert_close(output_of(student), expected)

    def test_fused_projections_compute_the_same_and_can_be_undone(self, student):
        expected, keys = output_of(student), list(student.state_dict())
        student.fuse_qkv_projections()
        assert len(list(student.state_dict())) == len(keys) + 46
        assert_close(output_of(student), expected)
        student.unfuse_qkv_projections()
        assert list(student.state_dict()) == keys
        assert torch.equal(output_of(student), expected)

    def test_free_u_and_forward_chunking_of_the_parent_still_work(self, student):
        expected = output_of(student)
        student.enable_forward_chunking(1, dim=1)
        assert_close(output_of(student), expected)
        student.disable_forward_chunking()
        student.enable_freeu(0.9, 0.2, 1.4, 1.6)
        assert (output_of(student) - expected).abs().max() > 1e-3
        student.disable_freeu()
        assert torch.equal(output_of(student), expected)


class TestGradientCheckpointing:
    @staticmethod
    def gradients(model):
        model.zero_grad()
        torch.manual_seed(0)  # of the dropout in the temporal convolutions
        model(**tiny_t2v_inputs(frames=2)).sample.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    def test_every_layer_computes_again_and_gives_the_same_gradients(self, student):
        layers = {
            name: layer
            for name, layer in student.named_modules()
            if type(layer).__name__ in ("VDMiniResnetBlock2D", "VDMiniTemporalConvLayer", "BasicTransformerBlock")
        }
        # 11 layers of four parts, and `transformer_in`.
        assert len(layers) == 45
        calls = []
        for name, layer in layers.items():
            # Its first submodule: a layer that is computed again runs inside, and may not be called from outside.
            first = next(module for module in layer.modules() if not list(module.children()))
            first.register_forward_pre_hook(lambda *_, name=name: calls.append(name))

        student.train()
        expected = self.gradients(student)
        assert sorted(calls) == sorted(layers)
        calls.clear()
        student.enable_gradient_checkpointing()
        again = self.gradients(student)
        assert sorted(calls) == sorted([*layers, *layers])
        assert all(torch.equal(again[name], gradient) for name, gradient in expected.items())

    def test_what_is_kept_for_the_backward_pass_shrinks_to_less_than_a_third(self, student):
        def kept_bytes():
            seen = {}

            def pack(tensor):
                seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            weights = {p.untyped_storage().data_ptr() for p in student.parameters()}
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                output = student(**tiny_t2v_inputs(frames=2)).sample
            del output
            return sum(size for pointer, size in seen.items() if pointer not in weights)

        student.train()
        plain = kept_bytes()
        student.enable_gradient_checkpointing()
        assert student.is_gradient_checkpointing
        assert kept_bytes() < plain / 3
        student.disable_gradient_checkpointing()
        assert not student.is_gradient_checkpointing

    def test_a_function_of_the_user_s_is_used(self, student):
        calls = []

        def checkpoint(function, *args):
            calls.append(function)
            return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False)

        student.train()
        student.enable_gradient_checkpointing(checkpoint)
        expected = self.gradients(student)
        assert len(calls) == 45 and any(gradient.any() for gradient in expected.values())

    def test_the_stock_class_has_none(self):
        # Why ours has. When this fails, diffusers has it, and our lines may go.
        with pytest.raises(ValueError, match="does not support gradient checkpointing"):
            UNet3DConditionModel(**STOCK_CONFIG).enable_gradient_checkpointing()

    def test_the_teacher_s_stages_have_it_as_well(self):
        teacher = tiny_t2v_teacher().train()
        expected = self.gradients(teacher)
        teacher.enable_gradient_checkpointing()
        again = self.gradients(teacher)
        assert all(torch.equal(again[name], gradient) for name, gradient in expected.items())


class TestLora:
    @pytest.fixture
    def lora_config(self):
        peft = pytest.importorskip("peft")
        return peft.LoraConfig(
            r=2, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False
        )

    def test_an_adapter_changes_the_output_and_only_its_tensors_train(self, student, lora_config):
        base = output_of(student)
        student.requires_grad_(False)
        student.add_adapter(lora_config)
        assert (output_of(student) - base).abs().max() > 1e-3
        trained = {name for name, p in student.named_parameters() if p.requires_grad}
        assert len(trained) == 46 * 4 * 2 and all("lora_" in name for name in trained)
        student.train()
        student.enable_gradient_checkpointing()
        student(**tiny_t2v_inputs(batch=1)).sample.sum().backward()
        assert {name for name, p in student.named_parameters() if p.grad is not None} == trained

    def test_saved_and_loaded_into_a_fresh_student_it_does_the_same(self, student, original, lora_config, tmp_path):
        student.add_adapter(lora_config)
        student.save_lora_adapter(tmp_path)
        fresh = copy.deepcopy(original)
        fresh.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True, adapter_name="style")
        assert_close(output_of(fresh), output_of(student))
        assert fresh.active_adapters() == ["style"]

    def test_it_can_be_disabled_merged_and_taken_out(self, student, lora_config):
        base = output_of(student)
        student.add_adapter(lora_config)
        expected = output_of(student)
        student.fuse_lora()
        assert_close(output_of(student), expected)
        student.unfuse_lora()
        student.disable_adapters()
        assert_close(output_of(student), base)


class TestCompilation:
    @pytest.fixture(autouse=True)
    def forget_compiled_code(self):
        torch.compiler.reset()
        yield
        torch.compiler.reset()

    @pytest.mark.slow
    def test_the_repeated_blocks_compile_to_one_graph_per_width(self):
        # As in the paper's student, each stage is wider than the one before; torch gives up after 8 graphs of a block.
        config = {**TEACHER_CONFIG, "block_out_channels": (16, 32, 64), "layers_per_block": (1, 1, 2)}
        config |= {
            "down_block_types": ("CrossAttnDownBlock3D",) * 3,
            "up_block_types": ("CrossAttnUpBlock3D",) * 3,
            "mid_block_type": None,
        }
        student = randomise(VDMiniUNet3DConditionModel(**config)).eval()
        expected = output_of(student, frames=3)
        torch._dynamo.utils.counters.clear()
        student.compile_repeated_blocks(backend="eager", fullgraph=True)
        assert_close(output_of(student, frames=3), expected)
        # Three widths of each of the three, and `transformer_in`, whose inner width is its own.
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 10

    @pytest.mark.slow
    def test_the_whole_forward_pass_compiles_to_one_graph(self, student):
        compiled = torch.compile(student, backend="eager", fullgraph=True)
        output = compiled(**tiny_t2v_inputs(batch=1, frames=2)).sample
        assert_close(output.detach(), output_of(student))


class TestOffloading:
    def test_a_device_map_cuts_between_blocks_and_never_inside(self):
        teacher = tiny_t2v_teacher()
        size = sum(p.numel() * p.element_size() for p in teacher.parameters())
        for share in (0.3, 0.45, 0.6, 0.7, 0.95):  # each would cut a block of another class
            device_map = infer_auto_device_map(
                teacher,
                {"cpu": int(size * share), "disk": 2 * size},
                no_split_module_classes=teacher._no_split_modules,
            )
            assert set(device_map.values()) == {"cpu", "disk"}
            assert not any(name.count(".") > 1 or name.startswith("mid_block.") for name in device_map), device_map

    def test_a_model_split_over_memory_and_disk_computes_the_same(self, student, tmp_path):
        student.save_pretrained(tmp_path / "model", max_shard_size="100KB")
        device_map = {name: "cpu" for name, _ in student.named_children()} | {"up_blocks": "disk"}
        loaded = VDMiniUNet3DConditionModel.from_pretrained(
            tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
        )
        assert {p.device.type for p in loaded.up_blocks.parameters()} == {"meta"}
        assert_close(output_of(loaded), output_of(student))

    def test_the_hooks_of_sequential_offloading(self, student):
        expected = output_of(student)
        model = cpu_offload(student, execution_device="cpu")
        assert {p.device.type for p in model.parameters()} == {"meta"}
        assert_close(output_of(model), expected)
        remove_hook_from_module(model, recurse=True)

    @pytest.mark.parametrize("how", [{"offload_type": "leaf_level"}, {"offload_type": "block_level"}], ids=str)
    def test_group_offloading(self, how, student):
        expected = output_of(student)
        if how["offload_type"] == "block_level":
            how = {**how, "num_blocks_per_group": 1}
        student.enable_group_offload(onload_device=torch.device("cpu"), **how)
        assert_close(output_of(student), expected)

    def test_layerwise_casting_stores_the_weights_small_except_norms_and_embeddings(self, student):
        expected = output_of(student)
        student.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        dtypes = {name: p.dtype for name, p in student.named_parameters()}
        whole = {
            name.split(".")[0] for name, dtype in dtypes.items() if dtype == torch.float32 and "_blocks" not in name
        }
        assert whole == {"conv_in", "conv_out", "conv_norm_out", "time_embedding", "transformer_in"}
        stored = [name for name, dtype in dtypes.items() if dtype == torch.float8_e4m3fn]
        assert len(stored) > 400 and not any("norm" in name for name in stored)
        torch.testing.assert_close(output_of(student), expected, rtol=0.2, atol=0.3)


def test_with_an_equal_backend_the_student_stays_bit_equal_to_the_teacher_cut_by_hand():
    teacher = tiny_t2v_teacher()
    with attention_backend("_native_flash"):
        ours = output_of(student_of(teacher, VDMINI_UNET), height=12)
    assert torch.equal(ours, output_of(cut_by_hand(teacher, VDMINI_UNET), height=12))


def test_the_stock_class_declares_none_of_it():
    # Why ours does. When this fails, diffusers does, and our lines may go.
    assert UNet3DConditionModel._no_split_modules is None
    assert UNet3DConditionModel._repeated_blocks == []
    assert not hasattr(UNet3DConditionModel, "add_adapter")
