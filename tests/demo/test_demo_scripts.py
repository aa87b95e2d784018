"""The scripts that make what ships with the package."""

import json

import numpy as np
import pytest
from PIL import Image
from scripts_run import command_of, run

from vdmini_diffusers.demo.teachers import EXAMPLES


@pytest.mark.parametrize(
    "script",
    [
        "train_demo_teacher.py",
        "write_demo_examples.py",
        "write_demo_latents.py",
        "write_demo_teachers.py",
    ],
)
def test_help_is_printed_and_nothing_is_written(tmp_path, script):
    before = {path: path.stat().st_mtime_ns for path in EXAMPLES.iterdir()}
    assert "--help" in run(command_of(script, {"help": True}), tmp_path / "log")
    assert {path: path.stat().st_mtime_ns for path in EXAMPLES.iterdir()} == before


def test_the_shipped_examples_are_what_the_script_writes(tmp_path):
    run(command_of("write_demo_examples.py", {"output_dir": tmp_path / "examples"}), tmp_path / "log")
    written = tmp_path / "examples"
    assert {path.name for path in written.iterdir()} == {path.name for path in EXAMPLES.iterdir()}
    assert json.loads((written / "examples.json").read_text()) == json.loads((EXAMPLES / "examples.json").read_text())
    for path in EXAMPLES.glob("*.png"):
        with Image.open(path) as shipped, Image.open(written / path.name) as made:
            assert np.array_equal(np.asarray(shipped), np.asarray(made))
