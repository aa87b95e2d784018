"""The files of a trained transformer's pipeline, which are those of the pruned one."""

import json

import huggingface_hub
import pytest
import torch
from fake_hub import FakeHub
from safetensors.torch import save_file

from vdmini_diffusers.trainers.trained_transformer import pipeline_files


FILES = (
    *("LICENSE", "NOTICE.txt", "model_index.json", "pipeline_vdmini_hunyuan_video.py"),
    *("tokenizer/chat_template.jinja", "tokenizer/merges.txt", "tokenizer/spiece.model", "tokenizer/vocab.json"),
    *("transformer/config.json", "transformer/pruning_plan.json", "vae/model.safetensors"),
)


@pytest.fixture
def student(tmp_path):
    folder = tmp_path / "student"
    for name in (*FILES, "README.md", "training.json", "transformer/diffusion_pytorch_model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    parts = {part: ["diffusers", "Class"] for part in ("tokenizer", "transformer", "vae")}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "HunyuanVideoPipeline", **parts}))
    save_file({"x": torch.ones(2)}, folder / "transformer/diffusion_pytorch_model.safetensors")
    return folder


def test_all_that_a_pipeline_needs_comes_from_a_folder_and_from_the_hub(student, tmp_path, monkeypatch):
    """Its licence and vocabulary as well."""
    found = pipeline_files(str(student), "transformer", None)
    assert {path.as_posix() for path in found.others} == set(FILES) and set(found.weights) == {"x"}
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with FakeHub(tmp_path / "hub") as hub:
        files = (path for path in student.rglob("*") if path.is_file())
        hub.commit("org/student", {path.relative_to(student).as_posix(): path.read_bytes() for path in files})
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        downloaded = pipeline_files("org/student", "transformer", None)
    assert downloaded.others == found.others and set(downloaded.weights) == {"x"}
