"""What the pages show is what the code says."""

import re
import runpy
from math import isnan

import numpy as np
import pytest
import torch
from PIL import Image

from nnunet_selma.trainers.ssl import SelmaSSLTrainer
from nnunet_selma.trainers.ssl_summary import history_of
from tests.artists import image, saved_figures
from tests.conftest import REPOSITORY, write_image
from tests.trainers.test_trainers import trainer


def test_the_picture_of_the_corners_shows_corners(tmp_path, monkeypatch):
    saved = saved_figures(monkeypatch)
    script = runpy.run_path(str(REPOSITORY / "docs" / "corners.py"))
    for truth, prediction in script["CORNERS"].values():
        of_2024, of_2026, corrected = script["values"](truth, prediction)["clDice"]
        assert of_2024 == 1.0
        assert isnan(of_2026)
        assert 0 <= corrected <= 1
    with Image.open(REPOSITORY / "docs" / "corners.png") as picture:
        assert picture.text["Description"] == script["description"]()
    script["draw"](tmp_path / "corners.png")
    rows = np.reshape(saved[0].axes[:-1], (-1, 3))
    for (left, middle, right), (truth, prediction) in zip(rows, script["CORNERS"].values(), strict=True):
        np.testing.assert_array_equal(image(left), truth.any(axis=0))
        np.testing.assert_array_equal(image(middle), prediction.any(axis=0))
        cells = right.tables[0].get_celld()
        assert [cells[1, column].get_text().get_text() for column in range(3)] == ["clDice", "1.000", "NaN"]


def test_a_pretext_of_your_own_is_one_file_and_one_class(tmp_path, folders, monkeypatch):
    """The example of docs/methods.md, as a user would save it, trained by the trainer that is told its name."""
    page = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(example.splitlines()) <= 60
    assert example.count("class ") == 1
    (tmp_path / "my_pretexts.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    one = trainer(SelmaSSLTrainer, folders, pretraining={"pretext": "my_pretexts.Denoising"})
    one.initialize()
    one.on_epoch_start()
    one.on_train_epoch_start()
    batch = {"data": torch.nn.functional.interpolate(torch.randn(2, 1, 3, 3, 3), 16, mode="trilinear")}
    losses = [float(one.train_step(batch)["loss"]) for _ in range(20)]
    assert losses[-1] < losses[0] / 2
    with torch.no_grad():
        one.on_validation_epoch_start()
        one.on_validation_epoch_end([one.validation_step(batch)])
    assert history_of(one)["trivial_error"][0] == pytest.approx(0.25, rel=0.1)  # half a standard deviation, squared
    for missing in ("my_pretexts.Nothing", "nowhere.Denoising", "re.compile"):
        with pytest.raises(SystemExit):
            trainer(SelmaSSLTrainer, folders, pretraining={"pretext": missing}).initialize()


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
