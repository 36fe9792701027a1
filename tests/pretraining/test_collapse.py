import numpy as np
import pytest
import torch

from nnunet_selma.pretraining.collapse import alarms, effective_rank, feature_deviation


def test_the_effective_rank_of_known_spreads(rng):
    corners = torch.cat([torch.eye(4), -torch.eye(4)])  # four directions, alike
    assert effective_rank(corners) == pytest.approx(4.0)
    line = torch.outer(torch.linspace(-1, 1, 9), torch.ones(5)) + 7
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-6)
    assert effective_rank(torch.full((6, 5), 3.0)) == 1.0
    assert effective_rank(torch.tensor(rng.normal(size=(4000, 6)))) == pytest.approx(6.0, abs=0.05)


def test_features_that_are_not_finite_have_no_rank():
    assert np.isnan(effective_rank(torch.full((10, 3), float("nan"))))


def test_the_deviation_of_random_directions_is_one(rng):
    assert feature_deviation(torch.tensor(rng.normal(size=(5000, 32)))) == pytest.approx(1.0, abs=0.02)
    assert feature_deviation(torch.ones(10, 8) * torch.arange(1.0, 11)[:, None]) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("history", "words"),
    [
        ({"feature_deviation": [0.5, 0.001], "effective_rank": [5.0, 3.0]}, "collapsed"),
        ({"feature_deviation": [0.5, 0.5], "effective_rank": [5.0, 1.01]}, "collapsed"),
        ({"feature_deviation": [0.001]}, "collapsed"),  # too few samples for a rank
        ({"feature_deviation": [0.001, 0.5], "effective_rank": [1.0, 5.0]}, None),  # the latest counts
        (
            {"reconstruction_error": [0.5, 0.9], "trivial_error": [0.8, 0.8]},
            "no better than the mean of visible voxels",
        ),
        ({"reconstruction_error": [0.9, 0.5], "trivial_error": [0.8, 0.8]}, None),
        ({"train_losses": [1.0, float("nan")], "feature_deviation": [float("nan")] * 2}, "the training is lost"),
        ({"train_losses": [float("nan"), 1.0]}, None),
        ({"train_losses": [1.0]}, None),
        ({}, None),
    ],
)
def test_alarms(history, words):
    said = alarms(history)
    assert len(said) == (words is not None)
    assert words is None or words in said[0]
    assert np.array([sentence[-1] != "." for sentence in said]).all()
