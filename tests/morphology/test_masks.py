from itertools import product

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, ornt_transform
from scipy.ndimage import zoom

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology import masks
from nnunet_selma.morphology.masks import StoredMask, store_mask
from nnunet_selma.morphology.tissue import grid_box
from nnunet_selma.volumes import open_volume
from tests.conftest import write_image
from tests.conversion.volumes import Array


def stored(mask, folder, shape, spacing=None):
    """The mask as a run of a volume of this shape sees it."""
    volume = Array(mask)
    volume.path = folder / "mask.tif"
    store_mask(volume, folder, shape, spacing)
    return StoredMask.open(folder, shape)


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(*[st.integers(2, 40)] * 3), factor=st.sampled_from([1, 2, 3]), seed=st.integers(0, 99))
def test_a_coarser_mask_marks_the_voxels_that_its_own_cover(tmp_path_factory, shape, factor, seed):
    """Each voxel of the mask repeated along each axis, by numpy, is the oracle."""
    mask = np.random.default_rng(seed).random(shape) < 0.3
    mask[0, 0, 0] = True
    whole = np.kron(mask, np.ones((factor,) * 3, bool))
    read = stored(mask.astype(np.uint8), tmp_path_factory.mktemp("mask"), whole.shape)
    box = tuple(slice(n // 4, n) for n in whole.shape)
    assert np.array_equal(read.mask(box), whole[box])
    boxes = np.zeros_like(read.boxes)
    boxes[tuple((np.argwhere(whole) // grid_box(whole.shape)).T)] = True
    assert np.array_equal(read.boxes, boxes)
    assert not read.mask((slice(1, 1), slice(0, 2), slice(0, 2))).size


def test_a_mask_of_another_voxel_size_is_read_at_the_nearest_voxel(tmp_path, rng):
    """scipy's zoom of order 0 over the field of view (grid_mode) is the oracle."""
    mask = (rng.random((13, 21, 17)) < 0.5).astype(np.uint8)
    shape = (40, 64, 52)
    read = stored(mask, tmp_path, shape)
    expected = zoom(mask, np.divide(shape, mask.shape), order=0, mode="nearest", grid_mode=True) > 0
    assert np.array_equal(read.mask(tuple(slice(0, n) for n in shape)), expected)


def test_an_empty_mask_is_refused(tmp_path):
    with pytest.raises(SelmaError, match=r"mask\.tif: marks no voxel"):
        stored(np.zeros((40, 60, 80), np.uint8), tmp_path, (40, 60, 80))


def test_a_mask_of_another_field_of_view_is_refused(tmp_path):
    with pytest.raises(SelmaError, match="field of view; give a mask"):
        stored(np.ones((40, 20, 80), np.uint8), tmp_path, (40, 60, 80))


def test_a_mask_whose_axes_are_turned_is_refused(tmp_path):
    with pytest.raises(SelmaError, match="field of view; the lengths are equal in another order"):
        stored(np.ones((80, 60, 40), np.uint8), tmp_path, (40, 60, 80))


def test_a_mask_at_the_voxel_size_of_an_atlas(tmp_path):
    """Its voxels are cubes and those of the brain are not; the spacings say that both are equally long."""
    shape, spacing = (100, 400, 300), (4.0, 1.8, 1.8)
    mask = np.ones([round(n * s / 25) for n, s in zip(shape, spacing, strict=True)], np.uint8)
    write_image(tmp_path / "mask.nii.gz", mask, spacing_zyx=(0.025, 0.025, 0.025))
    store_mask(open_volume(tmp_path / "mask.nii.gz"), tmp_path, shape, spacing)
    assert StoredMask.open(tmp_path, shape).share == 1
    with pytest.raises(SelmaError, match="field of view"):
        store_mask(open_volume(tmp_path / "mask.nii.gz"), tmp_path, (200, 400, 300), spacing)


def nifti(path, values, affine):
    """A NIfTI of an array (z, y, x) with this matrix from (x, y, z) to mm."""
    nibabel.save(nibabel.Nifti1Image(values.T, affine), path)
    return open_volume(path)


LAYOUTS = [layout for layout in product("RL", "AP", "SI") if layout != ("R", "A", "S")]


@pytest.mark.parametrize("layout", LAYOUTS, ids="".join)
@pytest.mark.parametrize("unit", [1, 1000])
def test_a_mask_that_runs_against_the_volume_is_turned(layout, unit, tmp_path, rng, monkeypatch):
    """nibabel turns the mask and its header; the mask is read in several slabs."""
    monkeypatch.setattr(masks, "_READ_BYTES", 2 * 12 * 9)
    mask = (rng.random((10, 12, 9)) < 0.3).astype(np.uint8)
    affine = np.diag([0.4, 0.4, 0.4, 1.0])
    affine[:3, 3] = -3, 5, 2
    turned = nibabel.Nifti1Image(mask.T, affine).as_reoriented(
        ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(layout))
    )
    volume = np.diag([0.1, 0.1, 0.1, 1.0])
    volume[:3, 3] = affine[:3, 3] - 0.15  # the outer edges of both lie at the same place
    shape = tuple(4 * n for n in mask.shape)
    read = nifti(tmp_path / "mask.nii", np.asarray(turned.dataobj).T, turned.affine)
    store_mask(read, tmp_path, shape, None, np.diag([unit, unit, unit, 1]) @ volume)
    whole = StoredMask.open(tmp_path, shape).mask(tuple(slice(0, n) for n in shape))
    assert np.array_equal(whole, np.kron(mask, np.ones((4, 4, 4), bool)))


@pytest.mark.parametrize("place", [(0, 0, 0), (80, -40, 7)])
def test_a_mask_of_the_same_directions_is_taken_as_it_lies(place, tmp_path, rng):
    mask = (rng.random((10, 12, 9)) < 0.3).astype(np.uint8)
    affine = np.diag([0.1, 0.1, 0.1, 1.0])
    affine[:3, 3] = place
    store_mask(nifti(tmp_path / "mask.nii", mask, np.diag([0.1, 0.1, 0.1, 1])), tmp_path, mask.shape, None, affine)
    assert np.array_equal(StoredMask.open(tmp_path, mask.shape).mask(tuple(map(slice, [0] * 3, mask.shape))), mask)


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.diag([-1.0, 1.0, 1.0, 1.0]), "and another place"),
        (np.eye(4)[[2, 1, 0, 3]], "in another order"),
    ],
)
def test_a_mask_whose_header_no_reversal_explains_is_refused(affine, words, tmp_path):
    volume = nifti(tmp_path / "mask.nii", np.ones((9, 9, 9), np.uint8), affine)
    with pytest.raises(SelmaError, match=rf"mask\.nii: its header .* {words}; give the mask with axes, directions"):
        store_mask(volume, tmp_path, volume.shape, None, np.eye(4))


def test_a_run_without_a_mask_has_none(tmp_path):
    assert StoredMask.open(tmp_path, (8, 8, 8)) is None
