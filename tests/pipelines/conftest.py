"""A tiny student pipeline, in memory and saved."""

import copy

import pytest
from tiny import student_of, tiny_svd_pipeline

from vdmini_diffusers import VDMiniI2VPipeline
from vdmini_diffusers.pruning import VDMINI_UNET


@pytest.fixture(scope="session")
def teacher_pipe():
    pipe = tiny_svd_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def student_unet(teacher_pipe):
    """Read only."""
    return student_of(teacher_pipe.unet, VDMINI_UNET)


@pytest.fixture
def student_pipe(teacher_pipe, student_unet):
    pipe = VDMiniI2VPipeline(**{**teacher_pipe.components, "unet": copy.deepcopy(student_unet)})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def student_folder(teacher_pipe, student_unet, tmp_path_factory):
    """Read only."""
    folder = tmp_path_factory.mktemp("student") / "tiny-vdmini"
    VDMiniI2VPipeline(**{**teacher_pipe.components, "unet": student_unet}).save_pretrained(folder)
    return folder
