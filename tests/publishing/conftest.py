"""Tiny students as `prune_pipeline` writes them, one of each kind of denoiser. Read only."""

import pytest
from tiny_hunyuan_video import tiny_hunyuan_pipeline
from tiny_text_to_video import tiny_t2v_pipeline, tiny_t2v_teacher

from vdmini_diffusers import prune_pipeline


@pytest.fixture(scope="session")
def students(teacher_folder, tmp_path_factory):
    """`{family: (teacher, student)}`, folders."""
    folder = tmp_path_factory.mktemp("students")
    tiny_t2v_pipeline(tiny_t2v_teacher(layers_per_block=2)).save_pretrained(folder / "t2v")
    tiny_hunyuan_pipeline().save_pretrained(folder / "hy")
    teachers = {"i2v": teacher_folder, "t2v": folder / "t2v", "hy": folder / "hy"}
    plans = {"hy": "middle"}
    return {
        name: (teacher, prune_pipeline(teacher, folder / f"vdmini-{name}", plans.get(name)))
        for name, teacher in teachers.items()
    }


@pytest.fixture(scope="session")
def student(students):
    return students["i2v"][1]
