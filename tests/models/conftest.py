import copy

import pytest
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from tiny import randomise, student_of, tiny_teacher_unet

from vdmini_diffusers.pruning import VDMINI_UNET


@pytest.fixture(scope="module")
def original():
    return student_of(randomise(tiny_teacher_unet()), VDMINI_UNET)


@pytest.fixture
def student(original):
    return copy.deepcopy(original)


@pytest.fixture
def backend_calls(monkeypatch):
    """Names of the attention backends in the order in which they were used; they still compute."""
    names = []

    def listened_to(name, function):
        def listening(*args, **kwargs):
            names.append(name)
            return function(*args, **kwargs)

        return listening

    active = _AttentionBackendRegistry._active_backend  # `set_attention_backend` also sets it for the process
    backends = _AttentionBackendRegistry._backends
    for name, function in backends.items():
        monkeypatch.setitem(backends, name, listened_to(name.value, function))
    yield names
    _AttentionBackendRegistry.set_active_backend(active)
