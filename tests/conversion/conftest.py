"""Teachers of both kinds. Tests without `BOTH` have Stable Video Diffusion's."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_text_to_video import tiny_t2v_pipeline, tiny_t2v_teacher

from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


class Kind(NamedTuple):
    folder: Path
    prune: Callable[..., Path]


@pytest.fixture(scope="session")
def t2v_teacher_folder(tmp_path_factory):
    """A tiny T2V-Turbo-v2 with every tensor random, as `convert_t2v_turbo` leaves it. Read only."""
    folder = tmp_path_factory.mktemp("teacher") / "tiny-t2v"
    tiny_t2v_pipeline(tiny_t2v_teacher()).save_pretrained(folder)
    return folder


@pytest.fixture
def kind(request):
    """Stable Video Diffusion's, or by `BOTH` the one after the other."""
    text_to_video = getattr(request, "param", "i2v") == "t2v"
    folder = request.getfixturevalue("t2v_teacher_folder" if text_to_video else "teacher_folder")
    return Kind(folder, prune_pipeline)


@pytest.fixture
def teacher(kind, tmp_path):
    """A copy to spoil; the only thing in its parent."""
    return shutil.copytree(kind.folder, tmp_path / "teacher")
