"""The repository around the tests. Where only `tests/` is there, modules that import this are skipped."""

from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]

if not (ROOT / "setup.py").exists():
    pytest.skip("needs the repository's scripts and documents", allow_module_level=True)
