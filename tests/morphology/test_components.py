"""Labelling of integers: equal values that touch; blocks against the whole."""

import numpy as np
import pytest
from hypothesis import given
from scipy import ndimage

from nnunet_selma.morphology.blocks import reader
from nnunet_selma.morphology.components import components_by_blocks, label
from tests.morphology.masks import edges, masks
from tests.objects.volumes import labels


@given(values=labels())
@pytest.mark.parametrize(
    ("connectivity", "structure"), [(6, ndimage.generate_binary_structure(3, 1)), (26, np.ones((3, 3, 3)))]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint32])
def test_of_integers_equal_values_are_joined(values, connectivity, structure, dtype):
    found, n = label(values.astype(dtype), connectivity)
    assert sum(ndimage.label(values == value, structure)[1] for value in (1, 2)) == n
    np.testing.assert_array_equal(found > 0, values > 0)
    firsts = np.unique(found[found > 0], return_index=True)[1]
    assert (np.diff(firsts) > 0).all()  # in raster order
    for number in range(1, n + 1):
        assert ndimage.label(found == number, structure)[1] == 1
        assert len(np.unique(values[found == number])) == 1


@given(mask=masks(longest=9), edge=edges)
def test_blocks_give_sizes_and_places_of_the_whole(mask, edge):
    found = components_by_blocks(reader(mask), mask.shape, edge)
    labels, n = label(mask)
    assert len(found.sizes) == n
    for number in range(n):
        at = np.argwhere(labels == number + 1)
        assert found.sizes[number] == len(at)
        np.testing.assert_array_equal(found.low[number], at.min(axis=0))
        np.testing.assert_array_equal(found.high[number], at.max(axis=0) + 1)
        np.testing.assert_array_equal(found.first[number], at[0])
