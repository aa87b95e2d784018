"""The list of what a GPU must show: each item by itself, what is done stays done, and no item stops the others."""

import json
import os
import shutil
import time
import zipfile
from pathlib import Path

import pytest
from checkout import ROOT, as_module
from forked_scripts import start
from printed_commands import command_lines_read

from vdmini_diffusers.evaluation.device_name import device_name


ITEM = "a5_bf16"


@pytest.fixture(scope="module")
def on_gpu():
    with as_module("benchmarks/on_gpu.py") as module:
        yield module


def run(script: str, *flags: object, log: Path) -> str:
    process = start([ROOT / "benchmarks" / script, *flags], log=log)
    process.join()
    assert process.exitcode == 0, log.read_text()[-3000:]
    return log.read_text()


@pytest.mark.slow
def test_an_item_is_measured_once_and_its_rows_become_a_table(tmp_path):
    flags = ("--device", "cpu", "--tiny", "--only", ITEM, "--output_dir", tmp_path / "out")
    assert f"{ITEM}: done" in run("on_gpu.py", *flags, log=tmp_path / "first.log")
    record = json.loads((tmp_path / "out" / f"{ITEM}.json").read_text())
    (row,) = record["rows"]
    assert (
        row["teacher ms"] > 0 and row["student ms"] > 0 and row["teacher M parameters"] > row["student M parameters"]
    )
    results = {record["name"]: record for record in json.loads((tmp_path / "out" / "results.json").read_text())}
    assert results[ITEM] == record and results["gpu_tests"]["state"] == "not reached"
    table = (tmp_path / "out" / "results.md").read_text()
    assert f"## {ITEM}" in table and "| transformer, one step | eager |" in table and row["device"] == record["device"]

    assert "done" not in run("on_gpu.py", *flags, log=tmp_path / "second.log").split("#")[0]
    assert json.loads((tmp_path / "out" / f"{ITEM}.json").read_text()) == record
    assert (tmp_path / "out" / "results.md").read_text() == table


def test_a_table_is_not_measured_again_where_its_rows_are(tmp_path):
    flags = ("--table", "A5", "--tiny", "--output", tmp_path / "rows.json")
    run("latency_tables.py", *flags, log=tmp_path / "log")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows[0]["rounds"] == 3 and rows[0]["device"] == device_name("cpu") and rows[0]["student peak MiB"] > 0
    (tmp_path / "rows.json").write_text(json.dumps([rows[0] | {"teacher ms": 12345.0}]))
    assert "12345" in run("latency_tables.py", *flags, log=tmp_path / "log")


def test_items_that_hang_and_fail_are_reported_and_stop_no_other(on_gpu, tmp_path):
    args = on_gpu.Arguments(device="cpu", tiny=True, output_dir=tmp_path)
    sleep = "import os, pathlib, time; pathlib.Path(r'{folder}', 'pid').write_text(str(os.getpid())); time.sleep(60)"
    once = "import os, sys; sys.exit(not os.path.exists('ran') and (open('ran', 'w').close() or 'it broke'))"
    hangs = on_gpu.Item("hangs", 2, f'{{python}} -c "{sleep}"')
    fails_once = on_gpu.Item("fails_once", 30, f'env -C {{folder}} {{python}} -c "{once}"')
    works = on_gpu.Item("works", 30, "{python} -c \"print('tiny', '{tiny}', '{device}')\"")
    items = (hangs, fails_once, works)

    def states():
        return [record["state"] for record in json.loads((tmp_path / "results.json").read_text())]

    results = on_gpu.Results(args, items)
    on_gpu.run_items(items, args, results, time.monotonic())
    assert states() == ["not reached"] * 3
    on_gpu.run_items(items, args, results, time.monotonic() + 60)
    assert states() == ["timed out", "failed", "done"]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "hangs" / "pid").read_text()), 0)
    table = (tmp_path / "results.md").read_text()
    assert "| it broke |" in table and "| tiny --tiny cpu |" in table

    # The next minutes: what was done stays, what failed comes after what did not come to its end.
    written = (tmp_path / "works" / "log.txt").stat().st_mtime_ns
    results = on_gpu.Results(args, items)
    on_gpu.run_items(items, args, results, time.monotonic() + 60)
    assert states() == ["timed out", "done", "done"]
    assert (tmp_path / "works" / "log.txt").stat().st_mtime_ns == written
    logs = [(tmp_path / name / "log.txt").stat().st_mtime_ns for name in ("hangs", "fails_once")]
    assert logs == sorted(logs)


