"""Models that are copied as they are: what `from_pretrained` would draw at random is refused."""

import json
import shutil

import pytest
import safetensors.torch
import torch

from vdmini_diffusers import VDMiniI2VPipeline, VDMiniT2VPipeline
from vdmini_diffusers.pruning import survey
from vdmini_diffusers.pruning.components import check_component, component_classes
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.pruning.vae_folder import find_vae
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError


FILES = {
    "vae": "diffusion_pytorch_model.safetensors",
    "image_encoder": "model.safetensors",
    "text_encoder": "model.safetensors",
}
FORMER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def edit(teacher, component, change):
    file = teacher / component / FILES[component]
    state = safetensors.torch.load_file(file)
    change(state)
    safetensors.torch.save_file(state, file, metadata={"format": "pt"})


def refused(teacher, match):
    with pytest.raises(CheckpointError, match=match):
        prune_pipeline(teacher, teacher.parent / "student")
    assert [path.name for path in teacher.parent.iterdir()] == ["teacher"]


COMPONENTS = pytest.mark.parametrize(
    ("kind", "component", "ending"),
    [
        ("i2v", "vae", "decoder.conv_in.weight"),
        ("i2v", "image_encoder", "visual_projection.weight"),
        ("t2v", "vae", "post_quant_conv.bias"),
        ("t2v", "text_encoder", "final_layer_norm.weight"),
    ],
    indirect=["kind"],
)


@COMPONENTS
def test_a_tensor_that_is_missing_or_named_otherwise(teacher, component, ending):
    def rename(state):
        (name,) = [name for name in state if name.endswith(ending)]
        state[f"other.{name}"] = state.pop(name)

    edit(teacher, component, rename)
    refused(teacher, f"{component}: the weights lack tensor '.*{ending}'")


@COMPONENTS
def test_a_tensor_of_another_shape(teacher, component, ending):
    def grow(state):
        (name,) = [name for name in state if name.endswith(ending)]
        state[name] = torch.cat([state[name], state[name]])

    edit(teacher, component, grow)
    refused(teacher, f"{component}.*{ending}' has the shape .*; the config wants")


@COMPONENTS
def test_a_quantised_tensor(teacher, component, ending):
    def quantise(state):
        (name,) = [name for name in state if name.endswith(ending)]
        state[name] = state[name].to(torch.int8)

    edit(teacher, component, quantise)
    refused(teacher, f"{component}.*{ending}' is I8")


@pytest.mark.parametrize("kind", ["t2v"], indirect=True)
@pytest.mark.parametrize("prefixed", [True, False])
def test_names_of_either_version_of_transformers(teacher, prefixed):
    """Before transformers 5 names begin with `text_model.`, and the positions' numbers are among the weights."""

    def rename(state):
        for name in list(state):
            tensor = state.pop(name)
            state[f"text_model.{name.removeprefix('text_model.')}" if prefixed else name] = tensor
        state["text_model.embeddings.position_ids"] = torch.arange(77)[None]

    edit(teacher, "text_encoder", rename)
    prune_pipeline(teacher, teacher.parent / "student")


def to_former_names(state):
    for name in list(state):
        for new, old in FORMER.items():
            if f".attentions.0.{new}." in name:
                state[name.replace(f".{new}.", f".{old}.")] = state.pop(name)


@pytest.mark.parametrize("kind", ["t2v"], indirect=True)
def test_the_former_names_of_a_vae_s_attention(teacher):
    before = safetensors.torch.load_file(teacher / "vae" / FILES["vae"])

    edit(teacher, "vae", to_former_names)
    student = prune_pipeline(teacher, teacher.parent / "student")
    assert any(".query." in name for name in safetensors.torch.load_file(student / "vae" / FILES["vae"]))
    vae = VDMiniT2VPipeline.from_pretrained(student).vae.state_dict()
    assert all(torch.equal(vae[name], tensor) for name, tensor in before.items())


def test_former_names_where_diffusers_does_not_rename_them(teacher):
    """The temporal decoder never had them: its attention would stay without weights."""
    edit(teacher, "vae", to_former_names)
    refused(teacher, "vae: the weights lack tensor 'decoder.mid_block.attentions.0.to_q.weight'")


