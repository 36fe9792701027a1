"""Folds of a dataset of cubes, as it grows."""

import shutil

import numpy as np
import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json, write_json
from tests.annotation.datasets import DATASET, convert, grow, held_out, tree
from tests.annotation.folders import SHAPE, blobs, paint, write_cubes


def test_folds_that_a_user_changed_stay(source, folders, rng):
    convert(source, folders)
    file = folders.preprocessed / DATASET / "splits_final.json"
    cases = [f"cube_{number:04d}" for number in range(1, 5)]
    given = [{"train": [cases[0], cases[2]], "val": [cases[1], cases[3]]}]
    given += [{"train": given[0]["val"], "val": given[0]["train"]}]
    write_json(file, given)
    (name,) = write_cubes(source, rng, ["d"], round_number=2)
    paint(source, name, blobs(rng))
    convert(source, folders)
    assert read_json(file) == [
        {"train": given[0]["train"], "val": [*given[0]["val"], name]},
        {"train": [*given[1]["train"], name], "val": given[1]["val"]},
    ]


def copy_of_another_brain(source):
    """The same tissue under another path, as after a disk was renamed."""
    for name in ("cube_0001", "cube_0002"):
        cube = read_json(source / name / "cube.json")
        assert cube["path"]
    shutil.copy(source / "cube_0001/image.nii.gz", source / "cube_0004/image.nii.gz")
    origin = read_json(source / "cube_0001/cube.json")["origin_um_zyx"]
    content = read_json(source / "cube_0004/cube.json")
    write_json(source / "cube_0004/cube.json", {**content, "origin_um_zyx": origin})
    paint(source, "cube_0004", np.ones(SHAPE, np.uint8))


def test_the_same_tissue_under_another_name_shares_a_fold(source, folders):
    copy_of_another_brain(source)
    manifest = convert(source, folders)
    folds = held_out(folders)
    assert folds["cube_0004"] == folds["cube_0001"] == folds["cube_0003"]
    assert [relation["reason"] for relation in manifest["related_patches"]] == ["identical images"]


@pytest.mark.parametrize("renamed", ["brain", "path"])
def test_cubes_of_one_name_or_of_one_path_share_a_fold(renamed, source, folders):
    content = read_json(source / "cube_0003/cube.json")
    write_json(source / "cube_0003/cube.json", {**content, renamed: "/moved/elsewhere"})
    manifest = convert(source, folders)
    folds = held_out(folders)
    assert folds["cube_0001"] == folds["cube_0003"] != folds["cube_0002"]
    assert manifest["groups"]["cube_0001"] == manifest["groups"]["cube_0003"]


class TestFoldsMadeByHand:
    def test_overlapping_ones_stay_and_take_new_cases_beside_their_brain(self, source, folders, rng):
        convert(source, folders)
        file = folders.preprocessed / DATASET / "splits_final.json"
        given = [
            {"train": ["cube_0002"], "val": ["cube_0003", "cube_0001"]},
            {"train": ["cube_0004"], "val": ["cube_0001", "cube_0002", "cube_0003"]},
        ]
        write_json(file, given)
        text = file.read_text()
        assert not convert(source, folders)["grown"]
        assert file.read_text() == text
        name = grow(source, folders, rng, "a")
        assert read_json(file) == [{**split, "val": [*split["val"], name]} for split in given]
        other = grow(source, folders, rng, "c")
        assert other in read_json(file)[1]["train"]

    def test_lose_a_cube_that_is_taken_out_of_the_dataset(self, source, folders):
        convert(source, folders)
        file = folders.preprocessed / DATASET / "splits_final.json"
        given = [
            {"train": ["cube_0002", "cube_0004"], "val": ["cube_0003", "cube_0001"]},
            {"train": ["cube_0004"], "val": ["cube_0001", "cube_0002"]},
        ]
        write_json(file, given)
        convert(source, folders, {"without": ("cube_0002",)})
        assert read_json(file) == [
            {"train": ["cube_0004"], "val": ["cube_0003", "cube_0001"]},
            {"train": ["cube_0004"], "val": ["cube_0001"]},
        ]
        files = tree(folders.raw), file.read_text()
        for case, sentence in (("cube_0004", "fold 0 trains on"), ("cube_0001", "fold 1 holds out")):
            with pytest.raises(SelmaError, match=f"{sentence} nothing but {case}; put another case there"):
                convert(source, folders, {"without": (case,)})
        assert (tree(folders.raw), file.read_text()) == files

    def test_are_not_left_without_any_case(self, source, folders, rng):
        convert(source, folders)
        file = folders.preprocessed / DATASET / "splits_final.json"
        write_json(file, [{"train": ["cube_0001"], "val": ["cube_0001"]}] * 5)
        files = tree(folders.raw), file.read_text()
        with pytest.raises(SelmaError, match="hold nothing but cube_0001; put another case there"):
            convert(source, folders, {"without": ("cube_0001",)})
        assert (tree(folders.raw), file.read_text()) == files
        (name,) = write_cubes(source, rng, ["d"], round_number=2)
        paint(source, name, blobs(rng))
        convert(source, folders, {"without": ("cube_0001",)})
        assert read_json(file) == [{"train": [name], "val": [name]}] * 5

    def test_a_case_that_was_taken_out_stays_out(self, source, folders, rng):
        convert(source, folders)
        file = folders.preprocessed / DATASET / "splits_final.json"
        splits = [{part: [c for c in cases if c != "cube_0004"] for part, cases in s.items()} for s in read_json(file)]
        splits = [split for split in splits if split["val"]]
        write_json(file, splits)
        convert(source, folders)
        assert read_json(file) == splits
        name = grow(source, folders, rng, "b")
        placed = {case for split in read_json(file) for case in (*split["train"], *split["val"])}
        assert placed == {"cube_0001", "cube_0002", "cube_0003", name}
