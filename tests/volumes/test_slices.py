import re
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.slices import most_interpolated, slice_numbers

COUNT = 40
CHECKSUMS = [(z * 2654435761) % 2**32 for z in range(COUNT)]


def clock(seconds):
    hours, rest = divmod(seconds % 86400, 3600)
    return f"{hours:02d}{rest // 60:02d}{rest % 60:02d}"


# name of slice z, and the rule that is told
NAMES = {
    "UltraMicroscope": (
        lambda z: f"10-50-16_b 7_UltraII[00 x 00]_C00_xyz-Table Z{z:04d}.ome.tif",
        "Z####, 0 to 39, step 1",
    ),
    "TeraStitcher": (lambda z: f"000000_000000_{z * 25:06d}.tif", "######, 0 to 975, step 25"),
    "rounded": (lambda z: f"b_{round(z * 1.5):06d}.tif", "b_######, 0 to 58, step 1.5"),
    "cut": (lambda z: f"b_{int(z * 1.25):06d}.tif", "b_######, 0 to 48, step 1.25"),
    "decimal": (lambda z: f"b_Z{z * 2.5:07.1f}.tif", "Z#####.#, 0.0 to 97.5, step 2.5"),
    "decimal, below 1": (lambda z: f"b_Z{z * 0.5:.1f}um.tif", "Z#, 0.0 to 19.5, step 0.5"),
    "decimal where needed": (lambda z: f"b_Z{z * 2.5:g}.tif", "Z#, 0 to 97.5, step 2.5"),
    "decimal comma": (lambda z: f"b_Z{z * 1.25:.2f}".replace(".", ",") + ".tif", "Z#, 0.00 to 48.75, step 1.25"),
    "points between numbers": (lambda z: f"b.2.{z + 1}.tif", "#, 1 to 40, step 1"),
    "point between Z and clock": (lambda z: f"Z{z:04d}.{clock(36030 + 3 * z)}.tif", "Z####, 0 to 39, step 1"),
    "date with points": (lambda z: f"2024.11.03.z{z}.tif", "z#, 0 to 39, step 1"),
    "signed": (lambda z: f"b_z{z - 20}.tif", "z#, -20 to 19, step 1"),
    "signed, filled": (lambda z: f"b_{z - 20:+05d}.tif", "b_#, -20 to 19, step 1"),
    "signed decimal": (lambda z: f"b_z{(z - 20) * 2.5}.tif", "z#, -50.0 to 47.5, step 2.5"),
    "signed behind a hyphen": (lambda z: f"pos-{z - 20}.tif", "pos_#, -20 to 19, step 1"),
    "below zero": (lambda z: f"b_z{z - 40}.tif", "z#, -40 to -1, step 1"),
    "below zero, decimal": (lambda z: f"b_z{(z - 40) * 0.5}.tif", "z#, -20.0 to -0.5, step 0.5"),
    "hyphen between, filled": (lambda z: f"scan-{z + 1:03d}.tif", "scan-###, 1 to 40, step 1"),
    "hyphen between, behind z, filled": (lambda z: f"z-{z + 1:03d}.tif", "z-###, 1 to 40, step 1"),
    "hyphen between, from 0": (lambda z: f"z-{z}.tif", "z-#, 0 to 39, step 1"),
    "hyphen between, behind a word": (lambda z: f"slice-{z + 1}.tif", "slice-#, 1 to 40, step 1"),
    "hyphens of a date": (lambda z: f"2024-11-03_plane {z}.tif", "plane #, 0 to 39, step 1"),
    "clock": (lambda z: f"b_Z{z:04d}_{clock(36030 + 3 * z)}.tif", "Z####, 0 to 39, step 1"),
    "clock past midnight": (lambda z: f"b_{z:04d}_{clock(86340 + 3 * z)}.tif", "b_####, 0 to 39, step 1"),
    "milliseconds": (lambda z: f"b_Z{z:04d}_{z * 812 + z * z % 60:09d}ms.tif", "Z####, 0 to 39, step 1"),
    "milliseconds alone": (lambda z: f"b_{z * 812 + z * z % 60:09d}.tif", "b_#########, 0 to 31689, uneven steps"),
    "seconds": (lambda z: f"b_Z{z:04d}_s{(50 + z) % 60:02d}.tif", "Z####, 0 to 39, step 1"),
    "falling position": (lambda z: f"b_Z{z:04d}_p{4000 - 10 * z:05d}.tif", "Z####, 0 to 39, step 1"),
    "checksum": (lambda z: f"b_Z{z:04d}_crc{CHECKSUMS[z]}.tif", "Z####, 0 to 39, step 1"),
    "checksum in hexadecimal": (lambda z: f"b_Z{z:04d}_{CHECKSUMS[z]:08x}.tif", "Z####, 0 to 39, step 1"),
    "checksum first": (lambda z: f"{CHECKSUMS[z]:08x}_b_Z{z:04d}.tif", "Z####, 0 to 39, step 1"),
    "of a total": (lambda z: f"b_{z + 1}of40.tif", "b_#, 1 to 40, step 1"),
    "ranges": (lambda z: f"um_z{4 * z:04d}-{4 * z + 4:04d}.tif", "z####, 0 to 156, step 4"),
    "endings": (lambda z: f"b_{z:03d}.{['tif', 'tiff', 'TIF', 'ome.tif'][z % 4]}", "b_###, 0 to 39, step 1"),
    "two sides in turn": (lambda z: f"b_{'LR'[z % 2]}_{z:03d}.tif", "###, 0 to 39, step 1"),
    "place in a buffer": (lambda z: f"b_Z{z:04d}_buf{z % 8}.tif", "Z####, 0 to 39, step 1"),
    "capital within a word": (lambda z: f"brainZ{z:03d}T{40 - z}.tif", "brainZ###, 0 to 39, step 1"),
}


