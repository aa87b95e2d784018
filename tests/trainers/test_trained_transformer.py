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


def test_of_two_variants_in_shards_the_other_s_index_does_not_go_along(student):
    folder = student / "transformer"
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    for variant in ("", ".fp16"):
        shard = f"diffusion_pytorch_model{variant}-00001-of-00001.safetensors"
        save_file({"x": torch.ones(2)}, folder / shard)
        index = {"metadata": {"total_size": 8}, "weight_map": {"x": shard}}
        (folder / f"diffusion_pytorch_model.safetensors.index{variant}.json").write_text(json.dumps(index))
    for variant, name in ((None, "index.json"), ("fp16", "index.fp16.json")):
        found = pipeline_files(str(student), "transformer", variant)
        indices = [path.name for path in found.others if "index." in path.name and path.name != "model_index.json"]
        assert indices == [f"diffusion_pytorch_model.safetensors.{name}"] and set(found.weights) == {"x"}


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
