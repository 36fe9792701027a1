import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from nnunet_selma.morphology.blocks import blocks
from nnunet_selma.morphology.overlap import Overlap, overlap

masks = array_shapes(min_dims=3, max_dims=3, max_side=6).flatmap(lambda s: st.tuples(arrays(bool, s), arrays(bool, s)))


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [([1, 1, 0], [1, 0, 0], 2 / 3), ([0, 0], [0, 0], 1.0), ([1, 0], [0, 0], 0.0), ([1, 1], [255, 255], 1.0)],
)
def test_hand_worked(a, b, value):
    assert overlap(np.array(a), np.array(b)).dice == pytest.approx(value)


@given(masks)
def test_equals_the_f1_score_and_is_symmetric(pair):
    from sklearn.metrics import f1_score

    a, b = pair
    assert overlap(a, b).dice == pytest.approx(f1_score(a.ravel(), b.ravel(), zero_division=1.0))
    assert overlap(a, b).dice == overlap(b, a).dice


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="must be equal"):
        overlap(np.ones((2, 2)), np.ones((2, 3)))


@given(masks, st.tuples(*[st.integers(1, 4)] * 3))
def test_counts_of_blocks_add_up(pair, edge):
    a, b = pair
    parts = [overlap(a[block.box][block.core], b[block.box][block.core]) for block in blocks(a.shape, edge)]
    assert sum(parts, Overlap(0, 0, 0)) == overlap(a, b)
