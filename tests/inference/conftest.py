"""A fixture of the tests of rewrites."""

import pytest

from vdmini_diffusers.inference import convolutions


@pytest.fixture
def frames_of_any_size(monkeypatch):
    """Tiny frames are rewritten as well, for which it would not pay."""
    monkeypatch.setattr(convolutions, "MIN_POSITIONS", 1)
