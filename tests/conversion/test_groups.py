import pytest

from nnunet_selma.conversion.groups import given_groups
from nnunet_selma.errors import SelmaError

CASES = {"TH_m07_left": ["TH_m07_left", "m07_left"], "TH_m08_left": ["TH_m08_left", "m08_left"]}


@pytest.mark.parametrize("group", ["m[0-9]+", "(m[0-9]+)_left"])
def test_a_pattern_finds_the_group(group):
    assert given_groups(group, CASES) == {"TH_m07_left": "m07", "TH_m08_left": "m08"}


def test_a_table_may_name_cases_or_files(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("case,group\nm07_left,one\nTH_m08_left,two\n")
    assert given_groups(str(path), CASES) == {"TH_m07_left": "one", "TH_m08_left": "two"}
    path.write_text("case,group\nm07_left,one\n")
    with pytest.raises(SelmaError, match=r"has no group for TH_m08_left \(1 of 2 cases\)"):
        given_groups(str(path), CASES)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("(m", "is no regular expression"),
        ("x[0-9]", "finds no group in TH_m07_left"),
        ("x*", "finds no group"),
        ("(?:d(\\d))?m", "finds no group"),
    ],
)
def test_patterns_that_do_not_fit(group, message):
    with pytest.raises(SelmaError, match=message):
        given_groups(group, CASES)


def test_tables_that_do_not_fit(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("case,group\nm07_left, one \nm08_left,one\n")
    assert set(given_groups(str(path), CASES).values()) == {"one"}
    path.write_text("case,group\nm07_left,one\nm07_left,two\nm08_left,one\n")
    with pytest.raises(SelmaError, match="puts m07_left into the groups one and two"):
        given_groups(str(path), CASES)
    path.write_text("case,group\nm07_left,Mäuse\n", encoding="latin-1")
    with pytest.raises(SelmaError, match="save it as CSV UTF-8"):
        given_groups(str(path), CASES)
