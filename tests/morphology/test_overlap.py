import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from nnunet_selma.morphology.blocks import blocks
from nnunet_selma.morphology.overlap import Overlap, dice, overlap

masks = array_shapes(min_dims=3, max_dims=3, max_side=6).flatmap(lambda s: st.tuples(arrays(bool, s), arrays(bool, s)))


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [([1, 1, 0], [1, 0, 0], 2 / 3), ([0, 0], [0, 0], 1.0), ([1, 0], [0, 0], 0.0), ([1, 1], [255, 255], 1.0)],
)
def test_hand_worked(a, b, value):
    assert dice(np.array(a), np.array(b)) == pytest.approx(value)


@given(masks)
def test_equals_the_f1_score_and_is_symmetric(pair):
    from sklearn.metrics import f1_score

    a, b = pair
    assert dice(a, b) == pytest.approx(f1_score(a.ravel(), b.ravel(), zero_division=1.0))
    assert dice(a, b) == dice(b, a)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="must be equal"):
        dice(np.ones((2, 2)), np.ones((2, 3)))


@given(masks, st.tuples(*[st.integers(1, 4)] * 3))
def test_counts_of_blocks_add_up(pair, edge):
    a, b = pair
    parts = [overlap(a[block.box][block.own], b[block.box][block.own]) for block in blocks(a.shape, edge)]
    assert sum(parts, Overlap(0, 0, 0)) == overlap(a, b)
