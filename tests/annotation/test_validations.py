"""Means of validations, and their intervals."""

import pytest

from nnunet_selma.annotation.validations import mean_and_interval


def test_the_interval_resamples_brains(rng):
    values = {f"{brain}{number}": level for brain, level in (("a", 0.2), ("b", 0.8)) for number in range(50)}
    brains = {case: case[0] for case in values}
    assert mean_and_interval(values, brains) == pytest.approx((0.5, 0.2, 0.8))
    alone = {case: case for case in values}
    mean, low, high = mean_and_interval(values, alone)
    expected = 1.96 * 0.3 / 10
    assert (mean, high - mean, mean - low) == pytest.approx((0.5, expected, expected), abs=0.01)
