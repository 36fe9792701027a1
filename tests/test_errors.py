import pickle

import pytest

from nnunet_selma.errors import SelmaError, counted, sentence_of

SLICE = SelmaError("a.tif: is damaged; replace it", option="add --on-bad-slice interpolate")


@pytest.mark.parametrize("error", [SLICE, pickle.loads(pickle.dumps(SLICE))], ids=["here", "from a worker"])
def test_a_remedy_by_an_option_is_for_commands_that_have_it(error):
    assert str(error) == error.for_command({"--spacing"}) == "a.tif: is damaged; replace it"
    assert error.for_command({"--on-bad-slice"}) == "a.tif: is damaged; replace it, or add --on-bad-slice interpolate"


def test_a_remedy_by_two_options_needs_both():
    error = SelmaError("no", option="give --a and --b")
    assert [error.for_command(options) for options in ({"--a"}, {"--a", "--b"})] == ["no", "no, or give --a and --b"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(28, "No space left on device", "a.tif"), "a.tif: No space left on device; make room"),
        (
            PermissionError(13, "Permission denied", "a.tif"),
            "a.tif: Permission denied; check the path and its permissions",
        ),
        (OSError("lost"), "the disk: lost; check the path"),
        (MemoryError(), "there is not enough memory; make some free"),
        (MemoryError("20 GB"), "there is not enough memory (20 GB); make some free"),
    ],
)
def test_errors_of_files_and_memory_have_a_sentence(error, sentence):
    assert str(sentence_of(error)).startswith(sentence)


@pytest.mark.parametrize(("number", "text"), [(0, "0 patches"), (1, "1 patch"), (2, "2 patches")])
def test_counts_are_singular_for_one_thing(number, text):
    assert counted(number, "patch", "patches") == text
    assert counted(number, "case") == text.replace("patches", "cases").replace("patch", "case")
