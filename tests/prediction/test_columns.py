"""The order of blocks, and what each share and each worker gets of it."""

from hypothesis import given
from hypothesis import strategies as st

from nnunet_selma.morphology.blocks import blocks
from nnunet_selma.prediction.columns import column_boxes, columns, share_of, tasks_of


def boxes(shape, edges):
    return [tuple(map(slice, block.start, block.stop)) for block in blocks(shape, edges)]


def test_a_column_follows_an_axis_from_either_end():
    two = boxes((5, 4, 3), (2, 2, 3))  # three along z, two along y
    assert columns(two, 0) == [[0, 2, 4], [1, 3, 5]]
    assert columns(two, 0, backwards=True) == [[4, 2, 0], [5, 3, 1]]
    assert columns(two, 1) == [[0, 1], [2, 3], [4, 5]]
    assert column_boxes(two, 0)[3] == (slice(0, 5), slice(2, 4), slice(0, 3))


@given(costs=st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=40), shares=st.integers(1, 6))
def test_shares_are_pieces_of_equal_cost_that_together_are_all(costs, shares):
    order = list(range(100, 100 + len(costs)))
    pieces = [share_of(order, costs, share, shares) for share in range(shares)]
    assert [index for piece in pieces for index in piece] == order
    taken = [sum(costs[index - 100] for index in piece) for piece in pieces]
    if sum(costs):
        assert max(taken) - min(taken) <= 2


def test_workers_get_pieces_of_columns():
    assert tasks_of([list(range(20)), [30, 31]]) == [tuple(range(8)), tuple(range(8, 16)), (16, 17, 18, 19), (30, 31)]
