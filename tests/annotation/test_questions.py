"""Labels that may be unfinished are asked about, and answers are remembered."""

import shutil

import numpy as np
import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json
from tests.annotation.datasets import DATASET, convert, voxels
from tests.annotation.folders import SHAPE, blobs, keep_unsaved, paint, write_cubes


class TestQuestions:
    def test_unchanged_cubes(self, source, folders, rng):
        names = write_cubes(source, rng, ["a", "d"])
        with pytest.raises(
            SelmaError, match=r"2 cubes as handed over: cube_0005, cube_0006.*--without-unchanged.*--as-is"
        ):
            convert(source, folders)
        assert not (folders.raw / DATASET).exists()
        manifest = convert(source, folders, {"without_unchanged": True})
        assert (len(manifest["cases"]), len(manifest["left_out"])) == (4, 2)
        manifest = convert(source, folders, {"as_is": (names[0],), "without_unchanged": True})
        assert names[0] in manifest["cases"]
        assert names[1] not in manifest["cases"]
        convert(source, folders, {"without_unchanged": True})  # what was answered is not asked again

    def test_half_done_cubes(self, source, folders, rng):
        names = write_cubes(source, rng, ["a", "d", "d"])
        for name in names:
            labels = blobs(rng)
            labels[6:] = 0
            paint(source, name, labels)
        with pytest.raises(
            SelmaError, match=r"3 labels that may be unfinished: cube_0005 has no label in the 6 planes 6 to 11 along z"
        ):
            convert(source, folders)
        manifest = convert(source, folders, {"as_is": tuple(names[:2]), "without": tuple(names[2:])})
        assert {*names[:2]} <= manifest["cases"].keys()
        assert manifest["left_out"] == ["cube_0007: as asked for"]

    @pytest.mark.parametrize("how", ["handed over", "not annotated"])
    def test_an_annotation_that_is_gone(self, how, tmp_path, source, folders, rng):
        handed_over = tmp_path / "handed_over.nii.gz"
        names = write_cubes(source, rng, ["a"])
        shutil.copy(source / names[0] / "label.nii.gz", handed_over)
        paint(source, names[0], blobs(rng))
        convert(source, folders)
        if how == "handed over":
            shutil.copy(handed_over, source / names[0] / "label.nii.gz")
        else:
            paint(source, names[0], np.full(SHAPE, 255, np.uint8))
        with pytest.raises(SelmaError, match="though an annotation of it is in the dataset"):
            convert(source, folders, {"without_unchanged": True})

    def test_nothing_is_annotated(self, tmp_path, folders, rng):
        write_cubes(tmp_path / "new", rng, ["a"])
        with pytest.raises(SelmaError, match="no cube is annotated yet"):
            convert(tmp_path / "new", folders, {"without_unchanged": True})

    def test_a_label_under_another_name(self, source, folders, rng):
        (name,) = write_cubes(source, rng, ["a"])
        shutil.copy(source / name / "label.nii.gz", source / name / "label_done.nii.gz")
        with pytest.raises(SelmaError, match=r"beside it lies label_done\.nii\.gz, which is not read"):
            convert(source, folders)


def test_several_classes_are_named(source, folders, rng):
    paint(source, "cube_0001", blobs(rng, value=3))
    with pytest.raises(SelmaError, match="holds the values 3, and the dataset has 1 class"):
        convert(source, folders)
    convert(source, folders, {"classes": ("soma", "axon", "vessel")})
    labels = read_json(folders.raw / DATASET / "dataset.json")["labels"]
    assert labels == {"background": 0, "soma": 1, "axon": 2, "vessel": 3, "ignore": 4}
    assert voxels(folders.raw / DATASET / "labelsTr/cube_0004.nii.gz").max() == 4


def test_what_was_left_out_is_not_asked_again_until_its_label_changes(source, folders, rng):
    names = write_cubes(source, rng, ["a", "b", "c"], round_number=2)
    paint(source, names[1], np.full(SHAPE, 255, np.uint8))
    (source / names[2] / "label.nii.gz").write_bytes(b"damaged")
    manifest = convert(source, folders, {"without_unchanged": True, "without": (names[2],)})
    assert (len(manifest["cases"]), sorted(manifest["left_out_cubes"])) == (4, names)
    assert convert(source, folders) == {**manifest, "grown": False}
    labels = blobs(rng)
    labels[6:] = 0
    paint(source, names[0], labels)
    with pytest.raises(SelmaError, match=f"{names[0]} has no label in the 6 planes"):
        convert(source, folders)
    paint(source, names[0], blobs(rng))
    manifest = convert(source, folders)
    assert (manifest["grown"], names[0] in manifest["cases"], sorted(manifest["left_out_cubes"])) == (
        True,
        True,
        names[1:],
    )


def test_an_answer_is_kept_where_nothing_is_new(source, folders, rng):
    convert(source, folders)
    names = write_cubes(source, rng, ["a"], round_number=2)
    splits = (folders.preprocessed / DATASET / "splits_final.json").read_bytes()
    assert not convert(source, folders, {"without_unchanged": True})["grown"]
    there = read_json(folders.raw / DATASET / "selma_manifest.json")
    assert (sorted(there["left_out_cubes"]), len(there["history"])) == (names, 1)
    assert (folders.preprocessed / DATASET / "splits_final.json").read_bytes() == splits


class TestWhatWasPaintedAndNotSaved:
    def test_is_asked_about(self, source, folders, rng):
        unchanged, changed = write_cubes(source, rng, ["a", "b"])
        for name in (unchanged, changed):
            keep_unsaved(source, name, blobs(rng))
        labels = blobs(rng)
        paint(source, changed, labels)
        with pytest.raises(SelmaError, match="2 labels that may be unfinished") as error:
            convert(source, folders, {"without_unchanged": True})
        view = f"lies in unsaved_0001.nii.gz (nnunet-selma view {source}"
        assert all(
            f"{name}: what was painted and not saved {view}/{name} says" in str(error.value)
            for name in (unchanged, changed)
        )
        manifest = convert(source, folders, {"as_is": (changed,), "without": (unchanged,)})
        assert (changed in manifest["cases"], manifest["left_out"]) == (True, [f"{unchanged}: as asked for"])
        np.testing.assert_array_equal(voxels(folders.raw / DATASET / f"labelsTr/{changed}.nii.gz"), labels)
        assert not convert(source, folders)["grown"]  # what was answered is not asked again

    def test_does_not_hide_another_doubt(self, source, folders, rng):
        labels = blobs(rng)
        labels[6:] = 0
        paint(source, "cube_0001", labels)
        keep_unsaved(source, "cube_0001", blobs(rng))
        with pytest.raises(SelmaError, match=r"no label in the 6 planes.*, and what was painted and not saved lies in"):
            convert(source, folders)

    def test_is_asked_about_after_the_cube_was_left_out(self, source, folders, rng):
        (name,) = write_cubes(source, rng, ["a"])
        convert(source, folders, {"without_unchanged": True})
        (source / name / "unsaved_0001.nii.gz").touch()  # a window without a stroke
        assert not convert(source, folders)["grown"]
        for number in (1, 2):
            keep_unsaved(source, name, blobs(rng), number)
            with pytest.raises(SelmaError, match=f"{name}: what was painted and not saved"):
                convert(source, folders, {"without_unchanged": True})
            convert(source, folders, {"without": (name,)})
            assert not convert(source, folders)["grown"]
