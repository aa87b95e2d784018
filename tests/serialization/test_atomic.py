import os
import stat
from pathlib import Path

import pytest

from vdmini_diffusers.serialization.atomic import check_apart, new_folder, write_file


class TestWriteFile:
    def test_it_replaces_what_was_there_and_leaves_nothing_else(self, tmp_path):
        path = tmp_path / "model_index.json"
        path.write_text("old and longer")
        write_file(path, b"new")
        assert path.read_bytes() == b"new"
        assert list(tmp_path.iterdir()) == [path]

    def test_permissions_are_those_of_any_new_file(self, tmp_path):
        old = os.umask(0o027)
        try:
            write_file(tmp_path / "card.md", b"")
            (tmp_path / "plain.md").write_bytes(b"")
        finally:
            os.umask(old)
        modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("card.md", "plain.md")}
        assert modes == {0o640}

    def test_an_error_leaves_the_old_content_and_no_temporary_file(self, tmp_path):
        path = tmp_path / "config.json"
        path.write_text("old")
        with pytest.raises(TypeError):
            write_file(path, 3)
        folder = tmp_path / "folder"
        (folder / "kept").mkdir(parents=True)
        with pytest.raises(OSError):
            write_file(folder, b"a folder is not replaced")
        assert path.read_text() == "old" and {p.name for p in tmp_path.iterdir()} == {"config.json", "folder"}

    def test_a_link_is_replaced_and_its_target_is_untouched(self, tmp_path):
        (tmp_path / "blob").write_text("shared")
        (tmp_path / "link").symlink_to("blob")
        write_file(tmp_path / "link", b"own")
        assert (tmp_path / "blob").read_text() == "shared" and not (tmp_path / "link").is_symlink()


def test_files_of_a_new_folder_have_the_permissions_of_any_new_file(tmp_path):
    """safetensors and `tempfile` make files that only their owner can read."""
    old = os.umask(0o022)
    try:
        with new_folder(tmp_path / "student") as folder:
            (folder / "unet").mkdir()
            (folder / "unet" / "weights").touch(mode=0o600)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "student" / "unet" / "weights").stat().st_mode) == 0o644


def test_name_with_a_nul_character_is_refused(tmp_path):
    with pytest.raises(ValueError, match="NUL"), new_folder(f"{tmp_path}/a\0b"):
        pass


@pytest.mark.parametrize(
    "what", ["the teacher", "the student", "the ODE teacher", "the folder of precomputed latents"]
)
def test_an_output_folder_that_is_in_or_holds_what_is_read_is_refused(tmp_path, what):
    source = tmp_path / "models" / "student"
    source.mkdir(parents=True)
    places = {"is": source, "lies in": source / "trained", "holds": tmp_path / "models"}
    for relation, output_dir in places.items():
        with pytest.raises(ValueError, match=f"`--output_dir` .* {relation} {what}, .*: choose another folder"):
            check_apart(output_dir, {what: str(source)})
    check_apart(tmp_path / "models" / "student-2", {what: str(source)})
    check_apart(tmp_path, {what: None})


def test_an_output_folder_is_known_by_any_name(tmp_path, monkeypatch):
    (tmp_path / "student").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "student")
    monkeypatch.chdir(tmp_path)
    for name in ("student", "./student/", "link", "student/../link"):
        with pytest.raises(ValueError, match="is the student"):
            check_apart(Path(name), {"the student": str(tmp_path / "student")})


def test_a_hub_id_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_apart(Path("vdmini-i2v"), {"the teacher": "org/vdmini-i2v"})


def test_an_output_folder_that_holds_an_input_file_is_refused(tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "plan.json").touch()
    with pytest.raises(ValueError, match=r"holds the plan, .*plan\.json"):
        check_apart(tmp_path / "student", {"the teacher": "org/name", "the plan": tmp_path / "student" / "plan.json"})
