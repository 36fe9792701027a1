"""Pictures of trainings and segmentations show the numbers that they were given."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from nnunet_selma.pictures import figures
from tests.artists import bars, image, legend, lines, saved_figures, titles


def test_colours_of_a_difference():
    truth, prediction = np.array([[1, 1, 0, 0]]), np.array([[1, 0, 1, 0]])
    expected = [to_rgb(figures.HIT), to_rgb(figures.MISSED), to_rgb(figures.EXTRA), (0, 0, 0)]
    np.testing.assert_allclose(figures.difference(truth, prediction)[0], expected)


@pytest.mark.parametrize("patch", [(9, 16, 14), (16, 14)])
def test_a_reconstruction_sheet_shows_the_middle_of_each_sample(patch, tmp_path, monkeypatch, rng):
    saved = saved_figures(monkeypatch)
    images, output = rng.normal(size=(6, 1, *patch)), rng.normal(size=(6, 1, *patch))
    mask = rng.random((6, 1, *patch)) < 0.5
    figures.reconstruction_sheet(tmp_path / "sheet.png", images, images * ~mask, output, mask)
    assert titles(saved[0]) == ["input", "what the network sees", "output", "output in the gaps", "error in the gaps"]
    panels = [axis for axis in saved[0].axes if axis.get_label() != "<colorbar>"]
    assert len(panels) == 4 * 5  # of six samples
    middle = (4,) if len(patch) == 3 else ()
    for sample, row in enumerate(np.reshape(panels, (4, 5))):
        truth, result, hidden = (a[(sample, 0, *middle)] for a in (images, output, mask))
        expected = [
            truth,
            np.where(hidden, np.nan, truth),
            result,
            np.where(hidden, result, truth),
            np.where(hidden, np.abs(result - truth), np.nan),
        ]
        for axis, array in zip(row, expected, strict=True):
            np.testing.assert_array_equal(image(axis), array)
        assert row[2].images[0].get_clim() == tuple(np.percentile(truth, (0.5, 99.5)))


def test_a_segmentation_sheet_shows_the_slice_with_most_foreground(tmp_path, monkeypatch, rng):
    saved = saved_figures(monkeypatch)
    raw = rng.integers(0, 999, (6, 16, 14), dtype=np.uint16)
    truth = np.zeros(raw.shape, np.uint8)
    truth[1, 3:5, 3:5], truth[4, 2:9, 2:9] = 1, 1
    predictions = {"model": np.roll(truth, 2, axis=2), "other": truth * 0}
    rows = [("vessel", raw, truth, predictions), ("nothing", raw, truth * 0, predictions)]
    figures.segmentation_sheet(tmp_path / "s.png", rows)
    axes = np.reshape(saved[0].axes, (2, 5))
    assert titles(saved[0]) == ["raw, projection along z", "raw, one slice", "truth", "model", "other"]
    assert [line[0].get_ylabel() for line in axes] == ["vessel", "nothing"]
    assert [line[1].get_xlabel() for line in axes] == ["z = 4", "z = 3"]
    np.testing.assert_array_equal(image(axes[0, 0]), raw.max(axis=0))
    for line, z, mask in zip(axes, (4, 3), (truth, truth * 0), strict=True):
        np.testing.assert_array_equal(image(line[1]), raw[z])
        np.testing.assert_array_equal(image(line[2]), mask[z])
        for axis, prediction in zip(line[3:], predictions.values(), strict=True):
            np.testing.assert_array_equal(image(axis), figures.difference(mask[z], prediction[z]))
    assert legend(saved[0]) == ["right", "missed", "too much"]


def test_loss_curves_draw_every_value_of_the_history(tmp_path, monkeypatch):
    saved = saved_figures(monkeypatch)
    history = {"train_losses": [1.0, 0.5], "val_losses": [1.0, 0.6], "trivial_error": [0.9, 0.8], "lrs": [0.01, 0.005]}
    more = {"reconstruction_error": [0.9, 0.4], "view_agreement": [-0.1, 0.5], "effective_rank": [3.0, 4.0]}
    figures.loss_curves({**history, **more}, tmp_path / "curves.png")
    panels = {axis.get_title(): axis for axis in saved[0].axes if axis.axison}
    assert list(panels) == [
        "loss of the pretext task",
        "learning rate",
        "error on masked voxels",
        "view agreement",
        "effective rank",
    ]
    epochs = [1, 2]
    assert lines(panels["loss of the pretext task"]) == {
        "training": (epochs, [1.0, 0.5]),
        "validation": (epochs, [1.0, 0.6]),
    }
    assert lines(panels["error on masked voxels"]) == {
        "reconstruction": (epochs, [0.9, 0.4]),
        "mean of what is visible nearby": (epochs, [0.9, 0.8]),
    }
    for title, values in {"learning rate": [0.01, 0.005], "effective rank": [3.0, 4.0]}.items():
        (line,) = panels[title].lines
        assert list(line.get_ydata()) == values
        assert panels[title].get_ylim()[0] == 0
    assert panels["view agreement"].get_ylim()[0] < -0.1  # an axis from 0 would cut it off


def test_training_curves_draw_every_run(tmp_path, monkeypatch):
    saved = saved_figures(monkeypatch)
    run = {"train_losses": [1.0, 0.5], "val_losses": [1.0, 0.6], "mean_fg_dice": [0.1, 0.5]}
    figures.training_curves({"with": run, "without": {**run, "mean_fg_dice": [0.0, 0.3]}}, tmp_path / "b.png")
    losses, dice = saved[0].axes
    assert lines(losses)["with, validation"] == ([1, 2], [1.0, 0.6])
    assert len(lines(losses)) == 4
    assert lines(dice) == {"with": ([1, 2], [0.1, 0.5]), "without": ([1, 2], [0.0, 0.3])}


def test_the_learning_picture_has_a_second_panel_where_errors_were_measured(tmp_path, monkeypatch):
    saved = saved_figures(monkeypatch)
    stages = {f"encoder.stages.{number}": {"turned_degrees": 10.0 * number, "size": 1.0} for number in range(4)}
    figures.learning_picture(tmp_path / "stages.png", stages, {})
    figures.learning_picture(tmp_path / "both.png", stages, {"nothing": 0.3, "skip 0": 0.9, "bottleneck": 0.31})
    for figure in saved:
        assert bars(figure.axes[0]) == {f"encoder.stages.{number}": 10.0 * number for number in range(4)}
    assert len(saved[0].axes) == 1
    errors = saved[1].axes[1]
    assert bars(errors) == {"skip 0": 0.9, "bottleneck": 0.31}
    assert list(errors.lines[0].get_xdata()) == [0.3, 0.3]
