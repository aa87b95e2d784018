"""The repository around the tests. Where only `tests/` is there, modules that import this are skipped."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest


ROOT = Path(__file__).parents[1]

if not (ROOT / "setup.py").exists():
    pytest.skip("needs the repository's scripts and documents", allow_module_level=True)


@contextmanager
def as_module(script: str) -> Iterator[ModuleType]:
    """A script, by its path in the repository, as a module."""
    name = Path(script).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / script)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[name]
