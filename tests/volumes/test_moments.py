"""Moments of parts that are joined are those of the whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nnunet_selma.volumes.moments import Moments

values = st.floats(-1e4, 1e4, width=32)
parts = st.lists(arrays(np.float32, st.integers(0, 7), elements=values), min_size=1, max_size=6)


@given(parts=parts, offset=st.sampled_from([0.0, 1e9]))
def test_joined_parts_have_the_moments_that_numpy_gives_for_the_whole(parts, offset):
    """Also where the mean is 1e9 times the differences, which the difference of two sums of squares would lose."""
    wide = [part.astype(np.float64) + offset for part in parts]
    joined, whole = sum(map(Moments.measure, wide), Moments()), np.concatenate(wide)
    assert joined.count == len(whole)
    if joined.count:
        assert joined.mean == pytest.approx(whole.mean(), rel=1e-12, abs=1e-9)
        assert joined.standard_deviation == pytest.approx(whole.std(), rel=1e-6, abs=1e-6 if offset else 1e-9)


def test_integers_and_any_number_of_axes(rng):
    voxels = rng.integers(65000, 65535, (3, 4, 5), dtype=np.uint16)
    moments = Moments.measure(voxels)
    assert (moments.count, moments.mean) == (60, pytest.approx(voxels.mean()))
    assert moments.standard_deviation == pytest.approx(voxels.std())


def test_no_values_have_no_spread():
    assert Moments().standard_deviation == 0
    assert Moments() + Moments() == Moments()
    assert Moments.measure(np.full(9, 3)).standard_deviation == 0
