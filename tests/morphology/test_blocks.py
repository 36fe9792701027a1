import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_selma.morphology.blocks import blocks, reader, with_margin
from tests.morphology.masks import edges, masks


@given(shape=st.tuples(*[st.integers(1, 12)] * 3), edge=edges)
def test_own_voxels_cover_the_volume_once_and_windows_lie_in_one_block(shape, edge):
    owned, windows = np.zeros(shape, int), np.zeros(np.array(shape) - 1, int)
    for block in blocks(shape, edge):
        owned[block.box][block.core] += 1
        # a window of 2×2×2 voxels, named by its first voxel
        windows[tuple(slice(a, e - 1) for a, e in zip(block.start, block.end, strict=True))] += 1
    assert (owned == 1).all()
    assert (windows == 1).all()


def test_an_edge_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        list(blocks((4, 4, 4), (4, 0, 4)))


@given(mask=masks(), edge=edges)
def test_the_margin_is_one_empty_voxel(mask, edge):
    read, shape = with_margin(reader(mask), mask.shape)
    padded = np.pad(mask, 1)
    assert shape == padded.shape
    for block in blocks(shape, edge):
        np.testing.assert_array_equal(read(*block.box), padded[block.box])
