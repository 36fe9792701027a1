from math import isnan, sqrt

import numpy as np
import pytest
from hypothesis import assume, given

from nnunet_selma.evaluation.metrics.surface import hd95
from tests.morphology.masks import similar_masks


def cube(start, shape=(20, 20, 20), edge=6):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(s, s + edge) for s in start)] = True
    return mask


@pytest.mark.parametrize(("shift", "distance"), [((0, 0, 0), 0.0), ((2, 0, 0), 8.0), ((0, 0, 3), 3.0)])
def test_shifted_cubes(shift, distance):
    shifted = cube(tuple(1 + s for s in shift))
    assert hd95(cube((1, 1, 1)), shifted, (4.0, 2.0, 1.0)) == pytest.approx(distance)


def test_one_voxel_each():
    a, b = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    a[1, 1, 1] = b[3, 4, 7] = True
    assert hd95(a, b, (3.0, 2.0, 1.0)) == pytest.approx(sqrt(6**2 + 6**2 + 6**2))


def test_empty_masks():
    full, empty = cube((1, 1, 1)), np.zeros((20, 20, 20), bool)
    assert hd95(empty, empty, (1, 1, 1)) == 0.0
    assert isnan(hd95(full, empty, (1, 1, 1)))
    assert isnan(hd95(empty, full, (1, 1, 1)))


@given(pair=similar_masks())
def test_distances_are_those_of_panoptica(pair):
    from panoptica.metrics._surface_distances import _surface_distance_pair

    prediction, reference = pair
    assume(prediction.any() and reference.any())
    spacing = (3.0, 1.5, 1.0)
    there, back = _surface_distance_pair(reference, prediction, voxelspacing=spacing)
    larger = max(np.percentile(there, 95), np.percentile(back, 95))
    assert hd95(prediction, reference, spacing) == pytest.approx(larger)
