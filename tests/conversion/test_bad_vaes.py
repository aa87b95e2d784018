"""A VAE that cannot be pruned is refused by a message that names what is wrong, and leaves nothing behind."""

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import tiny_decoder_plans, tiny_teacher_vae

from vdmini_diffusers.pruning import P1, VDMINI_UNET, PruningPlanError
from vdmini_diffusers.pruning.prune_vae_decoder import prune_vae_decoder
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError


WEIGHTS = "diffusion_pytorch_model.safetensors"
PLAN = tiny_decoder_plans("image")["folds"]
# Of layers that stay, that go, and of the encoder.
KEPT, DROPPED = "decoder.up_blocks.0.resnets.0.conv1.weight", "decoder.up_blocks.3.resnets.2.conv1.weight"
ENCODER = "encoder.mid_block.resnets.0.conv1.weight"


@pytest.fixture
def teacher(tmp_path):
    """To spoil; the only thing in its parent."""
    tiny_teacher_vae("image").save_pretrained(tmp_path / "teacher/vae")
    return tmp_path / "teacher"


def refused(teacher: Path, match: str, error: type[Exception] = CheckpointError, **kwargs) -> None:
    with pytest.raises(error, match=match):
        prune_vae_decoder(teacher, teacher.parent / "student", **{"plan": PLAN, **kwargs})
    assert [path.name for path in teacher.parent.iterdir()] == [teacher.name]


def edit_tensors(teacher, edit):
    state = safetensors.torch.load_file(teacher / "vae" / WEIGHTS)
    edit(state)
    safetensors.torch.save_file(state, teacher / "vae" / WEIGHTS)


def edit_config(teacher, **changes):
    file = teacher / "vae/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


class TestRefusals:
    @pytest.mark.parametrize("value", [float("nan"), float("-inf")])
    @pytest.mark.parametrize("key", [KEPT, DROPPED, ENCODER])
    def test_nan_or_infinity_anywhere(self, teacher, key, value):
        edit_tensors(teacher, lambda state: state[key].view(-1)[7:8].fill_(value))
        refused(teacher, rf"{WEIGHTS}: tensor '{key}' holds {value} at element 7\.")

    @pytest.mark.parametrize("key", [KEPT, DROPPED, ENCODER])
    def test_missing_tensor(self, teacher, key):
        edit_tensors(teacher, lambda state: state.pop(key))
        refused(teacher, f"vae: the weights lack tensor '{key}' of the VAE in config.json")

    def test_unknown_tensor(self, teacher):
        edit_tensors(teacher, lambda state: state.update({"pruned.decoder.conv_in.bias": torch.zeros(32)}))
        refused(teacher, r"tensor 'pruned\.decoder\.conv_in\.bias' is not one of the VAE in config\.json")

    def test_tensor_of_another_shape(self, teacher):
        edit_tensors(teacher, lambda state: state.update({"decoder.conv_out.bias": torch.zeros(5)}))
        refused(teacher, r"'decoder\.conv_out\.bias' has the shape \[5\]; the config wants \[3\]")

    def test_tensor_under_its_former_and_its_present_name(self, teacher):
        name = "encoder.mid_block.attentions.0.query.bias"
        edit_tensors(teacher, lambda state: state.update({name: torch.zeros(32)}))
        refused(teacher, "is there under its present name as well")

    def test_truncated_file(self, teacher):
        os.truncate(teacher / "vae" / WEIGHTS, 10_000)
        refused(teacher, f"vae/{WEIGHTS}.*truncated")

    @pytest.mark.parametrize("class_name", ["AutoencoderTiny", "VDMiniAutoencoderKL", None, ["AutoencoderKL"]])
    def test_other_class(self, teacher, class_name):
        edit_config(teacher, _class_name=class_name)
        refused(teacher, "a teacher is an AutoencoderKL or an AutoencoderKLTemporalDecoder")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"layers_per_block": 10**9}, "`layers_per_block` is out of bounds"),
            ({"block_out_channels": [8] * 1000}, "`block_out_channels` is out of bounds"),
            ({"block_out_channels": [9, 24, 32, 32]}, "does not describe a VAE"),
            ({"up_block_types": ["AttnUpDecoderBlock2D"] * 4}, "must be 'UpDecoderBlock2D' throughout"),
            ({"block_out_channels": [16, 24, 32, 40]}, "config wants"),
        ],
    )
    def test_config_of_another_network(self, teacher, change, message):
        edit_config(teacher, **change)
        refused(teacher, message)

    def test_field_of_another_version_of_diffusers_does_not_matter(self, teacher):
        edit_config(teacher, use_new_thing=True)
        folder = prune_vae_decoder(teacher, teacher.parent / "student", plan=PLAN)
        assert json.loads((folder / "config.json").read_text())["use_new_thing"] is True

    def test_plan_of_another_kind(self, teacher):
        refused(teacher, "'vdmini' is a unet plan", PruningPlanError, plan=VDMINI_UNET)

    def test_plan_that_does_not_fit(self, teacher):
        refused(teacher, "width 512 of up block 0", PruningPlanError, plan=P1)

    def test_folder_without_a_vae(self, tmp_path):
        (tmp_path / "teacher").mkdir()
        refused(tmp_path / "teacher", r"config\.json is missing")

    def test_a_licence_that_is_a_link_to_elsewhere(self, teacher):
        (teacher / "LICENSE").symlink_to(__file__)
        refused(teacher, "a link that leads out of the folder")


class TestOutputFolder:
    def test_what_exists_is_replaced_only_when_asked(self, teacher):
        folder = prune_vae_decoder(teacher, teacher.parent / "student", plan=PLAN)
        (folder / "old.txt").write_text("old")
        with pytest.raises(FileExistsError, match="replaced only with `overwrite=True`"):
            prune_vae_decoder(teacher, folder, plan=PLAN)
        assert (folder / "old.txt").exists()
        prune_vae_decoder(teacher, folder, plan=PLAN, overwrite=True)
        assert not (folder / "old.txt").exists()
        assert sorted(path.name for path in teacher.parent.iterdir()) == ["student", "teacher"]

    def test_what_the_conversion_did_not_write_is_not_replaced_even_when_asked(self, teacher):
        tiny_teacher_vae("image").save_pretrained(teacher.parent / "student")
        with pytest.raises(FileExistsError, match="is not a pruned VAE folder"):
            prune_vae_decoder(teacher, teacher.parent / "student", plan=PLAN, overwrite=True)
        assert (teacher.parent / "student" / WEIGHTS).exists()

    def test_the_teacher_is_never_replaced_by_its_student(self, teacher):
        (teacher / "pruning_provenance.json").write_text("{}")
        with pytest.raises(ValueError, match=r"(is|holds) the teacher"):
            prune_vae_decoder(teacher, teacher, plan=PLAN, overwrite=True)
        assert (teacher / "vae" / WEIGHTS).exists()
