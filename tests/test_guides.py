"""The guides in `docs/`: their snippets run, every guide is listed, and the messages that they explain are ours."""

import ast
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from printed_commands import ROOT
from tiny import tiny_svd_pipeline
from written_latents import write_latents

from vdmini_diffusers.cli import main


DOCS = ROOT / "docs"


def snippets(name: str) -> str:
    text = (DOCS / name).read_text(encoding="utf-8")
    return "".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def run(code: str, substitutes: dict[str, str]) -> None:
    for printed, substitute in substitutes.items():
        assert printed in code
        code = code.replace(printed, substitute)
    with torch.random.fork_rng():
        exec(compile(code, "snippet", "exec"), {})


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    """A tiny pipeline in Stable Video Diffusion's layout, as `teacher` in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    pipe = tiny_svd_pipeline()
    pipe.save_pretrained("teacher", variant="fp16")
    return pipe


def test_the_snippet_of_bring_your_own_teacher(teacher, tmp_path):
    teacher.save_pretrained("sf-v")
    write_latents(tmp_path / "latents", num_samples=2)
    few = "max_train_steps=1, gradient_accumulation_steps=1, discriminator_width=32, critic_backbone='teacher'"
    run(
        snippets("bring_your_own_teacher.md"),
        {'"stabilityai/stable-video-diffusion-img2vid"': '"teacher"', '"latents")': f'"latents", {few})'},
    )
    assert (tmp_path / "vdmini-i2v" / "model_index.json").is_file()


def test_the_snippet_of_choose_a_plan(teacher, tmp_path, capsys):
    run(snippets("choose_a_plan.md"), {'"stabilityai/stable-video-diffusion-img2vid"': '"teacher"'})
    assert (tmp_path / "svd-milder" / "unet" / "pruning_plan.json").is_file()
    assert '"vdmini"' in capsys.readouterr().out


def test_the_snippet_of_add_a_family(capsys):
    run(snippets("add_a_family.md"), {})
    assert "middle ['transformer'] False" in capsys.readouterr().out


def test_every_guide_is_listed_and_no_other_has_code_that_is_not_run():
    listed = (DOCS / "README.md").read_text(encoding="utf-8")
    names = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
    assert {name for name in names if f"({name})" not in listed} == set()
    run_above = {"bring_your_own_teacher.md", "choose_a_plan.md", "add_a_family.md"}
    assert {name for name in names if snippets(name)} == run_above


def said(node: ast.AST) -> str:
    """The text of a string that code builds, with a line break in place of what differs."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(said(part) for part in node.values)
    return "\n"


@pytest.fixture(scope="module")
def messages():
    found = []
    for path in [*(ROOT / "vdmini_diffusers").rglob("*.py"), *(ROOT / "pipelines").glob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [said(n) for n in ast.walk(tree) if isinstance(n, (ast.Constant, ast.JoinedStr))]
    return [text for text in found if len(text) > 10]


def explained() -> list[str]:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r"^### (.+)$", text, re.MULTILINE)


def is_said(message: str, messages: list[str]) -> bool:
    """Whether one of our messages has all pieces of what a heading quotes, in their order."""
    pieces = [piece for piece in message.split("…") if piece]
    return any(in_order(pieces, text) for text in messages)


def in_order(pieces: list[str], text: str) -> bool:
    place = 0
    for piece in pieces:
        found = text.find(piece, place)
        if found < 0:
            return False
        place = found + len(piece)
    return True


@pytest.fixture
def wrong_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "empty.png": b"",
        "notes.jpg": b"no picture, but text",
        "phone.heic": b"\0\0\0\x18ftypheic",
        "film.mov": b"\0\0\0\x18ftypisom",
        "drawing.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    }.items():
        Path(name).write_bytes(content)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:4000])
    Image.new("F", (8, 8)).save("depth.tiff")
    Image.new("1", (16000, 16000)).save("poster.png")
    Path("nothing").mkdir()


def test_wrong_pictures_are_answered_as_the_guide_says(wrong_pictures, monkeypatch, capsys):
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+?)/?`, [^|]+ \| (.+) \|$", text, re.MULTILINE)
    assert {name for name, _ in rows} == {path.name for path in Path().iterdir()} | {"missing.jpg"}
    for name, message in rows:
        monkeypatch.setattr(sys, "argv", ["vdmini", "generate", "--image", name, "--device", "cpu"])
        with pytest.raises(SystemExit):
            main.vdmini()
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"Error: {message[:-1]}"), name


def test_the_messages_that_are_explained_are_raised(messages):
    headings = explained()
    assert len(headings) > 30
    assert [message for message in headings if not is_said(message, messages)] == ["CUDA out of memory"]  # torch's
    assert not is_said("There is no directory …, and the id", messages)
