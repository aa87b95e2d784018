"""Uploads by the real client to a Hub on the loopback."""

import logging
from pathlib import Path

import huggingface_hub
import pytest
from fake_hub import FakeHub, Refusal

from vdmini_diffusers.publishing.upload import stale_weights, upload_files


REPO = "org/vdmini"
TOKEN = "hf_writing"
LARGE = "unet/diffusion_pytorch_model.safetensors"
FILES = {"README.md": b"---\nlicense: mit\n---\n\n# A model\n", "unet/config.json": b"{}", LARGE: b"weights" * 1000}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    with FakeHub(tmp_path / "hub") as hub:
        hub.writers = {TOKEN}
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        # Else large files go by a protocol of its own, which the loopback does not speak.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        huggingface_hub.utils.close_session()
        yield hub
        huggingface_hub.utils.close_session()


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    return tmp_path / "model"


def upload(folder, **options):
    return upload_files(folder, FILES, REPO, "Published", **{"token": TOKEN, **options})


def puts(hub):
    return [path for method, path in hub.requests if method == "PUT"]


def commits(hub):
    return [path for method, path in hub.requests if "/commit/" in path]


def contents(hub, revision="main"):
    files = hub.files(REPO, revision)
    return {name: path.read_bytes() for name, path in files.items() if name != ".gitattributes"}


def test_everything_goes_up_in_one_commit_and_the_same_again_makes_none(hub, folder):
    first = upload(folder)
    assert contents(hub) == FILES
    assert first.is_new and first.commit == hub.refs[REPO]["main"] and first.url.endswith(first.commit)
    assert (len(puts(hub)), len(commits(hub))) == (1, 1)
    second = upload(folder)
    assert (second.commit, second.is_new) == (first.commit, False)
    assert (len(puts(hub)), len(commits(hub))) == (1, 1)


def test_only_what_has_changed_is_sent(hub, folder):
    upload(folder)
    (folder / "unet" / "config.json").write_bytes(b'{"a": 1}')
    assert upload(folder).is_new
    assert contents(hub) == {**FILES, "unet/config.json": b'{"a": 1}'}
    assert len(puts(hub)) == 1


def test_a_file_can_be_downloaded_at_the_revision_before(hub, folder, tmp_path):
    first = upload(folder)
    (folder / "unet" / "config.json").write_bytes(b'{"a": 1}')
    upload(folder)
    get = {"cache_dir": tmp_path / "cache", "token": TOKEN}
    old = huggingface_hub.hf_hub_download(REPO, "unet/config.json", revision=first.commit, **get)
    new = huggingface_hub.hf_hub_download(REPO, "unet/config.json", **get)
    assert [Path(path).read_bytes() for path in (old, new)] == [b"{}", b'{"a": 1}']


def test_a_repository_can_be_made_private_and_others_do_not_see_it(hub, folder):
    upload(folder, private=True)
    assert hub.private == {REPO}
    with pytest.raises(PermissionError, match="write access"):
        upload(folder, token="hf_reading")
    hub.private.clear()
    with pytest.raises(ValueError, match="public"):
        upload(folder, private=True)


@pytest.mark.parametrize(("token", "said"), [(False, "hf auth login"), ("hf_reading", "write access")])
def test_without_a_token_that_may_write_nothing_is_made(hub, folder, token, said):
    with pytest.raises(PermissionError, match=said) as caught:
        upload(folder, token=token)
    assert REPO not in hub.refs and "hf_reading" not in str(caught.value)


def test_a_gated_repository_is_refused_to_readers_and_takes_uploads(hub, folder, tmp_path):
    upload(folder)
    hub.gated.add(REPO)
    (folder / "unet" / "config.json").write_bytes(b'{"a": 1}')
    assert upload(folder).is_new
    with pytest.raises(huggingface_hub.errors.GatedRepoError):
        huggingface_hub.hf_hub_download(REPO, "unet/config.json", cache_dir=tmp_path / "cache", token="hf_reading")


def test_a_branch_is_made_and_main_stays(hub, folder):
    hub.commit(REPO, {"other.txt": b"x"})
    main = hub.refs[REPO]["main"]
    found = upload(folder, revision="v2")
    assert hub.refs[REPO] == {"main": main, "v2": found.commit}
    assert contents(hub, "v2") == {**FILES, "other.txt": b"x"}


