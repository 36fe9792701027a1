"""What the pages show is what the code says."""

import re
import runpy
from math import isnan

import numpy as np
from matplotlib.image import imread
from PIL import Image

from tests.conftest import REPOSITORY, write_image


def test_the_picture_of_the_corners_shows_corners(tmp_path):
    script = runpy.run_path(str(REPOSITORY / "docs" / "corners.py"))
    for truth, prediction in script["CORNERS"].values():
        of_2024, of_2026, corrected = script["values"](truth, prediction)["clDice"]
        assert of_2024 == 1.0
        assert isnan(of_2026)
        assert 0 <= corrected <= 1
    with Image.open(REPOSITORY / "docs" / "corners.png") as picture:
        assert picture.text["Description"] == script["said"]()
    script["draw"](tmp_path / "corners.png")
    assert imread(tmp_path / "corners.png")[..., :3].std() > 0.1


def test_the_example_of_the_library_runs(tmp_path, rng, monkeypatch, capsys):
    page = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for folder in ("labelsTs", "OUT"):
        write_image(tmp_path / folder / "cell_nuclei_1.nii.gz", (rng.random((8, 9, 10)) < 0.2).astype(np.uint8))
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    out = capsys.readouterr().out
    assert "panoptic_quality" in out
    assert "| OUT |" in out
