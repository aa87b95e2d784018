"""The command `vdmini` as a person meets it: quick, short, and one line where something is wrong."""

import re
import shlex
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image
from printed_commands import DOCUMENTS
from typer.main import get_command
from typer.testing import CliRunner

import vdmini_diffusers
from vdmini_diffusers.cli import main
from vdmini_diffusers.cli.command_errors import one_line
from vdmini_diffusers.generation.clip_files import read_record


COMMANDS = ("generate", "app", "prune", "score", "evaluate")


@pytest.fixture
def vdmini(monkeypatch, capfd):
    """Runs a command line; its exit status, and what was printed on both streams."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vdmini", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main.vdmini()
        return ended.value.code, "".join(capfd.readouterr())

    return run


def test_help_is_quick_as_nothing_heavy_is_imported():
    code = (
        "import sys; from vdmini_diffusers.cli.main import app\n"
        "try: app(['--help'])\n"
        "finally: print(sorted({'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 3  # 0.4 s on an idle machine
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f" {command} " in done.stdout for command in COMMANDS) and len(done.stdout.splitlines()) < 40


def check_command(line: str) -> None:
    """Raises what the command line would end with."""
    name, *arguments = shlex.split(line, comments=True)
    group: Any = get_command(main.app)
    group.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_an_example_that_it_takes_and_short_help(command):
    printed = CliRunner().invoke(main.app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    example = next(line for line in printed.splitlines() if "Example: vdmini" in line)
    check_command(example.split("Example: vdmini ")[1])
    assert f"vdmini {command} " in example and len(printed.splitlines()) < 60


def test_every_printed_command_is_one_that_vdmini_takes():
    names = "generate|app|prune|score|evaluate|publish|info"
    printed = re.compile(rf"(?:^|`)vdmini ((?:{names}) [^`\n]*)", re.MULTILINE)
    texts = [re.sub(r"\\\n *", "", path.read_text(encoding="utf-8")) for path in DOCUMENTS]  # one line each
    lines = [line for text in texts for line in printed.findall(text)]
    assert len(lines) >= 20
    for line in lines:
        check_command(line)
    with pytest.raises(Exception, match="No such option"):  # typer's, or click's in older releases
        check_command("generate --nonsense")


def test_what_is_exported_is_there():
    assert [name for name in vdmini_diffusers.__all__ if not hasattr(vdmini_diffusers, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = vdmini_diffusers.nosuch


@pytest.mark.slow
def test_the_package_exports_the_same_whether_it_is_lazy_or_not():
    code = (
        "import sys, vdmini_diffusers as package; assert 'diffusers' not in sys.modules\n"
        "missing = [name for name in package.__all__ if not hasattr(package, name)]\n"
        "assert missing == [] and package.pruning.PLANS is package.PLANS\n"
        "try: package.nosuch\n"
        "except AttributeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "module 'vdmini_diffusers' has no attribute 'nosuch'", done.stderr


def test_a_photo_becomes_a_clip_by_the_demo_model(vdmini, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg", exif=exif)
    status, printed = vdmini("generate", "--image", tmp_path / "photo.jpg", "--out", tmp_path / "x.mp4", "--seed", 7)
    assert status == 0 and "No --model" in printed and "frames of" in printed
    record = read_record(tmp_path / "x.mp4")
    assert record is not None and record["seed"] == 7 and "_teacher" in record["model"]
    status, printed = vdmini("generate", "--image", tmp_path / "photo.jpg", "--out", tmp_path / "x.mp4")
    assert (status, printed) == (
        2,
        f"Error: {tmp_path}/x.mp4 exists: give another name, or replace it with --overwrite.\n",
    )


@pytest.mark.slow
def test_a_prompt_becomes_a_clip_by_the_demo_model(vdmini, tmp_path):
    status, _ = vdmini("generate", "--prompt", "a red car moves right past the stars", "--out", tmp_path / "x.gif")
    record = read_record(tmp_path / "x.gif")
    assert status == 0 and record is not None and record["steps"] == record["num_inference_steps"]


def test_an_error_is_one_line_and_a_traceback_only_when_asked_for(vdmini, tmp_path, monkeypatch):
    (tmp_path / "x.png").write_text("no picture")
    arguments = ("generate", "--image", tmp_path / "x.png", "--out", tmp_path / "x.mp4")
    status, printed = vdmini(*arguments)
    assert status == 2 and printed.startswith("Error: ") and len(printed.splitlines()) == 1
    for debug in (("--debug",), ()):
        monkeypatch.setenv("VDMINI_DEBUG", "" if debug else "1")
        monkeypatch.setattr(sys, "argv", ["vdmini", *map(str, arguments), *debug])
        with pytest.raises(ValueError, match="cannot be read as a picture"):
            main.vdmini()
    assert not (tmp_path / "x.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--frames", "0"], "Invalid value for '--frames'"),
        (["generate", "--nonsense"], "No such option"),
        (["generate", "--dtype", "float8"], "float8"),
        (["nosuch"], "No such command"),
        (["prune", "x"], "Missing option '--out'"),
        (["app", "--port", "0"], "Invalid value for '--port'"),
    ],
)
def test_a_wrong_command_line_ends_with_its_usage(vdmini, arguments, message):
    status, printed = vdmini(*arguments)
    assert status == 2 and "Usage: vdmini" in printed and message in printed


def test_the_app_says_what_it_lacks(vdmini, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    status, printed = vdmini("app", "--model", "org/none")
    assert status == 2 and "Error: The page needs Gradio" in printed


def test_errors_in_plain_words():
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(FileNotFoundError(2, "No such file or directory", "x/y")) == "x/y: No such file or directory."
    assert one_line(KeyError("x")).startswith("KeyError: 'x' (this should not happen")
    assert one_line(RuntimeError()).startswith("RuntimeError: ")


def test_prune_score_and_evaluate_do_what_the_scripts_do(vdmini, teacher_folder, tmp_path):
    status, printed = vdmini("prune", teacher_folder, "--out", tmp_path / "student")
    assert status == 0 and "unet: 4,317,162 parameters before, 2,645,082 after (61.3%)" in printed
    status, printed = vdmini("prune", teacher_folder, "--out", tmp_path / "student")
    assert status == 2 and "--overwrite" in printed
    status, printed = vdmini("score", teacher_folder, "--out", tmp_path / "scores", "--num-videos", 2)
    assert status == 2 and printed.splitlines()[-1].startswith("Error: `--real_videos` is needed")
    status, printed = vdmini("evaluate", tmp_path, tmp_path / "none", "--out", tmp_path / "fvd.json")
    assert status == 2 and f"There is no {tmp_path}/none" in printed
