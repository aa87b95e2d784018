import os
import stat

import pytest

from vdmini_diffusers.serialization.atomic import write_file


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
