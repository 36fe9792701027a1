"""Settings stay as they were when a dataset of cubes was begun; options for cubes and for patches are told apart."""

import pytest

from nnunet_selma import cli
from nnunet_selma.errors import SelmaError
from tests.annotation.datasets import convert, tree


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"answers": {"classes": ("soma",)}}, "was begun with classes structure"),
        ({"structure": "microglia"}, "was begun with structure not given"),
        ({"foreground": 1}, "--foreground: means nothing for"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words, source, folders):
    convert(source, folders)
    files = tree(folders.raw)
    with pytest.raises(SelmaError, match=words):
        convert(source, folders, **settings)
    assert tree(folders.raw) == files


def test_options_for_cubes_are_refused_for_patches(tmp_path, folders, capsys):
    (tmp_path / "patches").mkdir()
    assert cli.main(["convert", "annotated", str(tmp_path / "patches"), "--without-unchanged"]) == 2
    assert "--without-unchanged: is for folders that nnunet-selma propose wrote" in capsys.readouterr().err


def test_numbers_that_are_given_are_compared_also_where_they_are_the_default(source, folders, capsys):
    command = ["convert", "annotated", str(source), "-d", "510"]
    assert cli.main([*command, "--folds", "3"]) == 0
    assert cli.main(command) == 0
    assert cli.main([*command, "--folds", "3", "--seed", "0"]) == 0
    capsys.readouterr()
    assert cli.main([*command, "--folds", "5"]) == 2
    assert "was begun with folds 3" in capsys.readouterr().err
