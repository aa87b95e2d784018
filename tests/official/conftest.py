"""Diffusers' own model tests, from the `tests` folder of a checkout of it that `DIFFUSERS_TESTS` points to.

It is the folder that holds `tests`, and holds no `src`: theirs would be tested in place of the installed diffusers.

    git clone --depth 1 https://github.com/huggingface/diffusers checkout
    mkdir official && cp -r checkout/tests official/
    DIFFUSERS_TESTS=official python -m pytest tests/official -m "slow or not slow"
"""

import os
import re
import sys
from pathlib import Path


def pytest_configure(config):
    if "DIFFUSERS_TESTS" not in os.environ:
        return
    folder = Path(os.environ["DIFFUSERS_TESTS"]).resolve()
    # Their tests import each other as `tests.*`. Our folder of that name is no package, so theirs is found.
    sys.path.append(str(folder))
    markers = re.findall(r"pytest\.mark\.(\w+)", (folder / "tests" / "testing_utils.py").read_text(encoding="utf-8"))
    for marker in set(markers) - {"skip", "skipif", "slow"}:
        config.addinivalue_line("markers", f"{marker}: of diffusers' own tests")
