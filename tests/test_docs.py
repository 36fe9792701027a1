"""What the pages show is what the code says."""

import runpy
from math import isnan

from matplotlib.image import imread

from tests.conftest import REPOSITORY


def test_the_picture_of_the_corners_shows_corners(tmp_path):
    script = runpy.run_path(str(REPOSITORY / "docs" / "corners.py"))
    for truth, prediction in script["CORNERS"].values():
        of_2024, of_2026, corrected = script["values"](truth, prediction)["clDice"]
        assert of_2024 == 1.0
        assert isnan(of_2026)
        assert 0 <= corrected <= 1
    script["draw"](tmp_path / "corners.png")
    assert imread(tmp_path / "corners.png").shape == imread(REPOSITORY / "docs" / "corners.png").shape
