"""What documents show is true: snippets run or at least import, links and paths lead somewhere, commands exist."""

import ast
import importlib
import json
import re
from itertools import chain
from pathlib import Path

import pytest
import torch
from printed_commands import DOCUMENTS, ROOT
from tiny import student_of, tiny_image, tiny_svd_pipeline
from tiny_text_to_video import tiny_t2v_pipeline
from written_latents import write_latents

from vdmini_diffusers import VDMiniI2VPipeline
from vdmini_diffusers.pruning import VDMINI_UNET


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def python_snippets(path: Path) -> list[str]:
    """Those of cards with what is filled in later: further arguments, the class of a VAE, and whole lines."""
    text = path.read_text(encoding="utf-8").replace("$class_name", "VDMiniAutoencoderKL").replace("$loading", "pass")
    text = re.sub(r"\$\w+_argument", "", text)
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if python_snippets(path)], ids=relative)
def test_snippets_are_python_and_what_they_import_is_there(path):
    for snippet in python_snippets(path):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What the README's snippets name, tiny: a teacher in SVD's layout, and students of both kinds."""
    folder = tmp_path_factory.mktemp("readme")
    teacher = tiny_svd_pipeline()
    teacher.save_pretrained(folder / "teacher", variant="fp16")
    teacher.save_pretrained(folder / "sf-v")
    origin = {"teacher": "teacher", "teacher_variant": "fp16", "student": None}  # as `train_sf_v.py` writes it
    (folder / "sf-v" / "training.json").write_text(json.dumps(origin))
    components = teacher.components | {"unet": student_of(teacher.unet, VDMINI_UNET)}
    VDMiniI2VPipeline(**components).save_pretrained(folder / "i2v", variant="fp16")
    tiny_t2v_pipeline().save_pretrained(folder / "t2v", variant="fp16")
    write_latents(folder / "latents", num_samples=2)
    tiny_image().save(folder / "first_frame.png")
    return folder


def test_the_snippets_of_the_readme_run_one_after_the_other(folders, monkeypatch):
    monkeypatch.chdir(folders)
    code = "".join(python_snippets(ROOT / "README.md"))
    few = "max_train_steps=1, gradient_accumulation_steps=1, discriminator_width=32"
    tiny = {
        '"org/vdmini-i2v"': '"i2v"',
        '"org/vdmini-t2v"': '"t2v"',
        '"stabilityai/stable-video-diffusion-img2vid"': '"teacher"',
        '"path/to/sf-v"': '"sf-v"',
        'train_data_dir="path/to/videos"': f'precomputed_data_dir="latents", {few}',
        '.to("cuda")': "",
        "num_inference_steps=25": "num_inference_steps=2",
        "num_inference_steps=16": "num_inference_steps=2, num_frames=2",
        "torch.float16": "torch.float32",
    }
    for printed, substitute in tiny.items():
        assert printed in code
        code = code.replace(printed, substitute)
    with torch.random.fork_rng():
        exec(compile(code, "README.md", "exec"), {})
    made = {"video.gif", "vdmini-i2v/model_index.json", "vdmini-i2v-distilled/model_index.json"}
    assert {name for name in made if not (folders / name).is_file()} == set()
    assert (folders / "svd-milder" / "unet" / "pruning_plan.json").is_file()


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_lead_to_files_and_to_headings(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if re.match(r"\w+:", target) or "{" in target:
            continue  # elsewhere, or filled in later
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_paths_of_the_repository_exist(path):
    tops = "conversion|training|benchmarks|pipelines|tests|model_cards|vdmini_diffusers"
    parts = "analysis|cli|data|demo|distillation|evaluation|families|models|pruning|publishing|serialization"
    parts += "|t2v_turbo|trainers"
    text = path.read_text(encoding="utf-8")
    named = re.findall(rf"(?<![\w/.<-])((?:{tops}|{parts})/[\w./-]*[\w/])", text)
    assert [name for name in named if not any((at / name).exists() for at in (ROOT, ROOT / "vdmini_diffusers"))] == []


def test_targets_of_make_exist():
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"quickstart", "test", "quality"} <= targets
    for path in DOCUMENTS:
        code = re.findall(r"`make ([a-z][\w-]*)|^make ([a-z][\w-]*)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(filter(None, chain.from_iterable(code))) <= targets, relative(path)


def test_nothing_says_that_the_package_can_be_had_from_an_index():
    sources = [
        path
        for folder in ("vdmini_diffusers", "pipelines", "conversion", "training", "benchmarks", "tests")
        for path in (ROOT / folder).rglob("*.py")
    ]
    published = re.compile(r"(?:pip install|uv add|uv pip install)[^\n`]* ['\"]?vdmini" + "[-_]diffusers")
    found = [relative(p) for p in [*DOCUMENTS, *sources] if published.search(p.read_text(encoding="utf-8"))]
    assert found == []
