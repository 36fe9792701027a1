from decimal import Decimal
from itertools import pairwise
from math import floor

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nnunet_selma.volumes.progressions import progression


def row_of(numbers):
    return progression([Decimal(str(number)) for number in numbers])


@pytest.mark.parametrize(
    ("numbers", "step"),
    [
        ([0, 2, 3, 4, 6], "1.5"),  # rounded
        ([0, 1, 3, 4, 6], "1.5"),  # cut
        ([0, 1, 2, 3, 5, 6, 7, 8, 10], None),
        ([int(1.25 * z) for z in range(40)], "1.25"),
        ([round(2.4 * z) for z in range(40)], "2.4"),
        ([25 * z for z in range(40)], "25"),
        (["0.0", "1.2", "2.5", "3.8", "5.0"], "1.25"),
        (["-1.50", "-0.25", "1.00"], "1.25"),
        ([7], "1"),
        ([7, 11], "4"),
    ],
)
def test_rounded_steps_are_no_gaps(numbers, step):
    row = row_of(numbers)
    assert row.missing() == []
    assert step is None or row.step == Decimal(step)


@given(st.floats(1, 60), st.floats(-1000, 1000), st.integers(4, 60), st.sampled_from([floor, lambda x: floor(x + 0.5)]))
def test_no_slice_is_missing_from_a_row_in_equal_steps(step, start, count, rounded):
    numbers = [rounded(start + step * i) for i in range(count)]
    doubled = sum(b - a == 2 for a, b in pairwise(numbers))
    # one or two steps of 2 among steps of 1 are lost slices
    assume(doubled > 2 or step >= 2 or not doubled or (doubled == 2 and count <= 21))
    row = row_of(numbers)
    assert row.step is not None
    assert row.missing() == []


@given(st.integers(-50, 50), st.integers(1, 30), st.integers(4, 60), st.data())
def test_the_slice_that_is_taken_out_of_a_row_is_missing(start, step, count, data):
    numbers = [start + step * i for i in range(count)]
    lost = data.draw(st.integers(1, count - 2))
    row = row_of(numbers[:lost] + numbers[lost + 1 :])
    assert row.missing() == [numbers[lost]]
    assert row.step == step


@given(st.integers(1, 5), st.integers(24, 60), st.data())
def test_two_lost_slices_are_missing_from_a_long_row(step, count, data):
    numbers = [step * i for i in range(count)]
    lost = data.draw(st.sets(st.sampled_from(numbers[1:-1]), min_size=2, max_size=2))
    assert row_of([n for n in numbers if n not in lost]).missing() == sorted(lost)


@pytest.mark.parametrize("step", [1.5, 2.4, 2.9, 7.3])
def test_a_gap_among_rounded_steps(step):
    numbers = [round(step * i) for i in range(40)]
    [missing] = row_of(numbers[:20] + numbers[21:]).missing()
    assert abs(missing - numbers[20]) <= 1


def test_uneven_steps_have_no_step():
    row = row_of([0, 812, 1600, 2450, 3250, 4800])
    assert row.step is None
    assert row.absent == (0, 0, 0, 0, 1)


def test_a_jump_of_millions_is_counted_and_not_listed():
    assert row_of([*range(100), 20240612]).missing_count == 20240612 - 100
