"""Folds of a dataset that was made by hand: no group is parted, whatever names the cases have."""

import numpy as np
import pytest

from nnunet_selma import cli
from nnunet_selma.conversion.dataset_folds import FoldSettings, write_folds
from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json, write_json
from tests.conftest import write_image

CASES = [f"mouse{mouse:02d}_{side}" for mouse in range(4) for side in ("left", "right", "mid")]


@pytest.fixture
def dataset(folders, rng):
    """A raw dataset of four mice, three cubes each; the right cube of mouse 0 lies beside the left one of mouse 1."""
    raw = folders.raw / "Dataset007_TH"
    brain = rng.integers(0, 9999, (12, 12, 24)).astype(np.uint16)
    halves = {"mouse00_right": brain[:, :, :14], "mouse01_left": brain[:, :, 10:]}
    for case in CASES:
        image = halves.get(case, rng.integers(0, 9999, (12, 12, 14)).astype(np.uint16))
        write_image(raw / "imagesTr" / f"{case}_0000.nii.gz", image)
        write_image(raw / "labelsTr" / f"{case}.nii.gz", (image > 5000).astype(np.uint8))
    write_json(raw / "dataset.json", {"file_ending": ".nii.gz", "channel_names": {"0": "TH"}})
    return folders


def parted(splits, group_of):
    """Groups with cases on both sides of a fold."""
    return [{group_of(case) for case in split["train"]} & {group_of(case) for case in split["val"]} for split in splits]


@pytest.mark.parametrize("pattern", [r"mouse\d+", r"^(mouse\d+)_", r"mouse(\d+)_\w+"])
def test_a_pattern_finds_groups_in_names(pattern, dataset):
    splits = write_folds(FoldSettings(dataset_id=7, group=pattern), dataset)
    assert len(splits) == 4  # as many as there are mice
    assert not any(parted(splits, lambda case: case[:7]))
    assert sorted(case for split in splits for case in split["val"]) == sorted(CASES)
    assert read_json(dataset.preprocessed / "Dataset007_TH" / "splits_final.json") == splits


def test_a_table_gives_groups(dataset, tmp_path):
    table = tmp_path / "groups.csv"
    litter = {case: "a" if case < "mouse02" else "b" for case in CASES}
    table.write_text("\ufeffcase,group\n" + "".join(f"{case},{group}\n" for case, group in litter.items()))
    splits = write_folds(FoldSettings(dataset_id=7, group=str(table), folds=2), dataset)
    assert not any(parted(splits, litter.get))
    table.write_text("case,group\nmouse00_left,a\n")
    with pytest.raises(SelmaError, match=r"has no group for mouse00_mid \(11 of 12 cases\)"):
        write_folds(FoldSettings(dataset_id=7, group=str(table)), dataset)
    table.write_text("name;litter\n")
    with pytest.raises(SelmaError, match="no columns case and group"):
        write_folds(FoldSettings(dataset_id=7, group=str(table)), dataset)


def test_without_a_group_cases_of_the_same_tissue_stay_together(dataset):
    splits = write_folds(FoldSettings(dataset_id=7), dataset)
    overlapping = {"mouse00_right", "mouse01_left"}
    assert len(splits) == 5
    assert all(len(overlapping & set(split["val"])) in (0, 2) for split in splits)


@pytest.mark.parametrize(
    ("group", "sentence"),
    [
        ("litter", r"finds no group in mouse00_left \(12 of 12 cases\)"),
        ("mouse", "all 12 cases are one group"),
        ("(", "is no regular expression"),
        ("missing.csv", "there is no such file"),
    ],
)
def test_groups_that_cannot_be_used(group, sentence, dataset):
    with pytest.raises(SelmaError, match=sentence):
        write_folds(FoldSettings(dataset_id=7, group=group), dataset)
    assert not (dataset.preprocessed / "Dataset007_TH").exists()


def test_the_command_keeps_folds_that_are_there(dataset, capsys):
    assert cli.main(["splits", "-d", "7", "--group", r"mouse\d+"]) == 0
    printed = capsys.readouterr().out
    assert "fold 0: 9 training and 3 validation cases" in printed
    assert cli.main(["splits", "-d", "7", "--group", r"mouse\d+"]) == 0  # the same again
    assert cli.main(["splits", "-d", "7", "--group", r"mouse\d+", "--seed", "3"]) == 2
    assert "holds other folds; add --overwrite" in capsys.readouterr().err
    assert cli.main(["splits", "-d", "7", "--group", r"mouse\d+", "--seed", "3", "--overwrite"]) == 0
