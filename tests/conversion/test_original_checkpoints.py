"""Transformers pruned from their authors' files, the rest of the pipeline from a folder."""

import json
import runpy
import sys

import pytest
import torch
from diffusers import DiffusionPipeline, HunyuanVideoTransformer3DModel
from fresh_python import run_python
from original_hunyuan_video import original_hunyuan_video
from tiny import randomise
from tiny_hunyuan_video import tiny_hunyuan_pipeline
from tiny_wan import tiny_wan_pipeline

from vdmini_diffusers.pruning import TransformerPruningPlan
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


WAN = {  # authors' names of what diffusers calls otherwise
    "condition_embedder.time_embedder.linear_1.": "time_embedding.0.",
    "condition_embedder.time_embedder.linear_2.": "time_embedding.2.",
    "condition_embedder.text_embedder.linear_1.": "text_embedding.0.",
    "condition_embedder.text_embedder.linear_2.": "text_embedding.2.",
    "condition_embedder.time_proj.": "time_projection.1.",
    "attn1.": "self_attn.",
    "attn2.": "cross_attn.",
    "to_out.0.": "o.",
    "to_q.": "q.",
    "to_k.": "k.",
    "to_v.": "v.",
    "ffn.net.0.proj.": "ffn.0.",
    "ffn.net.2.": "ffn.2.",
    "proj_out.": "head.head.",
    "norm2.": "norm3.",
}


def original_wan(state):
    renamed = {}
    for name, tensor in state.items():
        if name.endswith("scale_shift_table"):
            name = name.replace("scale_shift_table", "modulation" if name.startswith("blocks") else "head.modulation")
        for ours, theirs in WAN.items():
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    """A pipeline, and another without the weights of its transformer, which are in a file beside it."""
    folder = tmp_path_factory.mktemp("wan")
    pipe = tiny_wan_pipeline(("transformer",))
    pipe.save_pretrained(folder / "teacher")
    pipe.save_pretrained(folder / "rest")
    (folder / "rest/transformer/diffusion_pytorch_model.safetensors").unlink()
    torch.save(original_wan(pipe.transformer.state_dict()), folder / "original.pth")
    return folder


def run_script(monkeypatch, capsys, *flags):
    monkeypatch.setattr(sys, "argv", ["prune_video_transformer.py", *map(str, flags)])
    from checkout import ROOT  # skips the test where there is no checkout

    runpy.run_path(str(ROOT / "conversion/prune_video_transformer.py"), run_name="__main__")
    return capsys.readouterr().out


def test_the_student_of_an_original_file_is_that_of_diffusers_folder(wan, monkeypatch, capsys):
    from_folder = run_script(
        monkeypatch, capsys, "--pretrained_model_name_or_path", wan / "teacher", "--output_dir", wan / "a"
    )
    flags = ("--pretrained_model_name_or_path", wan / "rest", "--output_dir", wan / "b")
    original = ("--original_checkpoint", wan / "original.pth")
    printed = run_script(monkeypatch, capsys, *flags, *original)
    assert "transformer: " in printed and f"The student's pipeline is in {wan / 'b'}" in printed
    assert from_folder.replace(str(wan / "teacher"), str(wan / "rest")).replace(str(wan / "a"), "") == printed.replace(
        str(wan / "b"), ""
    )
    for file in (path for path in (wan / "a").rglob("*") if path.suffix == ".safetensors"):
        assert (wan / "b" / file.relative_to(wan / "a")).read_bytes() == file.read_bytes()
    assert DiffusionPipeline.from_pretrained(wan / "b").transformer_2 is None
    files = json.loads((wan / "b/transformer/pruning_provenance.json").read_text())["teacher"]["files"]
    assert files["original.pth"]["size"] == (wan / "original.pth").stat().st_size
    assert not any(name.startswith("transformer/diffusion") for name in files)


def test_the_transformer_alone(wan, monkeypatch, capsys):
    flags = ("--pretrained_model_name_or_path", wan / "teacher", "--output_dir", wan / "only", "--transformer_only")
    assert "The student's transformer is in" in run_script(monkeypatch, capsys, *flags)
    assert sorted(path.name for path in (wan / "only").iterdir()) == ["README.md", "transformer"]
    code = (wan / "only/README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(wan)
    pipes = {}
    exec(code.replace("bfloat16", "float32"), pipes)
    assert len(pipes["pipe"].transformer.blocks) < len(DiffusionPipeline.from_pretrained("teacher").transformer.blocks)


def test_one_file_is_not_the_weights_of_two_transformers(wan):
    tiny_wan_pipeline().save_pretrained(wan / "two")
    with pytest.raises(ValueError, match="one denoiser, and the pipeline has transformer and transformer_2"):
        prune_pipeline(wan / "two", wan / "student", original_checkpoint=wan / "original.pth")


def test_two_transformers_without_the_rest(wan):
    tiny_wan_pipeline().save_pretrained(wan / "both")
    student = prune_pipeline(wan / "both", wan / "both-pruned", denoisers_only=True)
    assert sorted(path.name for path in student.iterdir()) == ["README.md", "transformer", "transformer_2"]
    card = (student / "README.md").read_text()
    assert "transformer=transformer, transformer_2=transformer_2" in card


@pytest.mark.slow
def test_hunyuan_video_at_its_width_in_bounded_memory(tmp_path):
    """One file of a gigabyte: the converter of diffusers takes no other width than 3072."""
    plan = TransformerPruningPlan(
        "one", "HunyuanVideoTransformer3DModel", {"transformer_blocks": (1,), "single_transformer_blocks": (1,)}
    )
    config = {"num_layers": 2, "num_single_layers": 2, "mlp_ratio": 0.01, "num_refiner_layers": 1}
    transformer = HunyuanVideoTransformer3DModel(**config, text_embed_dim=16, pooled_projection_dim=8).bfloat16()
    transformer = randomise(transformer).eval()
    pipe = tiny_hunyuan_pipeline()
    pipe.save_pretrained(tmp_path / "teacher")
    for file in (tmp_path / "teacher/transformer").iterdir():
        file.unlink()
    transformer.save_config(tmp_path / "teacher/transformer")
    torch.save({"module": original_hunyuan_video(transformer.state_dict())}, tmp_path / "mp_rank_00_model_states.pt")
    (tmp_path / "plan.json").write_text(plan.to_json_string())
    code = """
import re, sys
from pathlib import Path
from vdmini_diffusers import prune_pipeline
from vdmini_diffusers.serialization import pipeline_folder
pipeline_folder.MAX_HASHED_BYTES = 0
def resident(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
prune_pipeline(sys.argv[1], sys.argv[2], sys.argv[3], original_checkpoint=sys.argv[4], denoisers_only=True)
print(resident("VmHWM") - before)
"""
    home = tmp_path / "home"
    home.mkdir()
    arguments = (tmp_path / name for name in ("teacher", "student", "plan.json", "mp_rank_00_model_states.pt"))
    assert run_python(code, *arguments, home=home) < 256 * 2**20
    student = HunyuanVideoTransformer3DModel.from_pretrained(tmp_path / "student/transformer", dtype=torch.bfloat16)
    teacher = transformer.state_dict()
    for name, source in plan.weight_map(student.state_dict()).items():
        assert torch.equal(student.state_dict()[name], teacher[source]), name
