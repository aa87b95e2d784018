"""What documents show is true: snippets run or at least import, links and paths lead somewhere, commands exist."""

import ast
import importlib
import re
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image
from printed_commands import DOCUMENTS, ROOT
from tiny import tiny_image


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


def test_the_snippet_of_the_readme_makes_a_video_of_the_demo_teacher_s_student(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_image().save("photo.jpg")
    (code,) = python_snippets(ROOT / "README.md")
    fewer = {"num_clips=64": "num_clips=4", '"max_train_steps": 40': '"max_train_steps": 1'}
    fewer['"critic_warmup_steps": 8'] = '"critic_warmup_steps": 0, "gradient_accumulation_steps": 1'
    for printed, substitute in fewer.items():
        assert printed in code
        code = code.replace(printed, substitute)
    with torch.random.fork_rng():
        exec(compile(code, "README.md", "exec"), {})
    with Image.open("video.gif") as video:
        assert video.size == (64, 64) and video.n_frames == 16


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
    parts = "analysis|cli|data|demo|docs|distillation|evaluation|families|models|pruning|publishing|serialization"
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


def test_extras_that_are_named_are_there():
    extras = set(
        re.findall(r'^    "(\w+)": \[|^EXTRAS\["(\w+)"\]', (ROOT / "setup.py").read_text("utf-8"), re.MULTILINE)
    )
    known = set(filter(None, chain.from_iterable(extras)))
    assert {"video", "docs", "dev"} <= known
    for path in DOCUMENTS:
        named = re.findall(r"'\.\[([\w,]+)\]'|extras: ([\w, ]+)", path.read_text(encoding="utf-8"))
        assert {name.strip() for both in named for name in "".join(both).split(",")} <= known, relative(path)


def test_nothing_says_that_the_package_can_be_had_from_an_index():
    sources = [
        path
        for folder in ("vdmini_diffusers", "pipelines", "conversion", "training", "benchmarks", "tests")
        for path in (ROOT / folder).rglob("*.py")
    ]
    published = re.compile(r"(?:pip install|uv add|uv pip install)[^\n`]* ['\"]?vdmini" + "[-_]diffusers")
    found = [relative(p) for p in [*DOCUMENTS, *sources] if published.search(p.read_text(encoding="utf-8"))]
    assert found == []
