"""Thousands of damaged files for every reader: each is read, or refused by an error of ours that names the file."""

import io
import json
import shutil
import struct
from functools import partial

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_decoder_plans
from tiny_text_to_video import CLIP_EXCERPT

from vdmini_diffusers.families import find_family
from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.pruning import VDMINI_HY, VDMINI_UNET, PruningPlanError, find_plan
from vdmini_diffusers.pruning.components import check_component, component_classes
from vdmini_diffusers.pruning.student_folder import read_plan
from vdmini_diffusers.pruning.survey import survey_denoiser
from vdmini_diffusers.pruning.vae_folder import find_vae, read_decoder_plan
from vdmini_diffusers.serialization.cards import license_of, write_card
from vdmini_diffusers.serialization.pickled_weights import find_pickles, unpickle
from vdmini_diffusers.serialization.pipeline_folder import companion_files, find_weights, open_teacher
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError, read_checkpoint, read_header, read_json
from vdmini_diffusers.t2v_turbo.checkpoint import read_original
from vdmini_diffusers.t2v_turbo.tensors import OriginalCheckpointError
from vdmini_diffusers.t2v_turbo.tokenizer import read_tokenizer


pytestmark = pytest.mark.slow

OWN = (CheckpointError, OriginalCheckpointError, PruningPlanError)
TEXTS = st.text(max_size=8) | st.sampled_from(
    ["", "..", "../x", "/etc/passwd", "a\0b", "\ud800", "x" * 100_000, "diffusers", "__class__", "CON", "ä\n"]
)
NUMBERS = (
    st.integers(-3, 70) | st.sampled_from([10**30, -(10**30), 2**63, 10**9]) | st.floats(allow_nan=True, width=32)
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def fuzz(num_examples):
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=num_examples, suppress_health_check=checks, deadline=None)


def only_own_errors(read, *names):
    """Run a reader. What it raises must be of ours, name the file, and be a sentence that fits on a screen."""
    try:
        read()
    except Exception as error:
        assert type(error) in OWN, repr(error)
        message = str(error)
        assert any(str(name) in message for name in names), message
        assert len(message) < 5000
        message.encode()


def damaged_json(data, value):
    """JSON of `value` with one part replaced, removed or added, or cut, or with a byte replaced."""
    kind = data.draw(st.sampled_from(["part", "part", "part", "whole", "cut", "byte", "deep", "twice"]))
    text = json.dumps(replaced(data, value) if kind == "part" else value).encode()
    if kind == "whole":
        text = json.dumps(data.draw(VALUES)).encode()
    elif kind == "cut":
        text = text[: data.draw(st.integers(0, len(text)))]
    elif kind == "byte":
        position = data.draw(st.integers(0, len(text) - 1))
        text = text[:position] + bytes([data.draw(st.integers(0, 255))]) + text[position + 1 :]
    elif kind == "deep":
        text = b'{"a":' * data.draw(st.sampled_from([100, 100_000])) + text
    elif kind == "twice":
        text = text.rstrip()[:-1] + b',"x":1,"x":2}'
    return text


def replaced(data, value):
    """`value` with one of its parts, at any depth, replaced, renamed or removed."""
    inner = list(value.items()) if isinstance(value, dict) else list(enumerate(value if type(value) is list else ()))
    if inner and data.draw(st.booleans()):
        key, part = data.draw(st.sampled_from(inner))
        changed = replaced(data, part)
        if isinstance(value, dict):
            return {**value, key: changed}
        return [*value[:key], changed, *value[key + 1 :]]
    if isinstance(value, dict) and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value)) if value else TEXTS)
        rest = {k: v for k, v in value.items() if k != key}
        return rest if data.draw(st.booleans()) else {**rest, data.draw(TEXTS): value.get(key)}
    return data.draw(VALUES)


@pytest.fixture(scope="module")
def spoilt(teacher_folder, tmp_path_factory):
    """A teacher of which one file at a time is damaged."""
    return shutil.copytree(teacher_folder, tmp_path_factory.mktemp("fuzz") / "teacher")


def with_damage(data, spoilt, teacher_folder, name, read):
    original = (teacher_folder / name).read_bytes()
    (spoilt / name).write_bytes(damaged_json(data, json.loads(original)))
    try:
        read()
    finally:
        (spoilt / name).write_bytes(original)


@fuzz(600)
@given(data=st.data())
def test_model_index(data, spoilt, teacher_folder):
    def read():
        only_own_errors(lambda: find_family(str(spoilt)), spoilt)
        only_own_errors(lambda: companion_files(open_teacher(spoilt, SVD.layout)), spoilt)

    with_damage(data, spoilt, teacher_folder, "model_index.json", read)


@fuzz(400)
@given(data=st.data())
def test_configs_of_a_denoiser(data, spoilt, teacher_folder):
    def read():
        survey = partial(survey_denoiser, spoilt / "unet", VDMINI_UNET, SVD.denoisers["unet"])
        only_own_errors(survey, spoilt, "M ", "D.", "U.", "stages", "The plan")

    with_damage(data, spoilt, teacher_folder, "unet/config.json", read)


