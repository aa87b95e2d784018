"""What the README has from the code: the table of support and the picture of what was removed.

    VDMINI_WRITE_README=1 python -m pytest tests/test_readme.py

writes both anew.
"""

import io
import os

import numpy as np
from PIL import Image
from readme_parts import PICTURE, README, picture_of_removed, readme_with_table


def test_the_table_of_support_is_what_the_registry_says():
    if os.environ.get("VDMINI_WRITE_README"):
        README.write_text(readme_with_table(), encoding="utf-8")
    assert README.read_text(encoding="utf-8") == readme_with_table()


def test_the_picture_is_the_one_that_the_plan_gives(tmp_path):
    drawn = picture_of_removed(tmp_path)
    if os.environ.get("VDMINI_WRITE_README"):
        PICTURE.write_bytes(drawn)
    with Image.open(PICTURE) as stored, Image.open(io.BytesIO(drawn)) as now:
        difference = np.asarray(stored.convert("L"), dtype=float) - np.asarray(now.convert("L"), dtype=float)
    # The text's edges are those of Pillow's version; a box that goes changes its 15,000 pixels.
    assert (abs(difference) > 64).sum() < 1000
