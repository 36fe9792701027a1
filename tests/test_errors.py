import pickle

import pytest

from nnunet_selma.errors import SelmaError, counted

SLICE = SelmaError("a.tif: is damaged; replace it", option="add --on-bad-slice interpolate")


@pytest.mark.parametrize("error", [SLICE, pickle.loads(pickle.dumps(SLICE))], ids=["here", "from a worker"])
def test_a_remedy_by_an_option_is_for_commands_that_have_it(error):
    assert str(error) == error.for_command({"--spacing"}) == "a.tif: is damaged; replace it"
    assert error.for_command({"--on-bad-slice"}) == "a.tif: is damaged; replace it, or add --on-bad-slice interpolate"


def test_a_remedy_by_two_options_needs_both():
    error = SelmaError("no", option="give --a and --b")
    assert [error.for_command(options) for options in ({"--a"}, {"--a", "--b"})] == ["no", "no, or give --a and --b"]


@pytest.mark.parametrize(("number", "text"), [(0, "0 patches"), (1, "1 patch"), (2, "2 patches")])
def test_counts_are_singular_for_one_thing(number, text):
    assert counted(number, "patch", "patches") == text
    assert counted(number, "case") == text.replace("patches", "cases").replace("patch", "case")
