"""From a folder to the Hub and back, by the real client and a Hub on the loopback."""

import json
import shutil

import pytest
import torch
from fake_hub import FakeHub, Refusal
from fresh_python import run_python, video_digest
from PIL import Image
from tiny import tiny_svd_pipeline
from typer import Typer
from typer.testing import CliRunner

from vdmini_diffusers import VDMiniI2VPipeline, prune_pipeline, publish
from vdmini_diffusers.cli.publish import publish as publish_command
from vdmini_diffusers.publishing.model_info import describe_model
from vdmini_diffusers.publishing.opening import check_opens
from vdmini_diffusers.publishing.published_card import LicenseTerms


REPO, TOKEN = "org/vdmini-v1.0", "hf_" + "a1B2" * 9
TERMS = LicenseTerms("apache-2.0")

PUBLISH = """
import json, os, sys, time
from vdmini_diffusers import publish
from vdmini_diffusers.publishing.published_card import LicenseTerms

folder, options = sys.argv[1], json.loads(sys.argv[2])
os.environ.pop("HF_TOKEN")
try:
    found = publish(folder, options.pop("repo_id"), terms=LicenseTerms("apache-2.0"), **options)
    print(json.dumps([found.upload.commit, found.upload.is_new, found.upload.url, found.opened]))
except (OSError, ValueError) as error:
    print(json.dumps(f"{type(error).__name__}: {error}"))
"""


@pytest.fixture
def folder(student, tmp_path):
    folder = shutil.copytree(student, tmp_path / "student")
    (folder / "samples").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "samples" / "sample.gif")
    (folder / ".env").write_text("SECRET=1")
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_published_folder_opens_from_the_hub_as_it_does_here(folder, tmp_path):
    before = contents(folder)
    (tmp_path / "hub").mkdir()
    with FakeHub(tmp_path / "hub") as hub:
        hub.writers = {TOKEN}

        def run(home, **options):
            (tmp_path / home).mkdir()
            given = json.dumps({"repo_id": REPO, "token": TOKEN, **options})
            return run_python(PUBLISH, folder, given, home=tmp_path / home, endpoint=hub.endpoint)

        # The first is cut off when all large files are there, the second goes on, and the third has nothing to do.
        hub.refusals = [Refusal("POST", "/commit/", None)]
        assert "same command again" in run("first", private=True)
        sent = [path for method, path in hub.requests if method == "PUT"]
        commit, is_new, url, opened = run("second")
        assert is_new and url.endswith(commit)
        assert opened == {"pipeline": "VDMiniI2VPipeline", "output": [1, 5, 4, 8, 8]}
        assert run("third")[:2] == [commit, False]
        assert [path for method, path in hub.requests if method == "PUT"] == sent and len(sent) == 3
        assert len([path for _, path in hub.requests if "/commit/" in path]) == 2

        files = set(hub.files(REPO, commit)) - {".gitattributes"}
        assert files == set(before) - {".env"} | {"network.png"}
        assert hub.private == {REPO} and contents(folder) == before
        assert "not there, or private" in run("stranger", repo_id="org/none", create_pr=True)
        hub.private.clear()
        (tmp_path / "reader").mkdir()
        digest = run_python(
            """
import json, sys
from fresh_python import DiffusionPipeline, video_digest
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], revision=sys.argv[2], trust_remote_code=True)
print(json.dumps([video_digest(pipe), type(pipe).__name__]))
""",
            REPO,
            commit,
            home=tmp_path / "reader",
            endpoint=hub.endpoint,
            package=False,
        )
        texts = b"".join(
            path.read_bytes() for name, path in hub.files(REPO).items() if name.endswith((".md", ".json"))
        )
    assert digest == [video_digest(VDMiniI2VPipeline.from_pretrained(folder, optimize=False)), "VDMiniI2VPipeline"]
    assert TOKEN.encode() not in texts


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["t2v", "hy"])
def test_other_families_open_without_the_package(students, kind):
    found = publish(students[kind][1], REPO, terms=TERMS, dry_run=True)
    assert found.upload is None and found.opened["output"][0] == 1
    assert found.opened["pipeline"] == {"t2v": "VDMiniT2VPipeline", "hy": "HunyuanVideoPipeline"}[kind]
    assert f"{found.opened['pipeline']}.from_pretrained" in found.card
    # diffusers itself opens HunyuanVideo's, and the card says how to use the file that is there as well.
    assert {"t2v": "pipeline_vdmini_t2v.py", "hy": "pipeline_vdmini_hunyuan_video.py"}[kind] in found.files


@pytest.mark.slow
def test_a_variant_is_opened_and_named(tmp_path):
    tiny_svd_pipeline().to(torch.float16).save_pretrained(tmp_path / "teacher", variant="fp16")
    folder = prune_pipeline(tmp_path / "teacher", tmp_path / "student", variant="fp16")
    found = publish(folder, REPO, terms=TERMS, dry_run=True)
    assert found.opened["output"] == [1, 5, 4, 8, 8] and found.card.count('variant="fp16"') == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import vdmini_diffusers", "No module named 'vdmini_diffusers"),
        ("import os; raise ValueError(str(os.environ.get('HF_TOKEN')) + ' is the token')", "None is the token"),
    ],
)
def test_what_does_not_open_alone_is_not_uploaded(folder, monkeypatch, code, said):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    file = folder / "pipeline_vdmini_i2v.py"
    file.write_text(file.read_text() + f"\n{code}\n")
    with pytest.raises(RuntimeError, match=said):
        publish(folder, REPO, terms=TERMS)


@pytest.mark.slow
def test_a_denoiser_that_makes_nan_is_not_uploaded(folder):
    pipe = VDMiniI2VPipeline.from_pretrained(folder)
    pipe.unet.conv_out.bias.data[0] = float("nan")
    pipe.unet.save_pretrained(folder / "unet")
    with pytest.raises(RuntimeError, match="NaN or infinity"):
        check_opens(describe_model(folder), folder, None)


@pytest.mark.slow
def test_the_command_prints_what_would_go_up(folder):
    app = Typer()
    app.command()(publish_command)
    arguments = [str(folder), REPO, "--license", "apache-2.0", "--dry-run"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "120", "HF_TOKEN": TOKEN})
    assert result.exit_code == 0, result.output
    size = (folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert f"{size:,}" in result.output and "network.png" in result.output and "samples/sample.gif" in result.output
    assert "left out: .env" in result.output and "opens without this package" in result.output
    assert TOKEN not in result.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repo_id": "a/b/c"}, "cannot be a repository"),
        ({"repo_id": "name"}, "org/name"),
        ({"create_pr": True, "revision": "v2"}, "main branch"),
        ({"terms": None}, "--license"),
        ({"samples": ["none.svg"]}, "none.svg"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_opened(folder, options, said):
    with pytest.raises(ValueError, match=said):
        publish(folder, **{"repo_id": REPO, "terms": TERMS, **options})


def test_what_is_no_pipeline_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="model alone"):
        publish(folder / "unet", REPO, terms=TERMS)
    with pytest.raises(ValueError, match="no folder"):
        publish(tmp_path / "nothing", REPO, terms=TERMS)
