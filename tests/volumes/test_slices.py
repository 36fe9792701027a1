import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.slices import missing_numbers, slice_numbers


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["s_Z9.tif", "s_Z10.tif", "s_Z100.tif"], [9, 10, 100]),
        (["Z0009_C01.ome.tif", "Z0010_C01.ome.tif"], [9, 10]),
        (["t01_Z1.tif", "t01_Z2.tif"], [1, 2]),
        (["2024_slice7_of_9.tif", "2024_slice8_of_9.tif"], [7, 8]),
        (["z1_t1001.tif", "z2_t1005.tif"], [1001, 1005]),
        (
            ["z1_row0.tif", "z2_row0.tif", "z3_row1.tif"],
            [1, 2, 3],
        ),  # the last group varies, but does not number the slices
        (["only.tif"], [0]),
    ],
)
def test_numbers(names, numbers):
    assert slice_numbers(names) == numbers


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["a1.tif", "b.tif"], "no slice number"),
        (["a1.tif", "a2.tif", "other3.tif"], "other3.tif: is not named like"),
        (["a1.tif", "a01.tif"], "same slice number 1"),
    ],
)
def test_odd_names_are_named(names, match):
    with pytest.raises(SelmaError, match=match):
        slice_numbers(names)


@given(st.integers(0, 50), st.integers(1, 5), st.integers(8, 40), st.data())
def test_what_is_taken_out_of_a_row_is_missing(start, step, count, data):
    row = list(range(start, start + step * count, step))
    gone = data.draw(st.sets(st.sampled_from(row[1:-1]), max_size=2))
    assert missing_numbers([n for n in row if n not in gone]) == sorted(gone)


def test_rounded_micrometres_are_no_gaps():
    row = [round(i * 2.4) for i in range(40)]
    assert missing_numbers(row) == []
    assert len(missing_numbers([n for n in row if n != row[20]])) == 1


def test_a_stranger_among_the_slices_is_no_gap_of_millions():
    with pytest.raises(SelmaError, match="jump after 99"):
        missing_numbers([*range(100), 20240612])
