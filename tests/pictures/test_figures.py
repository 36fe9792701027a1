import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from nnunet_selma.pictures import figures


def test_colours_of_a_difference():
    truth, prediction = np.array([[1, 1, 0, 0]]), np.array([[1, 0, 1, 0]])
    expected = [to_rgb(figures.HIT), to_rgb(figures.MISSED), to_rgb(figures.EXTRA), (0, 0, 0)]
    np.testing.assert_allclose(figures.difference(truth, prediction)[0], expected)


@pytest.mark.parametrize("patch", [(8, 16, 16), (16, 16)])
def test_a_reconstruction_sheet_of_volumes_and_of_planes(patch, tmp_path, rng):
    images = rng.normal(size=(2, 1, *patch))
    mask = rng.random((2, 1, *patch)) < 0.5
    figures.reconstruction_sheet(tmp_path / "sheet.png", images, images * ~mask, images + 1, mask)
    picture = imread(tmp_path / "sheet.png")
    assert picture.shape[1] > picture.shape[0] > 300
    assert picture.std() > 0.1


def test_a_segmentation_sheet_has_a_row_for_each_case(tmp_path, rng):
    raw = rng.integers(0, 999, (6, 16, 16), dtype=np.uint16)
    truth = (raw > 900).astype(np.uint8)
    heights = []
    for count in (1, 3):
        figures.segmentation_sheet(tmp_path / "s.png", [("case", raw, truth, {"model": truth * 0})] * count)
        heights.append(imread(tmp_path / "s.png").shape[0])
    assert heights[1] > 2 * heights[0]


def test_curves(tmp_path):
    history = {"train_losses": [1.0, 0.5], "val_losses": [1.0, 0.6], "trivial_error": [0.9, 0.9], "lrs": [0.01, 0.005]}
    figures.loss_curves(history, tmp_path / "a.png")
    more = {**history, "reconstruction_error": [0.9, 0.4], "view_agreement": [-0.1, 0.5], "effective_rank": [3.0, 4.0]}
    figures.loss_curves(more, tmp_path / "c.png")
    heights = [imread(tmp_path / f"{name}.png").shape[0] for name in "ac"]
    assert heights[1] > 1.5 * heights[0]  # a second row of panels
    figures.training_curves({"with": {**history, "mean_fg_dice": [0.1, 0.5]}}, tmp_path / "b.png")
    assert imread(tmp_path / "a.png").std() > 0.05
    assert imread(tmp_path / "b.png").std() > 0.05


def test_the_learning_picture_has_a_second_panel_where_errors_were_measured(tmp_path):
    stages = {f"encoder.stages.{number}": {"turned_degrees": 10.0 * number, "size": 1.0} for number in range(4)}
    figures.learning_picture(tmp_path / "stages.png", stages, {})
    figures.learning_picture(tmp_path / "both.png", stages, {"nothing": 0.3, "skip 0": 0.9, "bottleneck": 0.31})
    widths = [imread(tmp_path / f"{name}.png").shape[1] for name in ("stages", "both")]
    assert widths[1] > 1.5 * widths[0]
    assert imread(tmp_path / "both.png").std() > 0.05
