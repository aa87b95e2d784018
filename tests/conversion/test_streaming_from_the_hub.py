"""HunyuanVideo pruned from a Hub on the loopback that counts what it sends: only what is kept, whatever goes wrong."""

import filecmp
import json
import os
import re
import shutil

import huggingface_hub
import pytest
from fake_hub import FakeHub, Fault
from tiny_hunyuan_video import TINY_PLAN, tiny_hunyuan_pipeline

from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.serialization import journal, sources
from vdmini_diffusers.serialization.hashes import sha256_of
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError, read_header


SHARD = "transformer/diffusion_pytorch_model-0000{}-of-0000{}.safetensors"


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    """With a transformer in several shards."""
    folder = tmp_path_factory.mktemp("hunyuan") / "teacher"
    tiny_hunyuan_pipeline().save_pretrained(folder, max_shard_size="120KB")
    return folder


@pytest.fixture(scope="module")
def expected(teacher_folder):
    """The student, pruned from the disk."""
    return prune_pipeline(teacher_folder, teacher_folder.parent / "student", TINY_PLAN, max_shard_size="100KB")


@pytest.fixture(scope="module")
def kept(teacher_folder):
    """The bytes of each of the teacher's weight files that are wanted: its header, and the tensors that stay."""
    sizes = {}
    for file in teacher_folder.rglob("*.safetensors"):
        tensors = read_header(file)
        removed = re.compile(r"transformer_blocks\.[13]\.|single_transformer_blocks\.[02]\.")
        stay = [t for name, t in tensors.items() if file.parent.name != "transformer" or not removed.match(name)]
        header = min(tensor.start for tensor in tensors.values())
        sizes[file.relative_to(teacher_folder).as_posix()] = header + sum(tensor.num_bytes for tensor in stay)
    return sizes


