"""Turned copies of a volume against nibabel, which turned them."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.orientation import placement
from tests.conftest import write_image

SHAPE = (7, 9, 11)
AFFINE = np.array([[-1.5, 0, 0, 60], [0, -1.6, 0, 41], [0, 0, 6, -20], [0, 0, 0, 1.0]])
ORIENTATIONS = [
    np.array([[axis, flip] for axis, flip in zip(axes, flips, strict=True)])
    for axes in permutations(range(3))
    for flips in product((1, -1), repeat=3)
]


def oblique(degrees):
    turn, angle = np.eye(4), np.radians(degrees)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn


@pytest.fixture
def voxels(rng):
    return rng.integers(0, 65535, SHAPE, dtype=np.uint16, endpoint=True)


def written(path, voxels, affine, unit="micron"):
    image = nib.Nifti1Image(voxels.T, affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return open_volume(path)


def itk_image(image):
    """The same voxels at the same place, through ITK."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    sizes = nib.affines.voxel_sizes(image.affine)
    copy = sitk.GetImageFromArray(np.asarray(image.dataobj).T)
    copy.SetSpacing(sizes.tolist())
    copy.SetOrigin(lps[:3, 3].tolist())
    copy.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
    return copy


@pytest.mark.parametrize("affine", [AFFINE, oblique(20) @ AFFINE], ids=["straight", "oblique"])
@pytest.mark.parametrize("ending", ["nii", "nrrd", "mha"])
def test_every_orientation_is_brought_back(ending, affine, voxels, tmp_path):
    like = written(tmp_path / "image.nii", voxels, affine)
    for number, orientation in enumerate(ORIENTATIONS):
        path = tmp_path / f"label_{number}.{ending}"
        turned = nib.Nifti1Image(voxels.T, affine).as_reoriented(orientation)
        if ending == "nii":
            nib.save(turned, path)
        else:
            sitk.WriteImage(itk_image(turned), str(path))
        volume = open_volume(path)
        np.testing.assert_allclose(volume.affine, turned.affine, atol=1e-5)
        placed = placement(volume, like)
        assert placed.shape == SHAPE
        assert placed.difference is None
        np.testing.assert_array_equal(placed.apply(volume.read()), voxels)
        if np.array_equal(orientation, ORIENTATIONS[0]):
            assert placed.warning is None
        else:
            assert "image.nii, as their headers say, and was turned to it" in placed.warning


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1e-3), ("micron", 1.0)])
def test_headers_in_mm_and_in_um_agree(unit, factor, voxels, tmp_path):
    like = written(tmp_path / "image.nii", voxels, AFFINE)
    turned = nib.Nifti1Image(voxels.T, AFFINE).as_reoriented(ORIENTATIONS[11])
    label = written(
        tmp_path / "label.nii",
        np.asarray(turned.dataobj).T,
        np.diag([factor, factor, factor, 1.0]) @ turned.affine,
        unit,
    )
    np.testing.assert_array_equal(placement(label, like).apply(label.read()), voxels)


def moved(by):
    affine = AFFINE.copy()
    affine[:3, 3] += by
    return affine


DIFFERENT = [
    (moved([30, 0, 0]), "another origin (first voxels are 0 × 0 × 20 voxels apart, z, y, x)"),
    (moved([0, 0, 3.6]), "another origin (first voxels are 0.6 × 0 × 0 voxels apart, z, y, x)"),
    (AFFINE @ np.diag([1, 1, 0.5, 1]), "another spacing (voxels of 3 × 1.6 × 1.5 instead of 6 × 1.6 × 1.5, z, y, x)"),
    (oblique(3) @ AFFINE, "another direction (axes are 3° apart)"),
    (oblique(0.5) @ AFFINE, "another direction (axes are 0.5° apart)"),
    (
        AFFINE @ np.diag([-1, -1, 1, 1]),
        "another orientation and place (first voxels are 0 × 8 × 10 voxels apart, z, y, x after turning)",
    ),
    (np.eye(4), "another spacing (voxels of 1 × 1 × 1 instead of 6 × 1.6 × 1.5, z, y, x)"),
]


@pytest.mark.parametrize(("affine", "words"), DIFFERENT)
def test_other_differences_change_nothing_and_are_named(affine, words, voxels, tmp_path):
    like = written(tmp_path / "image.nii", voxels, AFFINE)
    label = written(tmp_path / "label.nii", voxels, affine)
    placed = placement(label, like)
    assert placed.difference == words
    assert placed.warning == (
        f"the header differs from that of {tmp_path}/image.nii: {words}; the voxels are taken as they lie"
    )
    np.testing.assert_array_equal(placed.apply(label.read()), voxels)


@pytest.mark.parametrize("affine", [moved([0.7, -0.7, 2.9]), AFFINE @ np.diag([1.005, 1, 0.995, 1])])
def test_rounded_headers_agree(affine, voxels, tmp_path):
    like = written(tmp_path / "image.nii", voxels, AFFINE)
    assert placement(written(tmp_path / "label.nii", voxels, affine), like).warning is None


def test_directions_without_a_place_turn_nothing(voxels, tmp_path):
    """Both programs write the origin 0, and count x and y from other sides."""
    label = open_volume(write_image(tmp_path / "itk.nii.gz", voxels))
    placed = placement(label, written(tmp_path / "nibabel.nii", voxels, np.eye(4)))
    assert placed.turns is None
    assert "another orientation and place (first voxels are 0 × 8 × 10 voxels apart" in placed.warning


def test_files_that_state_no_place_are_not_compared(voxels, tmp_path):
    like = written(tmp_path / "image.nii", voxels, AFFINE)
    tifffile.imwrite(tmp_path / "label.tif", voxels)
    nib.save(nib.Nifti1Image(voxels.T, None), tmp_path / "label.nii")  # neither qform nor sform
    content = bytearray((tmp_path / "image.nii").read_bytes())
    content[280:284] = np.float32(np.nan).tobytes()  # the first number of srow_x
    (tmp_path / "damaged.nii").write_bytes(content)
    for name in ("label.tif", "label.nii", "damaged.nii"):
        volume = open_volume(tmp_path / name)
        assert volume.affine is None
        assert placement(volume, like).warning is None
        np.testing.assert_array_equal(placement(volume, like).apply(volume.read()), voxels)


def test_axes_of_length_1_are_dropped_from_the_affine(voxels, tmp_path):
    image = nib.Nifti1Image(voxels.T[..., None], AFFINE)
    nib.save(image, tmp_path / "image.nii")
    np.testing.assert_allclose(open_volume(tmp_path / "image.nii").affine, AFFINE)
    itk = itk_image(nib.Nifti1Image(voxels.T, AFFINE))
    sitk.WriteImage(sitk.JoinSeries([itk]), str(tmp_path / "image.nrrd"))
    np.testing.assert_allclose(open_volume(tmp_path / "image.nrrd").affine, AFFINE)


@pytest.mark.slow
def test_no_real_label_is_turned(real_data):
    pairs = [
        (label, image)
        for folder in ("delivr", "selma3d_crops")
        for label in (real_data / folder).rglob("gt/*.nii.gz")
        for image in label.parent.parent.glob(f"raw/{label.name.removesuffix('.nii.gz')}*.nii.gz")
    ]
    assert len(pairs) > 50
    assert [str(label) for label, image in pairs if placement(open_volume(label), open_volume(image)).warning] == []
