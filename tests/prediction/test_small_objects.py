from inspect import signature

import nibabel
import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import remove_small_objects

from nnunet_selma import cli
from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.small_objects import remove_small, remove_small_in_file
from nnunet_selma.volumes import open_volume
from tests.conftest import write_image

CUBE = np.ones((3, 3, 3), bool)


@pytest.mark.parametrize("density", [0.02, 0.08, 0.3])
@pytest.mark.parametrize("least", [0, 1, 2, 5, 40])
def test_the_same_voxels_stay_as_in_scipy_and_scikit_image(density, least, rng):
    mask = rng.random((20, 23, 26)) < density
    kept, removed = remove_small(mask.astype(np.uint8), least)
    labels, count = ndimage.label(mask, CUBE)
    sizes = ndimage.sum_labels(mask, labels, range(1, count + 1))
    assert removed == (sizes < least).sum()
    assert np.array_equal(kept, np.isin(labels, 1 + np.flatnonzero(sizes >= least)))
    # scikit-image 0.26 counts the largest that goes, earlier ones the smallest that stays
    newer = "max_size" in signature(remove_small_objects).parameters
    size = {"max_size": max(least - 1, 0)} if newer else {"min_size": least}
    assert np.array_equal(kept > 0, remove_small_objects(mask, connectivity=3, **size))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.float32])
def test_labels_are_one_foreground_and_stay_as_they_are(dtype):
    mask = np.zeros((4, 5, 6), dtype)
    mask[0, 0, 0], mask[1, 1, 1], mask[2, 2, 2] = 1, 7, 3  # one component over corners, of three labels
    mask[3, 4, 5] = 9
    kept, removed = remove_small(mask, 3)
    assert (kept.dtype, removed) == (mask.dtype, 1)
    assert kept[3, 4, 5] == 0
    mask[3, 4, 5] = 0
    assert np.array_equal(kept, mask)


def test_the_mask_that_was_given_is_not_changed(rng):
    mask = (rng.random((9, 9, 9)) < 0.1).astype(np.uint8)
    before = mask.copy()
    assert remove_small(mask, 1000)[0].sum() == 0
    assert np.array_equal(mask, before)


def test_empty_and_full_masks():
    for shape in ((4, 5, 6), (0, 5, 6)):
        kept, removed = remove_small(np.zeros(shape, np.uint8), 5)
        assert (kept.shape, int(kept.sum()), removed) == (shape, 0, 0)
    full = np.ones((3, 4, 5), np.uint8)
    assert remove_small(full, 60)[1] == 0
    kept, removed = remove_small(full, 61)
    assert (int(kept.sum()), removed) == (0, 1)


@pytest.mark.parametrize("name", ["cfos_1.nii", "cfos_1.nii.gz"])
def test_a_file_keeps_its_header(name, tmp_path, rng):
    mask = (rng.random((8, 9, 10)) < 0.1).astype(np.uint8)  # (x, y, z)
    affine = np.array([[0, -2.0, 0, 5], [3.0, 0, 0, -7], [0, 0, 4.0, 11], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(mask, affine), tmp_path / name)
    removed = remove_small_in_file(tmp_path / name, tmp_path / f"out_{name}", 3)
    before, after = (nibabel.load(tmp_path / one) for one in (name, f"out_{name}"))
    expected, count = remove_small(mask, 3)
    assert removed == count > 0
    assert np.array_equal(np.asarray(after.dataobj), expected)
    assert np.array_equal(after.affine, affine)
    assert after.header.get_zooms() == before.header.get_zooms()
    assert after.get_data_dtype() == np.uint8
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f"out_{name}"])


def test_a_folder_is_cleaned_by_the_command(tmp_path, rng, capsys):
    mask = (rng.random((8, 9, 10)) < 0.1).astype(np.uint8)
    for case in ("cfos_1", "cfos_2"):
        write_image(tmp_path / "in" / f"{case}.nii.gz", mask)
    (tmp_path / "in" / "plans.json").write_text("{}")
    assert cli.main(["remove-small", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--below", "4"]) == 0
    expected, removed = remove_small(mask, 4)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cfos_1.nii.gz", "cfos_2.nii.gz"]
    assert np.array_equal(open_volume(tmp_path / "out" / "cfos_2.nii.gz").read(), expected)
    assert f"cfos_1.nii.gz: {removed} components of fewer than 4 voxels removed" in capsys.readouterr().out


def test_folders_that_cannot_be_cleaned(tmp_path, rng, capsys):
    write_image(tmp_path / "in" / "a.nii.gz", np.ones((3, 4, 5), np.uint8))
    (tmp_path / "empty").mkdir()
    for source, target, sentence in (
        ("nowhere", "out", "nowhere: there is no such folder"),
        ("empty", "out", "empty: holds no segmentation"),
        ("in", "in", "in: is the folder to read"),
    ):
        assert cli.main(["remove-small", str(tmp_path / source), "-o", str(tmp_path / target)]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_nifti_are_refused(tmp_path):
    write_image(tmp_path / "a.nrrd", np.ones((3, 4, 5), np.uint8))
    with pytest.raises(SelmaError, match=r"a\.nrrd: small components are removed from NIfTI files only"):
        remove_small_in_file(tmp_path / "a.nrrd", tmp_path / "b.nrrd", 5)
