"""Every script says what it takes and does nothing else, and every command in print is one that it takes."""

import ast
import json

from printed_commands import DOCUMENTS, QUICKSTART, ROOT, SCRIPTS, command_lines_read, printed_commands


def test_the_help_of_every_script_is_printed_and_nothing_else_happens():
    endings = dict(zip(SCRIPTS, command_lines_read([[script, "--help"] for script in SCRIPTS]), strict=True))
    assert len(endings) >= 23
    wrong = {
        n: e.printed[-300:] or e.status for n, e in endings.items() if e.status != 0 or "usage: " not in e.printed
    }
    assert not wrong, json.dumps(wrong, indent=2)


def sources() -> dict[str, str]:
    """The documents, and the docstrings of scripts."""
    scripts = [path for path in map(ROOT.joinpath, SCRIPTS) if path.is_file()]
    scripts.append(ROOT / "vdmini_diffusers" / "demo" / "quickstart.py")
    texts = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    texts |= {path: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in scripts}
    return {str(path.relative_to(ROOT)): text for path, text in texts.items()}


def test_every_printed_command_is_one_that_its_script_takes():
    commands = [(source, command) for source, text in sources().items() for command in printed_commands(text)]
    names = {command[0] for _, command in commands}
    assert {name for name in names if name != QUICKSTART and not (ROOT / name).is_file()} == set()
    ours = [(source, command) for source, command in commands if command[0] in SCRIPTS]
    assert len(ours) >= 40
    endings = command_lines_read([command for _, command in ours])
    wrong = {
        f"{source}: {' '.join(command)}": end.printed[-300:] or end.status
        for (source, command), end in zip(ours, endings, strict=True)
        if end.status not in (None, 0)
    }
    assert not wrong, json.dumps(wrong, indent=2)


def test_a_flag_that_does_not_exist_is_found_and_a_script_that_writes_is_stopped(tmp_path, monkeypatch):
    # A control for the tests above.
    (tmp_path / "writes.py").write_text("open('x', 'w').write('x')")
    monkeypatch.chdir(tmp_path)
    wrong = ["conversion/convert_svd_to_vdmini.py", "--pretrained_model_name_or_path", "x", "--no_such_flag", "1"]
    without = ["conversion/convert_svd_to_vdmini.py", "..."]
    first, second, third = command_lines_read([wrong, without, [str(tmp_path / "writes.py")]])
    assert first.status == 2 and "--output_dir" in first.printed
    assert second.status is None
    assert str(third.status).startswith("PermissionError") and not (tmp_path / "x").exists()


def test_printed_commands_are_found_in_blocks_and_spans_over_several_lines():
    text = """
    accelerate launch training/train_icmd.py \\
        --output_dir x  # a comment
and `python
benchmarks/icmd_step.py --steps 6`, or python -m vdmini_diffusers.quickstart
"""
    assert printed_commands(text) == [
        ["training/train_icmd.py", "--output_dir", "x"],
        ["benchmarks/icmd_step.py", "--steps", "6"],
        ["vdmini_diffusers.quickstart"],
    ]
