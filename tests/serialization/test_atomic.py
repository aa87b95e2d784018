import os
import stat

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


class TestCheckApart:
    @pytest.mark.parametrize("output", ["in", ".", "link", "in/../in"])
    def test_an_output_that_is_or_holds_an_input(self, tmp_path, output):
        (tmp_path / "in").mkdir()
        (tmp_path / "link").symlink_to("in")
        with pytest.raises(ValueError, match="is or holds the input"):
            check_apart(tmp_path / output, [tmp_path / "in"])

    def test_an_output_that_holds_an_input_file(self, tmp_path):
        (tmp_path / "student").mkdir()
        (tmp_path / "student" / "plan.json").touch()
        with pytest.raises(ValueError, match=r"holds the input .*plan\.json"):
            check_apart(tmp_path / "student", ["org/name", tmp_path / "student" / "plan.json"])

    def test_an_output_within_an_input(self, tmp_path):
        with pytest.raises(ValueError, match="lies in the input"):
            check_apart(tmp_path / "new" / "student", [tmp_path])

    def test_an_output_beside_the_inputs(self, tmp_path):
        (tmp_path / "in").mkdir()
        check_apart(tmp_path / "in2", [tmp_path / "in", tmp_path / "missing", "vdmini"])