def test_an_item_that_says_it_is_out_of_time_goes_on_the_next_time_and_what_builds_on_it_waits(on_gpu, tmp_path):
    args = on_gpu.Arguments(device="cpu", tiny=True, output_dir=tmp_path)
    counts = "import sys; runs = open(r'{folder}/runs', 'a+'); runs.write('.'); sys.exit(75 * (runs.tell() < 2))"
    stage = on_gpu.Item("stage", 30, f'{{python}} -c "{counts}"')
    gate = on_gpu.Item("gate", 30, "{python} -c pass", after="stage")
    for expected in (("timed out", "not reached"), ("done", "done")):
        results = on_gpu.Results(args, (stage, gate))
        on_gpu.run_items((stage, gate), args, results, time.monotonic() + 60)
        assert (results.state("stage"), results.state("gate")) == expected


def test_a_folder_of_another_device_or_size_is_refused(on_gpu, tmp_path):
    items = [on_gpu.Item("works", 30, "{python} -c pass")]
    args = on_gpu.Arguments(device="cpu", tiny=True, output_dir=tmp_path)
    on_gpu.Results(args, items).save(items[0], state="done")
    args.tiny = False
    with pytest.raises(ValueError, match="choose another folder"):
        on_gpu.Results(args, items)


def test_every_item_is_a_command_whose_file_is_there_and_goes_on_from_an_earlier_one(on_gpu):
    names = [item.name for item in on_gpu.ITEMS]
    assert len(set(names)) == len(names)
    for i, item in enumerate(on_gpu.ITEMS):
        assert item.after is None or item.after in names[:i]
        paths = [part for part in item.command.split() if part.startswith(("benchmarks/", "tests/", "training/"))]
        assert paths and all((ROOT / path).exists() for path in paths)
        shipped = [part for part in item.command.split() if part.startswith("vdmini_diffusers/")]
        assert all((ROOT / path).is_dir() for path in shipped)


def test_every_item_is_a_command_line_that_its_script_takes(on_gpu, tmp_path):
    commands = []
    for tiny in (False, True):
        args = on_gpu.Arguments(device="cpu", tiny=tiny, output_dir=tmp_path)
        lines = [on_gpu.command_of(item, args, tmp_path) for item in on_gpu.ITEMS if item.name != "gpu_tests"]
        commands += [line[1:] for line in lines]  # without Python itself
    wrong = {
        " ".join(command): end.printed[-300:] or end.status
        for command, end in zip(commands, command_lines_read(commands), strict=True)
        if end.status is not None
    }
    assert not wrong, json.dumps(wrong, indent=2)


@pytest.mark.slow
def test_a_teacher_is_trained_with_the_vae_that_ships(on_gpu, tmp_path):
    flags = ("--device", "cpu", "--tiny", "--only", "teacher_i2v", "--output_dir", tmp_path / "out")
    assert "teacher_i2v: done" in run("on_gpu.py", *flags, log=tmp_path / "log")
    assert (tmp_path / "out" / "teacher_i2v" / "pipeline" / "model_index.json").is_file()


@pytest.fixture
def wheels(tmp_path):
    """A wheel of a package that is not installed, and one of a package that is."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("vdmini_lacking", "torch"):
        info = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", "")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    return folder


def test_further_wheels_are_unpacked_anew(on_gpu, wheels, tmp_path):
    first = on_gpu.folder_of(wheels, tmp_path)
    assert on_gpu.folder_of(wheels, tmp_path) == first
    (wheels / "another-1.0-py3-none-any.whl").touch()
    assert on_gpu.folder_of(wheels, tmp_path) != first


def test_of_the_wheels_those_of_packages_that_are_not_installed_are_unpacked(on_gpu, wheels, tmp_path):
    on_gpu.unpack_missing(wheels, tmp_path / "out" / "wheels")
    assert [path.name for path in (tmp_path / "out" / "wheels").glob("*.py")] == ["vdmini_lacking.py"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["wheels"]


@pytest.mark.slow
def test_what_the_wheels_bring_is_on_the_path_of_the_items(on_gpu, wheels, tmp_path):
    clone = tmp_path / "clone" / "benchmarks"
    clone.mkdir(parents=True)
    script = (ROOT / "benchmarks" / "on_gpu.py").read_text()
    own = 'ITEMS = (Item("wheel", 60, "{python} -c \'import vdmini_lacking; print(vdmini_lacking.__file__)\'"),)\n\n\n'
    before, after = script.index("ITEMS = ("), script.index("@dataclass\nclass Arguments")
    (clone / "on_gpu.py").write_text(script[:before] + own + script[after:])
    flags = ("--device", "cpu", "--tiny", "--wheels", wheels, "--output_dir", tmp_path / "out")
    process = start([clone / "on_gpu.py", *flags], log=tmp_path / "log")
    process.join()
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    unpacked = on_gpu.folder_of(wheels, tmp_path / "out")
    assert str(unpacked / "vdmini_lacking.py") in (tmp_path / "out" / "results.md").read_text()
    shutil.rmtree(clone)
