"""Teachers from the Hub, and students to it, through a Hub on the loopback."""

import hashlib
import json

import huggingface_hub
import pytest
from fake_hub import FakeHub
from fresh_python import run_python
from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from tiny import tiny_decoder_plans, tiny_teacher_vae

from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.serialization.pipeline_folder import known_sha256, open_teacher


RUN = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__'); print('null')"
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with FakeHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def teacher_files(teacher_folder):
    files = {
        p.relative_to(teacher_folder).as_posix(): p.read_bytes() for p in teacher_folder.rglob("*") if p.is_file()
    }
    card = b"---\nlicense: other\nlicense_name: some-community\nlicense_link: LICENSE.md\n---\nA teacher.\n"
    return {**files, "README.md": card, "LICENSE.md": b"Only for good."}


def test_teacher_from_the_hub(hub, teacher_files, tmp_path):
    others = {f"vae/diffusion_pytorch_model.{ending}": b"not wanted" for ending in ("bin", "fp16.safetensors")}
    commit = hub.commit("org/svd", {**teacher_files, **others}, ref="v1")
    options = {"cache_dir": tmp_path / "cache", "endpoint": hub.endpoint}
    prune_pipeline("org/svd", tmp_path / "student", revision="v1", **options)
    record = json.loads((tmp_path / "student/unet/pruning_provenance.json").read_text())["teacher"]
    assert (record["name"], record["revision"], record["commit"]) == ("org/svd", "v1", commit)
    for name, entry in record["files"].items():
        assert entry["sha256"] == hashlib.sha256(teacher_files[name]).hexdigest()
    downloaded = {path.partition(f"{commit}/")[2] for method, path in hub.requests if method == "GET"}
    assert UNET_FILE in downloaded
    assert not any(name.endswith((".bin", ".fp16.safetensors")) for name in downloaded)
    card = (tmp_path / "student/README.md").read_text()
    assert "base_model: org/svd\n" in card
    assert "license_name: some-community\n" in card
    assert (tmp_path / "student/LICENSE.md").read_text() == "Only for good."


@pytest.mark.slow
def test_the_hash_that_a_local_folder_brings_along_is_not_believed(hub, teacher_files, tmp_path):
    """`hf download --local-dir` notes the Hub's hashes in the folder, where anybody may have written them."""
    hub.commit("org/svd", teacher_files)
    options = {"cache_dir": tmp_path / "cache", "endpoint": hub.endpoint}
    snapshot_download("org/svd", local_dir=tmp_path / "local", **options)
    snapshot_download("org/svd", **options)
    local, cached = open_teacher(tmp_path / "local", SVD.layout), open_teacher("org/svd", SVD.layout, **options)
    assert (local.folder / ".cache/huggingface/download" / f"{UNET_FILE}.metadata").is_file()
    files = [UNET_FILE, "model_index.json"]
    assert [known_sha256(local, local.folder / file) for file in files] == [None, None]
    # The Hub's hash of a small file is git's.
    hashes = [known_sha256(cached, cached.folder / file) for file in files]
    assert hashes == [hashlib.sha256(teacher_files[UNET_FILE]).hexdigest(), None]


@pytest.mark.slow
def test_repository_that_is_not_there_leaves_nothing(hub, tmp_path):
    options = {"cache_dir": tmp_path / "cache", "endpoint": hub.endpoint}
    with pytest.raises(RepositoryNotFoundError):
        prune_pipeline("org/nothing", tmp_path / "out/student", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_script_pushes_a_folder_that_opens_from_the_hub(hub, home, teacher_folder, tmp_path):
    from checkout import ROOT  # skips the test where there is no checkout

    script = ROOT / "conversion/convert_svd_to_vdmini.py"
    flags = ("--pretrained_model_name_or_path", teacher_folder, "--output_dir", tmp_path / "student")
    push = ("--push_to_hub", "--hub_model_id", "org/vdmini")
    run_python(RUN, script, *flags, *push, home=home, endpoint=hub.endpoint)
    student = tmp_path / "student"
    expected = {path.relative_to(student).as_posix() for path in student.rglob("*") if path.is_file()}
    assert set(hub.files("org/vdmini")) - {".gitattributes"} == expected
    load = (
        "from vdmini_diffusers import VDMiniI2VPipeline;"
        "print(VDMiniI2VPipeline.from_pretrained('org/vdmini').unet.num_parameters())"
    )
    assert run_python(load, home=home, endpoint=hub.endpoint) == 2_645_082


@pytest.mark.slow
def test_script_prunes_the_vae_of_a_repository_and_pushes_what_opens_from_the_hub(hub, home, tmp_path):
    vae = tiny_teacher_vae("image")
    vae.save_pretrained(tmp_path / "teacher/vae")
    names = ("config.json", "diffusion_pytorch_model.safetensors")
    files = {f"vae/{name}": (tmp_path / "teacher/vae" / name).read_bytes() for name in names}
    commit = hub.commit("org/sd", {**files, "unet/diffusion_pytorch_model.safetensors": b"not wanted"})
    plan = tiny_decoder_plans("image")["folds"]
    (tmp_path / "plan.json").write_text(plan.to_json_string())
    from checkout import ROOT  # skips the test where there is no checkout

    script = ROOT / "conversion/prune_vae_decoder.py"
    flags = ("--pretrained_model_name_or_path", "org/sd", "--output_dir", tmp_path / "student")
    push = ("--plan", tmp_path / "plan.json", "--push_to_hub", "--hub_model_id", "org/vae")
    run_python(RUN, script, *flags, *push, home=home, endpoint=hub.endpoint)
    record = json.loads((tmp_path / "student/pruning_provenance.json").read_text())["teacher"]
    assert (record["name"], record["commit"]) == ("org/sd", commit)
    hashes = {name: entry["sha256"] for name, entry in record["files"].items()}
    assert hashes == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert not any("unet" in path for method, path in hub.requests if method == "GET")
    load = (
        "from vdmini_diffusers import VDMiniAutoencoderKL;"
        "print(VDMiniAutoencoderKL.from_pretrained('org/vae').config.decoder_mid_layers)"
    )
    assert run_python(load, home=home, endpoint=hub.endpoint) == len(plan.mid)