@pytest.mark.parametrize(("name", "rule"), NAMES.values(), ids=NAMES)
def test_names_of_instruments(name, rule):
    names = [name(z) for z in range(COUNT)]
    shuffled = [names[(7 * z) % COUNT] for z in range(COUNT)]
    numbering = slice_numbers(shuffled)
    assert [n for _, n in sorted(zip(numbering.numbers, shuffled, strict=True))] == names
    assert numbering.order == f"ordered by {rule}"
    assert numbering.progression.missing() == []


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["s_Z9.tif", "s_Z10.tif", "s_Z100.tif"], [9, 10, 100]),
        (["Z0009_C01.ome.tif", "Z0010_C01.ome.tif"], [9, 10]),
        (["t01_Z1.tif", "t01_Z2.tif"], [1, 2]),
        (["2024_slice7_of_9.tif", "2024_slice8_of_9.tif"], [7, 8]),
        (["z1_t1001.tif", "z2_t1005.tif"], [1, 2]),
        (["1_1001.tif", "2_1005.tif"], [1001, 1005]),
        (["z1_row0.tif", "z2_row0.tif", "z3_row1.tif"], [1, 2, 3]),
        (["only.tif"], [0]),
    ],
)
def test_numbers(names, numbers):
    assert list(slice_numbers(names).numbers) == numbers


