"""Every bad input is refused by a message that names the file and the tensor, and leaves nothing behind."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import UNetSpatioTemporalConditionModel

from vdmini_diffusers import VDMiniUNet3DConditionModel
from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.families.videocrafter import VIDEOCRAFTER
from vdmini_diffusers.pruning import VDMINI_HY, PruningPlanError, UNetPruningPlan
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError


UNET_FILE = "diffusion_pytorch_model.safetensors"
KEPT = "down_blocks.0.attentions.0.proj_in.weight"
DROPPED = "mid_block.attentions.0.proj_in.weight"
BOTH = pytest.mark.parametrize("kind", ["i2v", "t2v"], indirect=True)


@pytest.fixture
def sharded(teacher):
    """The same with the U-Net in shards; returns its folder and index."""
    state = safetensors.torch.load_file(teacher / "unet" / UNET_FILE)
    cls = VDMiniUNet3DConditionModel if is_text_to_video(teacher) else UNetSpatioTemporalConditionModel
    unet = cls.from_config(cls.load_config(teacher / "unet"))
    unet.load_state_dict(state)
    (teacher / "unet" / UNET_FILE).unlink()
    unet.save_pretrained(teacher / "unet", max_shard_size="1MB")
    return teacher


def is_text_to_video(teacher: Path) -> bool:
    return (teacher / "tokenizer").is_dir()


def prune(teacher: Path, output_dir: Path, **kwargs) -> Path:
    family = VIDEOCRAFTER if is_text_to_video(teacher) else SVD
    return prune_pipeline(teacher, output_dir, family=family, **kwargs)


def refused(teacher: Path, match: str, error: type[Exception] = CheckpointError, **kwargs) -> None:
    with pytest.raises(error, match=match):
        prune(teacher, teacher.parent / "student", **kwargs)
    assert [path.name for path in teacher.parent.iterdir()] == [teacher.name]


def edit_json(file: Path, **changes) -> None:
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def edit_tensors(file: Path, edit) -> None:
    state = safetensors.torch.load_file(file)
    edit(state)
    safetensors.torch.save_file(state, file)


def edit_header(file: Path, edit) -> None:
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


class TestWeightFiles:
    @pytest.mark.parametrize("component", ["unet", "vae"])
    @pytest.mark.parametrize("cut", [1, 1000, 100_000])
    def test_truncated_file(self, teacher, component, cut):
        file = teacher / component / UNET_FILE
        os.truncate(file, file.stat().st_size - cut)
        refused(
            teacher, rf"{component}/{UNET_FILE} has \d+ bytes, and its header describes \d+ up to the last tensor, '"
        )

    @pytest.mark.parametrize("size", [0, 5, 8, 100])
    def test_file_that_ends_in_its_header(self, teacher, size):
        os.truncate(teacher / "unet" / UNET_FILE, size)
        refused(teacher, rf"unet/{UNET_FILE}: {size} bytes with a header of \d+ bytes .*truncated, or not safetensors")

    def test_file_with_bytes_behind_its_last_tensor(self, teacher):
        with (teacher / "unet" / UNET_FILE).open("ab") as file:
            file.write(b"more")
        refused(teacher, rf"unet/{UNET_FILE} has \d+ bytes, and its header describes \d+")

    def test_corrupt_header(self, teacher):
        with (teacher / "unet" / UNET_FILE).open("r+b") as file:
            file.seek(20)
            file.write(b"\xff\xfe{{")
        refused(teacher, rf"unet/{UNET_FILE} should hold JSON here, and does not")

    def test_header_that_claims_to_be_huge_is_not_read(self, teacher):
        with (teacher / "unet" / UNET_FILE).open("r+b") as file:
            file.write(struct.pack("<Q", 2**62))
        refused(teacher, r"header of 4611686018427387904 bytes \(at most 16777216\)")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"data_offsets": [0, 4]}, "does not fit its offsets"),
            ({"data_offsets": [-4, 4]}, "are not counts"),
            ({"data_offsets": [2**70, 2**71]}, "are not counts"),
            ({"data_offsets": [0, True]}, "are not counts"),
            ({"data_offsets": "0"}, "are not counts"),
            ({"shape": [10**9, 10**9]}, "does not fit its offsets"),
            ({"shape": [1.5]}, "are not counts"),
            ({"dtype": "F31"}, "has the unknown dtype 'F31'"),
            ({"dtype": ["F32"]}, "has the unknown dtype"),
            ({"dtype": "F16"}, "does not fit its offsets"),
            ({"more": 1}, "is not described by dtype, shape and data_offsets"),
        ],
    )
    def test_tensor_that_is_described_wrongly(self, teacher, change, message):
        edit_header(teacher / "unet" / UNET_FILE, lambda header: header[KEPT].update(change))
        refused(teacher, rf"unet/{UNET_FILE}: tensor '{KEPT}' .*{message}")

    def test_tensors_that_overlap(self, teacher):
        def share(header):
            header["conv_out.bias"]["data_offsets"] = header["conv_norm_out.bias"]["data_offsets"]
            header["conv_out.bias"]["shape"] = header["conv_norm_out.bias"]["shape"]

        edit_header(teacher / "unet" / UNET_FILE, share)
        refused(teacher, rf"unet/{UNET_FILE}: tensor 'conv_\w*out.\w+' (overlaps the tensor|leaves a gap) before it")

    def test_tensor_that_is_described_twice(self, teacher):
        file = teacher / "unet" / UNET_FILE
        content = file.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        text = content[8 : 8 + length].rstrip()[:-1] + b',"conv_out.bias":{}}'
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
        refused(teacher, rf"unet/{UNET_FILE}: 'conv_out.bias' is described twice")

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_nan_or_infinity(self, teacher, value, dtype):
        def spoil(state):
            for key in state:
                state[key] = state[key].to(dtype)
            state[KEPT].view(-1)[7] = value

        edit_tensors(teacher / "unet" / UNET_FILE, spoil)
        refused(teacher, rf"unet/{UNET_FILE}: tensor '{KEPT}' holds {value} at element 7\.")

    def test_nan_in_the_last_element_of_another_component(self, teacher):
        edit_tensors(
            teacher / "vae" / UNET_FILE, lambda s: s["decoder.conv_in.weight"].view(-1)[-1:].fill_(float("nan"))
        )
        refused(teacher, rf"vae/{UNET_FILE}: tensor 'decoder.conv_in.weight' holds nan at element 1151\.")

    def test_nan_in_a_tensor_that_is_dropped_does_not_matter(self, teacher):
        edit_tensors(teacher / "unet" / UNET_FILE, lambda s: s[DROPPED].fill_(float("nan")))
        prune(teacher, teacher.parent / "student")

    def test_largest_numbers_are_finite(self, teacher):
        def extreme(state):
            state[KEPT].fill_(torch.finfo(torch.float32).max)
            state["conv_in.weight"].fill_(torch.finfo(torch.float32).min)

        edit_tensors(teacher / "unet" / UNET_FILE, extreme)
        prune(teacher, teacher.parent / "student")

    @BOTH
    def test_missing_tensor(self, teacher):
        edit_tensors(teacher / "unet" / UNET_FILE, lambda s: s.pop(DROPPED))
        refused(teacher, f"unet: the weights lack tensor '{DROPPED}'")

    @BOTH
    def test_unknown_tensor(self, teacher):
        edit_tensors(teacher / "unet" / UNET_FILE, lambda s: s.update(extra=torch.zeros(3)))
        refused(teacher, rf"unet/{UNET_FILE}: tensor 'extra' is not one of the U-Net in config.json")

    @BOTH
    def test_tensor_of_another_shape(self, teacher):
        edit_tensors(teacher / "unet" / UNET_FILE, lambda s: s.update({"conv_out.bias": torch.zeros(5)}))
        refused(teacher, rf"unet/{UNET_FILE}: tensor 'conv_out.bias' has the shape \[5\]; the config wants \[4\]")

    def test_quantised_tensor(self, teacher):
        edit_tensors(teacher / "unet" / UNET_FILE, lambda s: s.update({KEPT: s[KEPT].to(torch.int8)}))
        refused(teacher, rf"unet/{UNET_FILE}: tensor '{KEPT}' is I8; weights are F16, BF16, F32, F64")

    def test_missing_file_is_answered_with_the_files_that_are_there(self, teacher):
        refused(
            teacher,
            r"image_encoder has neither model\.fp16\.safetensors nor .*Weight files there: model\.safetensors",
            variant="fp16",
        )

    def test_file_that_is_no_file(self, teacher):
        (teacher / "unet" / UNET_FILE).unlink()
        os.mkfifo(teacher / "unet" / UNET_FILE)
        refused(teacher, rf"unet/{UNET_FILE} is not a regular file")

    def test_both_a_single_file_and_an_index(self, teacher):
        (teacher / "unet" / f"{UNET_FILE}.index.json").write_text("{}")
        refused(teacher, f"holds both {UNET_FILE} and {UNET_FILE}.index.json")

    @BOTH
    def test_pickle_that_would_run_code_is_refused_even_with_consent(self, teacher):
        class Malice:
            def __reduce__(self):
                return os.mkdir, (str(teacher.parent / "hacked"),)

        (teacher / "unet" / UNET_FILE).unlink()
        torch.save({"conv_in.weight": Malice()}, teacher / "unet/diffusion_pytorch_model.bin")
        refused(teacher, r"diffusion_pytorch_model\.bin cannot be read as pickled weights", allow_pickle=True)


class TestShards:
    def index(self, sharded):
        return sharded / "unet" / f"{UNET_FILE}.index.json"

    def test_missing_shard(self, sharded):
        name = min(path.name for path in (sharded / "unet").glob("*.safetensors"))
        (sharded / "unet" / name).unlink()
        refused(sharded, f"index.json names the shard {name}, which is missing")

    def test_truncated_shard(self, sharded):
        file = max((sharded / "unet").glob("*.safetensors"))
        os.truncate(file, file.stat().st_size - 1)
        refused(sharded, rf"unet/{file.name} has \d+ bytes")

    @pytest.mark.parametrize(
        "name",
        ["../secret.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "x.bin", "a\\b.safetensors", ""],
    )
    def test_index_that_points_elsewhere(self, sharded, name):
        shutil.copy(next((sharded / "unet").glob("*.safetensors")), sharded / "secret.safetensors")
        weight_map = json.loads(self.index(sharded).read_text())["weight_map"]
        edit_json(self.index(sharded), weight_map={**weight_map, "conv_out.bias": name})
        refused(sharded, r"index.json names the shard .*: shards are safetensors files beside their index")

    def test_index_that_lists_a_tensor_in_the_wrong_shard(self, sharded):
        weight_map = json.loads(self.index(sharded).read_text())["weight_map"]
        other = next(shard for shard in sorted(set(weight_map.values())) if shard != weight_map["conv_out.bias"])
        edit_json(self.index(sharded), weight_map={**weight_map, "conv_out.bias": other})
        refused(sharded, rf"{other}: tensor 'conv_out.bias' is not in the shard")

    @pytest.mark.parametrize("weight_map", [..., [], {}, {"a": 1}, None])
    def test_index_without_a_weight_map(self, sharded, weight_map):
        edit_json(self.index(sharded), weight_map=weight_map)
        refused(sharded, "`weight_map` must map each tensor to the name of a shard")


class TestArchitecture:
    @BOTH
    def test_other_pipeline(self, teacher):
        edit_json(teacher / "model_index.json", _class_name="StableDiffusionPipeline")
        expected = "VDMiniT2VPipeline or a" if is_text_to_video(teacher) else "StableVideoDiffusionPipeline or a"
        refused(teacher, f"describes a 'StableDiffusionPipeline'; a teacher is a {expected}")

    @BOTH
    def test_other_unet(self, teacher):
        edit_json(teacher / "unet/config.json", _class_name="UNet2DConditionModel")
        expected = "VDMiniUNet3DConditionModel or a UNet3D" if is_text_to_video(teacher) else "UNetSpatioTemporal"
        refused(teacher, f"config.json describes a 'UNet2DConditionModel'; a teacher is a {expected}")

    def test_student_is_no_teacher(self, teacher_folder, tmp_path):
        student = prune_pipeline(teacher_folder, tmp_path / "student")
        with pytest.raises(ValueError, match="'unet' must be a class of diffusers, not "):
            prune_pipeline(student, tmp_path / "again")
        assert [path.name for path in tmp_path.iterdir()] == ["student"]

    @BOTH
    @pytest.mark.parametrize("name", ["../../x", "/etc", "safety_checker"])
    def test_component_that_this_pipeline_does_not_have(self, teacher, name):
        edit_json(teacher / "model_index.json", **{name: ["diffusers", "AutoencoderKL"]})
        refused(teacher, "model_index.json names the component")

    @BOTH
    @pytest.mark.parametrize("entry", [["evil_code", "VAE"], [None, None], ["diffusers", "a.b"], ["diffusers"], ...])
    def test_component_that_is_missing_or_brings_its_own_code(self, teacher, entry):
        edit_json(teacher / "model_index.json", vae=entry)
        refused(teacher, "model_index.json: 'vae' must be a class of diffusers, not ")

    @BOTH
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"layers_per_block": 10**9}, "`layers_per_block` is out of bounds"),
            ({"transformer_layers_per_block": [10**6] * 4}, "`transformer_layers_per_block` is out of bounds"),
            ({"block_out_channels": [32] * 1000}, "`block_out_channels` is out of bounds"),
            ({"in_channels": -1}, "does not describe a U-Net: .* negative dimension"),
            ({"block_out_channels": [33, 32, 64, 64]}, "does not describe a U-Net"),
            ({"down_block_types": ["DownBlock2D"] * 4}, "does not describe a U-Net"),
            ({"block_out_channels": "wide"}, "does not describe a U-Net"),
            ({"block_out_channels": [32, 64, 64, 64]}, "has the shape .*; the config wants"),
        ],
    )
    def test_config_of_another_network(self, teacher, change, message):
        edit_json(teacher / "unet/config.json", **change)
        refused(teacher, message)

    @BOTH
    def test_a_value_of_any_length_is_refused_in_a_message_that_fits_on_a_screen(self, teacher):
        edit_json(teacher / "unet/config.json", down_block_types={"x\ud800" * 100_000: 0})
        with pytest.raises(CheckpointError, match="does not describe a U-Net: ") as refusal:
            prune(teacher, teacher.parent / "student")
        assert len(str(refusal.value).encode()) < 3000

    @BOTH
    def test_field_of_another_version_of_diffusers_does_not_matter(self, teacher):
        edit_json(teacher / "unet/config.json", use_new_thing=True)
        student = prune(teacher, teacher.parent / "student")
        assert json.loads((student / "unet/config.json").read_text())["use_new_thing"] is True

    @BOTH
    def test_plan_that_does_not_fit(self, teacher):
        plan = UNetPruningPlan(name="deep", down={0: (0, 7)}, keep_mid=False, up={3: (0, 1, 2)})
        refused(teacher, "is not a layer of the teacher", PruningPlanError, plan=plan)

    def test_plan_of_another_kind(self, teacher):
        refused(teacher, "'vdmini_hy' is a transformer plan", PruningPlanError, plan=VDMINI_HY)


class TestFolder:
    def test_folder_that_is_no_pipeline(self, tmp_path):
        (tmp_path / "teacher").mkdir()
        refused(tmp_path / "teacher", "model_index.json is missing")

    def test_name_that_is_neither_folder_nor_repository(self, teacher):
        with pytest.raises(ValueError, match="'no/such/folder' is neither a folder nor the id of a repository"):
            prune_pipeline("no/such/folder", teacher.parent / "student")
        assert [path.name for path in teacher.parent.iterdir()] == ["teacher"]

    @pytest.mark.parametrize("name", ["LICENSE", "vae/config.json", "README.md"])
    def test_link_that_leads_out_of_the_folder(self, teacher, tmp_path_factory, name):
        secret = tmp_path_factory.mktemp("elsewhere") / "secret.json"
        secret.write_text('{"key": 1}')
        (teacher / name).unlink(missing_ok=True)
        (teacher / name).symlink_to(secret)
        refused(teacher, f"{name} is a link that leads out of the folder")

    def test_config_that_is_not_json(self, teacher):
        (teacher / "scheduler/scheduler_config.json").write_text("[" * 100_000)
        refused(teacher, "scheduler_config.json should hold JSON here, and does not")

    def test_variant_that_is_a_path(self, teacher):
        refused(teacher, "`variant` is a word such as 'fp16'", ValueError, variant="../x")

    def test_parents_that_were_made_are_removed_again(self, teacher):
        (teacher / "unet" / UNET_FILE).unlink()
        with pytest.raises(CheckpointError):
            prune(teacher, teacher.parent / "a" / "b" / "student")
        assert [path.name for path in teacher.parent.iterdir()] == ["teacher"]
