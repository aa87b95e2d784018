"""The command `vdmini` as a person meets it: quick, short, and one line where something is wrong."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

import vdmini_diffusers
from vdmini_diffusers.cli import main
from vdmini_diffusers.cli.command_errors import SHARED_WORK, one_line, with_own_flags
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
    from printed_commands import DOCUMENTS  # needs the checkout, as the test is skipped without

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
    assert status == 2 and printed.splitlines()[-1].startswith("Error: `--real-videos` is needed")
    status, printed = vdmini("evaluate", tmp_path, tmp_path / "none", "--out", tmp_path / "fvd.json")
    assert status == 2 and f"There is no {tmp_path}/none" in printed


@pytest.mark.slow
def test_a_student_is_scored_to_the_end_and_the_same_command_goes_on(vdmini, teacher_folder, tmp_path):
    vdmini("prune", teacher_folder, "--out", tmp_path / "student")
    config = tmp_path / "student/unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_frames": 3}))  # motion takes three
    for i in range(2):
        (tmp_path / f"videos/{i}").mkdir(parents=True)
        Image.new("RGB", (16, 16), (90 * i, 50, 0)).save(tmp_path / f"videos/{i}/0.png")
    arguments = ("score", tmp_path / "student", "--real-videos", tmp_path / "videos", "--num-videos", 2)
    status, printed = vdmini(*arguments, "--out", tmp_path / "scores")
    assert status == 0 and re.search(r"\d+ parts, 5 scores: .*scores/importance\.csv", printed), printed
    assert {"importance.csv", "importance.json", "first_and_last_frames.png"} <= {
        path.name for path in (tmp_path / "scores").iterdir()
    }
    assert vdmini(*arguments, "--out", tmp_path / "scores")[0] == 0


def test_messages_name_the_command_s_flags_and_those_of_the_script_as_such():
    shown = with_own_flags(
        "--real and --generated: give --pipeline, --num_clips or --detector_weights.", main.app, "evaluate"
    )
    assert shown == "REAL and GENERATED: give --model, --num-clips or --detector_weights of benchmarks/fvd.py."
    assert with_own_flags("--debug shows where", main.app, "score") == "--debug shows where"
    kept = "give --output_dir, or pip install --no-deps"
    assert with_own_flags(kept, main.app, "generate") == kept
    assert with_own_flags(kept, main.app, "score") == "give --out, or pip install --no-deps"
    for command, (_, renamed) in SHARED_WORK.items():
        group: Any = get_command(main.app)
        parameters = group.commands[command].params
        own = {name for each in parameters for name in (*each.opts, str(each.name).upper())}
        assert set(renamed.values()) <= own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["score", "{teacher}", "--out", "{teacher}/unet", "--real-videos", "x"],
            "`--out` {teacher}/unet lies in the model",
        ),
        (
            ["evaluate", "{tmp}/none", "{tmp}", "--out", "{tmp}/r.json"],
            "There is no {tmp}/none: give a folder of real videos as REAL",
        ),
        (
            ["evaluate", "{real}", "{real}/clips", "--model", "{teacher}"],
            "`GENERATED` {real}/clips lies in the real videos",
        ),
        (["evaluate", "{real}", "{tmp}/clips", "--model", "{tmp}/none"], "There is no folder {tmp}/none"),
        (
            ["evaluate", "{real}", "{tmp}/clips", "--out", "{tmp}/list.json"],
            "list.json exists and is no result of this command",
        ),
        (
            ["evaluate", "{real}", "{tmp}/clips", "--out", "{tmp}/list.json/x.json"],
            "{tmp}/list.json: no file can be made there",
        ),
        (["prune", "{teacher}", "--out", "{teacher}", "--overwrite"], "is the teacher"),
        (["info", "{teacher}", "--picture", "{tmp}/list.json"], "list.json exists: give another name"),
        (["info", "{teacher}", "--picture", "{tmp}/new.jpg"], "new.jpg should end in .png"),
        (["generate", "--image", "x", "--fps", "nan"], "Invalid value for '--fps'"),
        (["generate", "--image", "x", "--memory", "inf"], "Invalid value for '--memory'"),
        (["generate", "--prompt", "x", "--device", "meta", "--out", "{tmp}/x.gif"], "There is no device 'meta'"),
    ],
)
def test_what_cannot_work_is_refused_before_the_work(
    vdmini, teacher_folder, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "list.json").write_text("[1]")
    places = {"teacher": teacher_folder, "tmp": tmp_path, "real": tmp_path / "real"}
    before = sorted(str(path) for folder in (tmp_path, teacher_folder) for path in folder.rglob("*"))
    status, printed = vdmini(*(each.format(**places) for each in arguments))
    assert status == 2 and message.format(**places) in printed
    assert sorted(str(path) for folder in (tmp_path, teacher_folder) for path in folder.rglob("*")) == before


def test_what_a_stranger_s_model_says_writes_nothing_else_on_the_terminal(vdmini, teacher_folder, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(teacher_folder, folder)
    (folder / "README.md").write_text('---\nlicense: other\nlicense_name: "\\e]0;owned\\a"\n---\n')
    status, printed = vdmini("info", folder)
    assert status == 0 and "\x1b" not in printed and r"\x1b]0;owned\x07" in printed


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_ends_with_a_line_and_its_status(tmp_path, number):
    code = (
        "import time, typer\n"
        "from vdmini_diffusers.cli.command_errors import run_command\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def work():\n"
        "    import tempfile\n"
        f"    with tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):\n"
        "        print('begun', flush=True)\n"
        "        time.sleep(60)\n"
        "run_command(app)\n"
    )
    # What is started in the background, as these tests may be, ignores SIGINT, and so do its own processes.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True, preexec_fn=heed)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, printed = process.communicate(timeout=30)
    assert (process.returncode, printed) == (130, "Stopped. Nothing is half written.\n")
    assert list(tmp_path.iterdir()) == []