def test_a_gap_behind_z_counts_though_a_counter_has_none():
    names = [f"{i:04d}_Z{z:04d}.tif" for i, z in enumerate(z for z in range(COUNT) if z != 7)]
    assert slice_numbers(names).progression.missing() == [7]


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["a1.tif", "b.tif"], "b.tif: the file name has no slice number"),
        (["a1.tif", "a2.tif", "other3.tif"], "other3.tif: is not named like the other slices (a#)"),
        (["a1.tif", "a2.tif", "a2 (1).tif"], "a2 (1).tif: is not named like"),
        (["a1.tif", "a01.tif"], "a1.tif and a01.tif have the same slice number 1"),
        (
            [f"m{m:02d}_s{s:03d}.tif" for m in range(12) for s in range(5)],
            "neither m00 nor s000 in the name m00_s000.tif",
        ),
        ([f"Z{z}_C{c}.tif" for z in range(9) for c in (0, 1)], "neither Z0 nor C0"),
        # a section of each of twelve mice
        (
            [f"m{m:02d}_s{CHECKSUMS[m] % 400:03d}.tif" for m in range(12)],
            "m00 and s000 in the name m00_s000.tif would order",
        ),
        ([f"m{CHECKSUMS[m] % 90}_a{CHECKSUMS[m] % 77}.tif" for m in range(9)], "would order the slices differently"),
        ([f"{z}_{99 - z}.tif" for z in range(COUNT)], "0 in the name 0_99.tif would order the slices differently"),
        ([f"frame{z}_z{z % 20}.tif" for z in range(COUNT)], "frame0 and z0 in the name"),
        (
            [f"mouse{'ABCDEFGHIJKL'[z]}_{z}.tif" for z in range(12)],
            "mouseA_0.tif and mouseB_1.tif are named differently",
        ),
        (
            [f"mouse{'AB'[z // 20]}_{z}.tif" for z in range(COUNT)],
            "mouseA_0.tif and mouseB_20.tif are named differently",
        ),
    ],
)
def test_names_that_give_no_clear_order(names, match):
    with pytest.raises(SelmaError, match=re.escape(match)):
        slice_numbers(names)


def test_the_error_for_two_orders_says_what_to_type():
    with pytest.raises(SelmaError, match="would order the slices differently") as refused:
        slice_numbers([f"{z}_{99 - z}.tif" for z in range(COUNT)])
    assert refused.value.option == r"choose the slice number with --slice-pattern 'Z(\d+)'"


class TestPattern:
    NAMES = ("a-1.5_b7.tif", "a2_b6.tif", "a3_b5.tif")

    @pytest.mark.parametrize(
        ("pattern", "numbers"),
        [
            (r"b(\d+)", [7, 6, 5]),
            (r"a([-.\d]+)", [-1.5, 2, 3]),
            (r"(?<=b)\d", [7, 6, 5]),
            (r"(?:a|c)\S+b(\d)", [7, 6, 5]),
        ],
    )
    def test_gives_the_numbers(self, pattern, numbers):
        assert list(slice_numbers(self.NAMES, pattern).numbers) == numbers

    def test_is_the_rule(self):
        assert slice_numbers(self.NAMES, r"b(\d)").order == "ordered by the slice pattern, 5 to 7, step 1"

    @pytest.mark.parametrize(
        ("pattern", "match"),
        [
            ("(", "slice pattern (: is no regular expression"),
            (r"Z(\d+)", "a-1.5_b7.tif: does not match the slice pattern"),
            ("(a)", "gives 'a', which is no number"),
            (r"b()", "a-1.5_b7.tif: does not match"),
            (r"_b\d.(.)", "gives 't'"),
            (r".\.(t)?", "a-1.5_b7.tif: does not match"),
        ],
    )
    def test_that_does_not_fit_is_refused(self, pattern, match):
        with pytest.raises(SelmaError, match=re.escape(match)):
            slice_numbers(self.NAMES, pattern)

    def test_that_gives_a_number_twice_is_refused(self):
        with pytest.raises(
            SelmaError, match=r"a1_b7.tif and a1_b8.tif have the same slice number 1 by the slice pattern"
        ):
            slice_numbers(["a1_b7.tif", "a1_b8.tif"], r"a(\d)")


@given(st.floats(1, 40), st.integers(0, 500), st.integers(4, 80), st.booleans(), st.booleans(), st.randoms())
def test_any_step_gives_the_order(step, start, count, padded, cut, random):
    positions = [floor(start + step * z + (0 if cut else 0.5)) for z in range(count)]
    names = [f"b_{position:06d}.tif" if padded else f"b_{position}.tif" for position in positions]
    shuffled = random.sample(names, count)
    assert [n for _, n in sorted(zip(slice_numbers(shuffled).numbers, shuffled, strict=True))] == names


@pytest.mark.parametrize(("count", "most"), [(3, 0), (4, 1), (40, 1), (99, 1), (100, 2), (5000, 100)])
def test_two_in_a_hundred_may_be_interpolated(count, most):
    assert most_interpolated(count) == most
