import copy

import pytest
from tiny import randomise, student_of, tiny_teacher_unet

from vdmini_diffusers.pruning import VDMINI_UNET


@pytest.fixture(scope="module")
def original():
    return student_of(randomise(tiny_teacher_unet()), VDMINI_UNET)


@pytest.fixture
def student(original):
    return copy.deepcopy(original)