def test_tied_weights_of_which_one_is_stored(tmp_path):
    from transformers import T5Config, T5EncoderModel

    from vdmini_diffusers.serialization.safetensors_reader import read_checkpoint

    config = T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(tmp_path)
    tensors = read_checkpoint(tmp_path, "model")
    check_component(tmp_path, tensors, "T5EncoderModel", {"T5EncoderModel": T5EncoderModel})
    with pytest.raises(CheckpointError, match=r"lack tensor 'shared\.weight'"):
        rest = {k: v for k, v in tensors.items() if k not in ("shared.weight", "encoder.embed_tokens.weight")}
        check_component(tmp_path, rest, "T5EncoderModel", {"T5EncoderModel": T5EncoderModel})


def test_a_class_that_the_pipeline_does_not_take(teacher):
    """Constructors of other classes of transformers may download what a config names."""
    index = json.loads((teacher / "model_index.json").read_text())
    index["image_encoder"] = ["transformers", "DetrForObjectDetection"]
    (teacher / "model_index.json").write_text(json.dumps(index))
    refused(teacher, "'image_encoder' is a DetrForObjectDetection; this pipeline takes a CLIPVision")
    assert list(component_classes(VDMiniI2VPipeline, "vae", None)) == ["AutoencoderKLTemporalDecoder"]


def test_a_type_of_model_that_is_no_text_does_not_matter(teacher, tmp_path):
    """The class is what `model_index.json` says."""
    file = teacher / "image_encoder/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": []}))
    assert prune_pipeline(teacher, tmp_path / "student").exists()


@pytest.mark.parametrize("component", ["unet", "vae", "image_encoder"])
def test_a_config_that_asks_for_more_layers_than_any_network_has(teacher, component, monkeypatch):
    """Each number is within bounds; their product is not."""
    monkeypatch.setattr(survey, "MAX_TORCH_CALLS", 10_000)  # for the sake of time
    changes = {
        "unet": {
            "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * 64,
            "up_block_types": ["CrossAttnUpBlockSpatioTemporal"] * 64,
            "block_out_channels": [32] * 64,
            "num_attention_heads": [1] * 64,
            "layers_per_block": 64,
            "transformer_layers_per_block": 64,
        },
        "vae": {
            "down_block_types": ["DownEncoderBlock2D"] * 64,
            "block_out_channels": [32] * 64,
            "layers_per_block": 64,
        },
        "image_encoder": {"num_hidden_layers": 10**6},
    }
    file = teacher / component / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes[component]))
    refused(teacher, f"{component}/config.json.*(far more layers|out of bounds|has the shape|lack)")
    if component == "vae":
        with pytest.raises(CheckpointError, match="far more layers"):
            find_vae(str(teacher)).load()


class TestLinks:
    @pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "vae/config.json", "vae", "unet"])
    def test_weights_and_folders_that_are_links_to_elsewhere(self, teacher, tmp_path_factory, name):
        elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret"
        shutil.move(teacher / name, elsewhere)
        (teacher / name).symlink_to(elsewhere)
        refused(teacher, f"{name}.* is a link that leads out of the folder")

    def test_a_loop_of_links(self, teacher):
        (teacher / "unet" / "loop.json").symlink_to("loop.json")
        refused(teacher, "loop.json is a link that leads back to itself")

    def test_a_link_within_the_folder(self, teacher):
        file = teacher / "unet" / "diffusion_pytorch_model.safetensors"
        file.rename(teacher / "weights")
        file.symlink_to("../weights")
        prune_pipeline(teacher, teacher.parent / "student")

    def test_a_snapshot_in_the_hub_s_cache_given_by_its_path(self, teacher):
        """Its files are links to `blobs`. Their names, said to be hashes, are as little proof as the folder is."""
        repo = teacher.parent / "models--org--svd"
        snapshot = repo / "snapshots" / ("0" * 40)
        shutil.copytree(teacher, snapshot)
        (repo / "blobs").mkdir()
        for number, file in enumerate(path for path in snapshot.rglob("*") if path.is_file()):
            blob = repo / "blobs" / f"{number:064}"
            file.rename(blob)
            file.symlink_to(blob)
        student = prune_pipeline(snapshot, teacher.parent / "student")
        expected = prune_pipeline(teacher, teacher.parent / "expected")
        hashes = [
            json.loads((folder / "unet/pruning_provenance.json").read_text())["teacher"]["files"]
            for folder in (student, expected)
        ]
        assert hashes[0] == hashes[1]
