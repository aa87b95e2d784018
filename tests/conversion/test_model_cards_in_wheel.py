"""The model card's template is in the wheel, where no link leads to it."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from checkout import ROOT


@pytest.mark.parametrize("linked", [True, False], ids=["with-link", "without-link"])
def test_wheel_holds_the_template(tmp_path, linked):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    ignore = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.npz", "*.mp4")
    for folder in ("vdmini_diffusers", "pipelines", "model_cards"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignore)
    if not linked:  # as git checks links out where the system has none
        for link in (source / "vdmini_diffusers/model_cards", source / "vdmini_diffusers/pipelines"):
            target = link.readlink()
            link.unlink()
            link.write_text(str(target))
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(tmp_path / "dist")]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert names.count("vdmini_diffusers/model_cards/vdmini_i2v.md") == 1
    assert "vdmini_diffusers/serialization/safetensors_copy.py" in names
