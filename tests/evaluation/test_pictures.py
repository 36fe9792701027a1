"""Pictures of an evaluation show the voxels, scores and ranks that they were given."""

from math import nan

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from nnunet_selma.evaluation import pictures
from nnunet_selma.evaluation.metrics.mistakes import Mistake, mistakes
from nnunet_selma.evaluation.metrics.pair import Pair
from tests.artists import bars, dots, image, legend, lines, saved_figures, titles


@pytest.mark.parametrize("with_raw", [True, False])
def test_a_sheet_shows_projections_and_the_slice_with_most_mistakes(with_raw, tmp_path, monkeypatch, rng):
    saved = saved_figures(monkeypatch)
    raw = rng.integers(0, 999, (6, 12, 14), dtype=np.uint16)
    truth = np.zeros(raw.shape, bool)
    truth[1:5, 2:8, 2:8] = True
    prediction = truth.copy()
    prediction[3, 2:8, 2:5] = False  # 18 voxels missed
    prediction[1, 10, 10] = True  # one too much
    pictures.evaluation_sheet(
        tmp_path / "sheet.png",
        title="a case",
        raw=raw if with_raw else None,
        truth=truth,
        prediction=prediction,
        mistakes=mistakes(Pair(prediction, truth)),
    )
    (figure,) = saved
    assert figure.get_suptitle() == "a case"
    assert titles(figure) == [*(["raw"] if with_raw else []), "truth", "prediction", "mistakes"]
    above, below = np.reshape(figure.axes, (2, -1))
    assert below[0].get_ylabel() == "z = 3, the slice with most mistakes"
    if with_raw:
        np.testing.assert_array_equal(image(above[0]), raw.max(axis=0))
        np.testing.assert_array_equal(image(below[0]), raw[3])
    for column, mask in ((-3, truth), (-2, prediction)):
        np.testing.assert_array_equal(image(above[column]), mask.any(axis=0))
        np.testing.assert_array_equal(image(below[column]), mask[3])
    colours = {kind: to_rgb(colour) for kind, (colour, _) in pictures.MISTAKES.items()}
    expected = np.zeros((12, 14, 3))
    expected[2:8, 2:8] = colours[Mistake.RIGHT]
    expected[10, 10] = colours[Mistake.EXTRA]
    np.testing.assert_array_equal(image(above[-1]), expected)  # of four voxels along z, one was missed
    expected[10, 10] = 0
    expected[2:8, 2:5] = colours[Mistake.MISSED]
    np.testing.assert_array_equal(image(below[-1]), expected)
    assert legend(figure)[1:3] == ["missed", "too much"]


def test_a_sheet_without_mistakes_shows_the_slice_with_most_foreground(tmp_path, monkeypatch):
    saved = saved_figures(monkeypatch)
    truth = np.zeros((5, 8, 8), bool)
    truth[2, 1:3, 1:3] = truth[3, 1:6, 1:6] = True
    shown = mistakes(Pair(truth, truth))
    pictures.evaluation_sheet(tmp_path / "s.png", title="", raw=None, truth=truth, prediction=truth, mistakes=shown)
    assert saved[0].axes[3].get_ylabel() == "z = 3"


def test_boxes_show_every_case_and_count_nan(tmp_path, monkeypatch):
    saved = saved_figures(monkeypatch)
    dice = {"ours": [10.0, 20.0, 40.0, 80.0], "theirs": [5.0, nan, 15.0, nan]}
    errors = {"ours": [0.0, 3.0, 900.0, 1.0], "theirs": [nan] * 4}
    rows = [("vessel", [("Dice (%) ↑", dice), ("β0 error ↓", errors)]), ("cell", [("Dice (%) ↑", dice)])]
    pictures.score_boxes(tmp_path / "scores.png", rows)
    panels = np.reshape(saved[0].axes, (2, 2))
    assert [row[0].get_title(loc="left") for row in panels] == ["vessel", "cell"]
    assert [axis.get_xlabel() for axis in panels[0]] == ["Dice (%) ↑", "β0 error ↓"]
    assert [label.get_text() for label in panels[0, 0].get_yticklabels()] == ["ours", "theirs"]
    assert not panels[1, 1].axison
    assert dots(panels[0, 0]) == dots(panels[1, 0]) == [[10.0, 20.0, 40.0, 80.0], [5.0, 15.0]]
    assert dots(panels[0, 1]) == [[0.0, 3.0, 900.0, 1.0], []]
    assert [text.get_text() for text in panels[0, 0].texts] == ["2 NaN"]
    assert [text.get_text() for text in panels[0, 1].texts] == ["4 NaN"]
    assert [axis.get_xscale() for axis in panels[0]] == ["linear", "symlog"]
    quartiles = panels[0, 0].patches[0].get_path().get_extents()
    assert (quartiles.x0, quartiles.x1) == tuple(np.percentile(dice["ours"], (25, 75)))


def test_ranks_are_bars_with_a_mark_for_each_class(tmp_path, monkeypatch):
    saved = saved_figures(monkeypatch)
    classes = {"b": {"spot-like": 2.0, "tree-like": 1.5}, "a": {"spot-like": 1.0, "tree-like": 1.5}}
    pictures.rank_plot(tmp_path / "ranks.png", classes, {"a": 1.25, "b": 1.75})
    (axis,) = saved[0].axes
    assert bars(axis) == {"a": 1.25, "b": 1.75}
    assert axis.yaxis_inverted()  # the best one is on top
    assert lines(axis) == {"spot-like": ([1.0, 2.0], [0, 1]), "tree-like": ([1.5, 1.5], [0, 1])}
    assert [text.get_text() for text in axis.texts] == ["1.250", "1.750"]
    assert sorted(legend(saved[0])) == ["overall", "spot-like", "tree-like"]
