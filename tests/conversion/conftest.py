import shutil

import pytest


@pytest.fixture
def teacher(teacher_folder, tmp_path):
    """A copy to spoil; the only thing in its parent."""
    return shutil.copytree(teacher_folder, tmp_path / "teacher")