@pytest.fixture
def hub(teacher_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sources, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(journal, "SYNC_BYTES", 1)  # every piece is noted at once
    monkeypatch.setattr(os, "fsync", lambda file: None)
    with FakeHub(tmp_path / "hub") as hub:
        paths = (path for path in teacher_folder.rglob("*") if path.is_file())
        hub.commit("org/hunyuan", {p.relative_to(teacher_folder).as_posix(): p.read_bytes() for p in paths})
        yield hub


@pytest.fixture
def prune(hub, tmp_path):
    def prune(**options):
        return prune_pipeline(
            "org/hunyuan",
            tmp_path / "out/student",
            TINY_PLAN,
            **{
                "max_shard_size": "100KB",
                "cache_dir": tmp_path / "cache",
                "endpoint": hub.endpoint,
                "token": "secret",
                **options,
            },
        )

    return prune


def weights_in(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*.safetensors*")}


def sent_weights(hub):
    return {path: count for path, count in hub.sent.items() if path.endswith(".safetensors")}


def assert_same_weights(student, expected):
    assert weights_in(student) == weights_in(expected)
    _, differ, failed = filecmp.cmpfiles(student, expected, weights_in(expected), shallow=False)
    assert (differ, failed) == ([], [])


def left_in(tmp_path):
    return sorted(path.name for path in (tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else []


def test_only_the_bytes_that_are_kept_are_fetched_and_the_cache_holds_no_weights(
    hub, prune, expected, kept, teacher_folder, tmp_path
):
    student = prune()
    assert_same_weights(student, expected)
    assert sent_weights(hub) == kept
    transformer = [path for path in kept if path.startswith("transformer/")]
    whole = sum((teacher_folder / path).stat().st_size for path in transformer)
    assert sum(hub.sent[path] for path in transformer) < 0.7 * whole
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    files = json.loads((student / "transformer/pruning_provenance.json").read_text())["teacher"]["files"]
    for path in kept:  # the hashes are the Hub's
        assert files[path]["sha256"] == sha256_of(teacher_folder / path)
        assert files[path]["size"] == (teacher_folder / path).stat().st_size


def test_a_server_that_ignores_ranges_sends_whole_files_that_never_touch_the_disk(hub, prune, expected, tmp_path):
    hub.has_ranges = False
    assert_same_weights(prune(), expected)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_broken_connections_and_busy_servers(hub, prune, expected, kept):
    vae = Fault("00001-of-00003.safetensors", status=429, headers={"Retry-After": "0"})
    hub.faults = [Fault(SHARD.format(1, 4), status=503), vae, Fault(".safetensors", times=40, after=8, cut_after=5000)]
    assert_same_weights(prune(), expected)
    assert not any(fault.times for fault in hub.faults)
    assert sent_weights(hub) == kept  # after a break, the next request begins where the last one ended


def test_a_server_without_ranges_that_breaks_off_begins_anew(hub, prune, expected):
    hub.has_ranges = False
    hub.faults = [Fault(SHARD.format(2, 4), times=3, after=2, cut_after=60_000)]
    assert_same_weights(prune(), expected)
    assert not hub.faults[0].times


def test_a_server_that_is_gone_half_way_and_the_next_call_that_goes_on(hub, prune, expected, kept, tmp_path, caplog):
    dies = Fault(SHARD.format(3, 4), times=1000, after=2, cut_after=0)
    hub.faults = [dies]
    with pytest.raises(ConnectionError, match=r"org/hunyuan/transformer/.*00003-of-.* cannot be read on"):
        prune()
    assert "is kept" in caplog.text and "the same command goes on from there" in caplog.text
    partial, lock = left_in(tmp_path)
    assert partial.startswith(".student.tmp-") and lock == f"{partial}.lock"
    before = sent_weights(hub)
    hub.faults, hub.sent = [], {}
    assert_same_weights(prune(), expected)
    assert left_in(tmp_path) == ["student"] and not (tmp_path / "out/student/.progress").exists()
    headers = {path: read_bytes_of_header(expected.parent / "teacher" / path) for path in kept}
    # Each call reads all headers, and every other byte is sent once.
    assert {path: before[path] + hub.sent[path] - headers[path] for path in kept} == kept
    assert hub.sent[SHARD.format(1, 4)] == headers[SHARD.format(1, 4)]


def read_bytes_of_header(file):
    return min(tensor.start for tensor in read_header(file).values())


def test_another_conversion_of_the_same_name_begins_anew(hub, prune, tmp_path):
    hub.faults = [Fault(SHARD.format(3, 4), times=1000, after=2, cut_after=0)]
    with pytest.raises(ConnectionError):
        prune()
    hub.faults = []
    student = prune(max_shard_size="10GB")
    files = {path for path in weights_in(student) if path.startswith("transformer")}
    assert files == {"transformer/diffusion_pytorch_model.safetensors"}
    assert left_in(tmp_path) == ["student"]


def test_a_mistake_in_the_next_call_does_not_cost_what_has_come(hub, prune, tmp_path):
    hub.faults = [Fault(SHARD.format(3, 4), times=1000, after=2, cut_after=0)]
    with pytest.raises(ConnectionError):
        prune()
    before = left_in(tmp_path)
    with pytest.raises(CheckpointError, match="Weight files there"):
        prune(variant="fp16")
    assert left_in(tmp_path) == before


@pytest.mark.parametrize(
    ("size", "content_range", "message"),
    [
        (200_000, None, r"header describes 124312|the Hub lists 200000 bytes; .* sends 'bytes 0-7/124312'"),
        (100_000, None, r"the Hub lists 100000 bytes; .* sends 'bytes 0-7/124312'"),
        (None, "bytes 8-15/124312", r"asked for bytes=0-7, the server sends 'bytes 8-15/124312'"),
    ],
    ids=["larger", "smaller", "other range"],
)
def test_a_server_that_lies(hub, prune, tmp_path, size, content_range, message):
    file = SHARD.format(1, 4)
    if size:
        hub.listed_sizes[file] = size
    else:
        hub.faults = [Fault(file, content_range=content_range)]
    with pytest.raises(CheckpointError, match=f"org/hunyuan/{file}.*({message})"):
        prune()
    assert left_in(tmp_path) == []


def test_a_file_that_is_shorter_than_the_server_says(hub, prune, tmp_path):
    hub.has_ranges = False
    hub.listed_sizes[SHARD.format(1, 4)] = 200_000
    with pytest.raises(CheckpointError, match=r"the Hub lists 200000 bytes; .* sends '124312' instead"):
        prune()
    assert left_in(tmp_path) == []


def test_files_in_the_cache_are_read_there_and_offline_all_of_them_must_be(hub, prune, expected, kept, tmp_path):
    options = {"cache_dir": tmp_path / "cache", "endpoint": hub.endpoint}
    first = SHARD.format(1, 4)
    huggingface_hub.hf_hub_download("org/hunyuan", first, **options)
    hub.sent = {}
    assert_same_weights(prune(), expected)
    assert {path: count for path, count in kept.items() if path != first} == sent_weights(hub)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"text_encoder has neither"):
        prune(local_files_only=True)
    huggingface_hub.snapshot_download("org/hunyuan", **options)
    hub.sent = {}
    assert_same_weights(prune(local_files_only=True), expected)
    assert hub.sent == {}


def test_every_request_carries_the_token(hub, prune, expected):
    hub.tokens = {"secret"}
    assert_same_weights(prune(), expected)
    with pytest.raises(OSError):
        prune(overwrite=True, token="another")


def test_another_host_that_the_hub_sends_on_to_gets_the_ranges_and_not_the_token(hub, prune, expected, kept):
    """As its storage of large files is."""
    hub.tokens = {"secret"}
    with FakeHub(hub.root) as storage:
        storage.refs, hub.storage = hub.refs, storage.endpoint
        assert_same_weights(prune(), expected)
    assert sent_weights(storage) == kept and not sent_weights(hub)
    for asked, has_token in ((hub, {True}), (storage, {False})):
        assert {"Authorization" in headers for path in kept for headers in asked.received[path]} == has_token


def test_the_denoiser_alone(hub, prune, expected, kept, tmp_path):
    student = prune(denoisers_only=True)
    names = {path.relative_to(student).as_posix() for path in student.rglob("*") if path.is_file()}
    assert {name for name in names if not name.startswith("transformer/")} == {"README.md"}
    assert weights_in(student) == {path for path in weights_in(expected) if path.startswith("transformer/")}
    for name in weights_in(student):
        assert (student / name).read_bytes() == (expected / name).read_bytes()
    assert sent_weights(hub) == {path: count for path, count in kept.items() if path.startswith("transformer/")}
    card = (student / "README.md").read_text()
    assert 'transformer = HunyuanVideoTransformer3DModel.from_pretrained("student", subfolder="transformer"' in card
    assert 'pipe = HunyuanVideoPipeline.from_pretrained("org/hunyuan", revision="' in card
    prune(denoisers_only=True, overwrite=True)  # it is recognised as what may be replaced
    with pytest.raises(FileExistsError, match="is not a pipeline folder"):
        prune(overwrite=True)