@fuzz(400)
@given(data=st.data(), component=st.sampled_from(["vae", "image_encoder"]))
def test_configs_of_other_components(data, component, spoilt, teacher_folder):
    def read():
        teacher = open_teacher(spoilt, SVD.layout)
        library = SVD.layout.components[component].library
        tensors, _ = find_weights(teacher, component, library, None, False)
        classes = component_classes(SVD.pipeline, component, None)
        only_own_errors(
            lambda: check_component(spoilt / component, tensors, teacher.index[component][1], classes), spoilt
        )
        if component == "vae":
            try:
                find_vae(str(spoilt)).load()
            except ValueError as error:
                assert str(spoilt) in str(error)

    with_damage(data, spoilt, teacher_folder, f"{component}/config.json", read)


@fuzz(300)
@given(data=st.data())
def test_index_of_shards(data, tmp_path):
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    index = {"metadata": {"total_size": 4}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_bytes(damaged_json(data, index))
    only_own_errors(lambda: read_checkpoint(tmp_path, "model"), tmp_path)
    (tmp_path / "model.bin.index.json").write_bytes(damaged_json(data, index))
    only_own_errors(lambda: find_pickles(tmp_path, "model"), tmp_path)


@fuzz(500)
@given(data=st.data())
def test_headers(data, tmp_path):
    header = {"__metadata__": {}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = damaged_json(data, header)
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    only_own_errors(lambda: read_header(tmp_path / "x.safetensors"), tmp_path / "x.safetensors")


@fuzz(500)
@given(data=st.data())
def test_plans(data, tmp_path):
    plans = [VDMINI_UNET, tiny_decoder_plans("image")["folds"], VDMINI_HY]
    text = damaged_json(data, json.loads(data.draw(st.sampled_from(plans)).to_json_string()))
    file = tmp_path / "unet" / "pruning_plan.json"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text)
    only_own_errors(lambda: find_plan(file), file)
    only_own_errors(lambda: read_plan(str(tmp_path), "unet"), file)
    files = {"pruning_plan.json": file, "pruning_channels.json": tmp_path / "pruning_channels.json"}
    files["pruning_channels.json"].write_bytes(damaged_json(data, [{"layers": ["conv_in"], "kept": [0, 1]}]))
    file.write_text(plans[1].to_json_string())
    try:
        read_decoder_plan(files, str(tmp_path))
    except ValueError as error:
        assert type(error) in (ValueError, CheckpointError) and str(tmp_path) in str(error)


@fuzz(500)
@given(data=st.data())
def test_pickles(data, tmp_path):
    """With some bytes replaced, removed or repeated, in archives of today and files from before PyTorch 1.6."""
    stream = io.BytesIO()
    state = {"a": torch.ones(3), "b": torch.zeros(2, 2, dtype=torch.float16)}
    torch.save(state, stream, _use_new_zipfile_serialization=data.draw(st.booleans()))
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(content))
    shutil.rmtree(tmp_path / "scratch", ignore_errors=True)
    only_own_errors(lambda: unpickle([file], tmp_path / "scratch"), file)
    only_own_errors(lambda: read_original(file), file)


@fuzz(400)
@given(
    text=st.text(alphabet=st.sampled_from("-:#&*!|>[]{}'\"%@`,?\n \tab1\\"), max_size=60) | TEXTS, closed=st.booleans()
)
def test_cards(text, closed, tmp_path):
    """A card with any front matter gives a licence, from which the student's card can be written."""
    card = tmp_path / "README.md"
    card.write_bytes(f"---\nlicense: {text}\n{'---' if closed else ''}\n".encode(errors="surrogatepass"))
    found = license_of(card)
    assert found and all(isinstance(value, str) for value in found.values())
    names = "teacher plan_name plan_json dropped_blocks num_teacher_parameters num_student_parameters kept_percent"
    fields = dict.fromkeys([*names.split(), "variant_argument", "package_version", "repository"], "x")
    write_card(tmp_path, "vdmini_i2v.md", front_matter={"tags": ["x"]}, teacher_card=card, **fields)


@fuzz(60)
@given(data=st.data(), name=st.sampled_from(["vocab.json", "tokenizer_config.json"]))
def test_tokenizers(data, name, tmp_path):
    for file in ("vocab.json", "merges.txt"):
        shutil.copyfile(CLIP_EXCERPT / file, tmp_path / file)
    config = {"tokenizer_class": "CLIPTokenizer", "pad_token": "!", "bos_token": "<|startoftext|>"}
    content = json.loads((CLIP_EXCERPT / name).read_text()) if name == "vocab.json" else config
    (tmp_path / name).write_bytes(damaged_json(data, content))
    sizes = {"vocab_size": 1000, "max_position_embeddings": 77, "bos_token_id": 1, "eos_token_id": 2}
    only_own_errors(lambda: read_tokenizer(tmp_path, sizes), tmp_path)


def test_the_damage_is_damage():
    """A control: of the damaged plans, most are refused, and some are read."""
    refused = []

    @fuzz(100)
    @given(data=st.data())
    def damage(data):
        try:
            json.loads(damaged_json(data, {"a": [1, {"b": 2}]}))
            refused.append(False)
        except (ValueError, RecursionError):
            refused.append(True)

    damage()
    assert 10 < sum(refused) < len(refused)


def test_what_is_not_damaged_is_read(spoilt, tmp_path):
    assert find_family(str(spoilt)) is SVD
    assert read_json(spoilt / "model_index.json")["_class_name"] == "StableVideoDiffusionPipeline"