def test_a_pull_request_leaves_main_and_takes_more(hub, folder):
    hub.commit(REPO, {"other.txt": b"x"})
    main = hub.refs[REPO]["main"]
    found = upload(folder, create_pr=True)
    assert found.url.endswith("/discussions/1") and found.is_new
    assert hub.refs[REPO] == {"main": main, "refs/pr/1": found.commit}
    (folder / "unet" / "config.json").write_bytes(b'{"a": 1}')
    upload(folder, revision="refs/pr/1")
    assert contents(hub, "refs/pr/1")["unet/config.json"] == b'{"a": 1}'
    assert hub.refs[REPO]["main"] == main and len(puts(hub)) == 1


@pytest.mark.parametrize("options", [{"create_pr": True}, {"revision": "refs/pr/7"}])
def test_what_a_pull_request_needs_must_be_there(hub, folder, options):
    if "revision" in options:
        hub.commit(REPO, {"other.txt": b"x"})
    with pytest.raises(FileNotFoundError, match=REPO):
        upload(folder, **options)


def test_a_commit_in_between_is_not_overwritten(hub, folder):
    hub.commit(REPO, {"README.md": b"theirs"})
    hub.before_commit = lambda: hub.commit(REPO, {"README.md": b"theirs, newer"})
    with pytest.raises(OSError, match="has changed while"):
        upload(folder)
    assert contents(hub) == {"README.md": b"theirs, newer"}
    hub.before_commit = lambda: None
    assert upload(folder).is_new and len(puts(hub)) == 1  # the large file is stored since the first try


def test_the_hub_s_conflict_is_explained(hub, folder):
    hub.refusals = [Refusal("POST", "/commit/", 409)]
    with pytest.raises(OSError, match="run the same command again"):
        upload(folder)


@pytest.mark.parametrize("path", ["/commit/", "/repos/create", "^/api/models/org/vdmini$"])
def test_too_many_requests_are_waited_for(hub, folder, path, caplog):
    method = "GET" if path.endswith("$") else "POST"
    hub.refusals = [Refusal(method, path, 429, times=2, headers={"Retry-After": "0"})]
    with caplog.at_level(logging.WARNING, logger="vdmini_diffusers"):
        assert upload(folder).is_new
    assert [record.message for record in caplog.records].count("the Hub asks to wait: trying again in 0 s") == 2
    assert contents(hub) == FILES


def test_too_many_requests_for_long_end_it(hub, folder):
    hub.refusals = [Refusal("POST", "/commit/", 429, times=5, headers={"Retry-After": "0"})]
    with pytest.raises(ConnectionError, match="again later"):
        upload(folder)
    assert hub.refusals[0].times == 0


@pytest.mark.parametrize(("method", "path"), [("PUT", "/lfs/"), ("POST", "/preupload/"), ("POST", "/objects/batch")])
def test_the_client_itself_goes_on_after_a_cut(hub, folder, method, path):
    hub.refusals = [Refusal(method, path, None)]
    assert upload(folder).is_new
    assert contents(hub) == FILES


def test_an_upload_that_was_cut_off_goes_on_without_sending_large_files_again(hub, folder):
    hub.refusals = [Refusal("POST", "/commit/", None)]
    with pytest.raises(ConnectionError, match="same command"):
        upload(folder)
    assert contents(hub) == {} and len(puts(hub)) == 1
    assert upload(folder).is_new and contents(hub) == FILES
    assert len(puts(hub)) == 1


def test_a_signed_address_is_not_repeated(hub, folder):
    hub.refusals = [Refusal("POST", "/commit/", 403, code="See http://x/lfs/1?X-Amz-Signature=s3cret now")]
    with pytest.raises(PermissionError, match="http://x/lfs/1 now") as caught:
        upload(folder)
    assert "s3cret" not in str(caught.value)


def test_shards_replace_a_single_file_and_other_variants_stay(hub, folder):
    shard = "unet/diffusion_pytorch_model-00001-of-00002.safetensors"
    there = {shard: b"1", "unet/diffusion_pytorch_model.safetensors.index.json": b"{}", "vae/model.safetensors": b"2"}
    half = {"unet/diffusion_pytorch_model.fp16.safetensors": b"3"}
    hub.commit(REPO, there | half)
    upload(folder)
    assert contents(hub) == {**FILES, **half, "vae/model.safetensors": b"2"}


def test_stale_weights_are_those_of_the_same_stem_and_variant():
    there = ["a/model.fp16.safetensors", "a/model.safetensors", "a/model.safetensors.index.fp16.json", "a/other.bin"]
    sharded = ["a/model.fp16-00001-of-00002.safetensors", "a/model.safetensors.index.fp16.json"]
    assert stale_weights(there, sharded) == ["a/model.fp16.safetensors"]
    assert stale_weights(there, ["a/model.safetensors"]) == []
    assert stale_weights(there, ["b/model.fp16.safetensors"]) == []
