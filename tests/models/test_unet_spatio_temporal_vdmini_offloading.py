"""A student that does not lie whole in one memory: device maps, offloading, small storage."""

import copy

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook, infer_auto_device_map
from accelerate.hooks import remove_hook_from_module
from diffusers.hooks import apply_group_offloading
from tiny import assert_close, output_of

from vdmini_diffusers import VDMiniUNetSpatioTemporalConditionModel


class TestOffloading:
    def test_a_device_map_cuts_between_blocks_only(self, student):
        sizes = sum(p.nbytes for p in student.parameters())
        device_map = infer_auto_device_map(
            student,
            max_memory={"cpu": sizes // 2, "disk": sizes * 2},
            no_split_module_classes=student._no_split_modules,
        )
        assert set(device_map.values()) == {"cpu", "disk"}
        assert all(name.count(".") <= 1 for name in device_map), device_map  # `up_blocks.1`, not inside it

    def test_what_the_device_map_puts_on_disk_is_read_when_it_is_called(self, student, tmp_path):
        student.save_pretrained(tmp_path / "model", max_shard_size="200KB")
        device_map = {name: "cpu" for name, _ in student.named_children()} | {"up_blocks": "disk"}
        loaded = VDMiniUNetSpatioTemporalConditionModel.from_pretrained(
            tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
        )
        assert loaded.hf_device_map == device_map
        assert {p.device.type for p in loaded.up_blocks.parameters()} == {"meta"}
        assert {p.device.type for p in loaded.down_blocks.parameters()} == {"cpu"}
        assert_close(output_of(loaded), output_of(student))

    def test_a_device_map_of_one_device(self, student, tmp_path):
        student.save_pretrained(tmp_path)
        loaded = VDMiniUNetSpatioTemporalConditionModel.from_pretrained(tmp_path, device_map={"": "cpu"})
        assert_close(output_of(loaded), output_of(student))

    def test_with_a_device_map_a_foreign_checkpoint_is_refused_as_well(self, teacher_folder):
        with pytest.raises(ValueError, match="99 unexpected tensors"):
            VDMiniUNetSpatioTemporalConditionModel.from_pretrained(
                teacher_folder, subfolder="unet", device_map={"": "cpu"}
            )

    def test_the_hooks_of_model_and_sequential_offloading(self, student):
        expected = output_of(student)
        model, hook = cpu_offload_with_hook(copy.deepcopy(student), execution_device="cpu")
        assert torch.equal(output_of(model), expected)
        hook.remove()
        model = cpu_offload(student, execution_device="cpu")
        assert {p.device.type for p in model.parameters()} == {"meta"}
        assert_close(output_of(model), expected)
        remove_hook_from_module(model, recurse=True)

    @pytest.mark.parametrize("how", [{"offload_type": "leaf_level"}, {"offload_type": "block_level"}], ids=str)
    @pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
    def test_group_offloading(self, how, on_disk, student, tmp_path):
        expected = output_of(student)
        if how["offload_type"] == "block_level":
            how = {**how, "num_blocks_per_group": 1}
        folder = {"offload_to_disk_path": str(tmp_path)} if on_disk else {}
        student.enable_group_offload(onload_device=torch.device("cpu"), **how, **folder)
        for _ in range(2):
            assert_close(output_of(student), expected)
        assert any(tmp_path.iterdir()) == on_disk

    def test_group_offloading_through_the_function_of_diffusers(self, student):
        expected = output_of(student)
        apply_group_offloading(student, torch.device("cpu"), offload_type="leaf_level")
        assert torch.equal(output_of(student), expected)

    @pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.bfloat16], ids=["fp8", "bf16"])
    def test_layerwise_casting_stores_the_weights_small_except_norms_and_embeddings(self, storage, student):
        expected = output_of(student)
        student.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
        dtypes = {name: p.dtype for name, p in student.named_parameters()}
        whole = {
            name.split(".")[0] for name, dtype in dtypes.items() if dtype == torch.float32 and "_blocks" not in name
        }
        assert whole == {"conv_in", "conv_out", "conv_norm_out", "time_embedding", "add_embedding"}
        stored = [name for name, dtype in dtypes.items() if dtype == storage]
        assert len(stored) > 400 and not any("norm" in name for name in stored)
        torch.testing.assert_close(output_of(student), expected, rtol=0.2, atol=0.2)
