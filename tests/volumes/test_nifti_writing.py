"""Labels as NIfTI, laid over their image as nibabel and ITK see it."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes import nifti_writing, open_volume
from nnunet_selma.volumes.nifti_writing import write_label_nifti
from tests.objects.volumes import write_image

LABELS = np.random.default_rng(0).integers(0, 4, (7, 6, 5), dtype=np.uint8)


def oblique():
    turn = nib.eulerangles.euler2mat(0.3, -0.2, 0.1)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [0.002, -0.003, 0.005], (1.5, -2.5, 0.25)
    return affine


def image(path, kind=nib.Nifti1Image, big=False, shape=(5, 6, 7), unit="mm", codes=(1, 2)):
    header = kind.header_class(endianness=">" if big else "<")
    header.set_data_dtype(np.int16)
    made = kind(np.zeros(shape, np.int16), oblique(), header)
    made.header.set_xyzt_units(unit)
    made.header["cal_max"], made.header["descrip"] = 900, b"a brain"
    made.set_qform(oblique(), codes[0])
    made.set_sform(oblique(), codes[1])
    nib.save(made, path)
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("codes", [(1, 2), (3, 0), (0, 4), (0, 0)])
@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 1)])
def test_the_header_is_that_of_the_input(kind, big, codes, shape, tmp_path, monkeypatch):
    monkeypatch.setattr(nifti_writing, "_SLAB_BYTES", 60)  # two slices
    like = image(tmp_path / "in.nii", kind, big, shape, "micron", codes)
    labels = open_volume(write_image(tmp_path / "labels.zarr", LABELS))
    write_label_nifti(tmp_path / "out.nii.gz", labels, like)
    before, after = nib.load(like), nib.load(tmp_path / "out.nii.gz")
    assert type(after) is kind
    assert after.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(after.dataobj), LABELS.T)
    np.testing.assert_array_equal(after.affine, before.affine)
    for form in ("qform", "sform"):
        ours, theirs = (getattr(file, f"get_{form}")(coded=True) for file in (after, before))
        assert ours[1] == theirs[1]
        assert (ours[0] is None and theirs[0] is None) or np.array_equal(ours[0], theirs[0])
    assert after.header.get_xyzt_units()[0] == "micron"
    assert after.header.get_zooms() == before.header.get_zooms()[:3]
    assert after.header["descrip"] == b"a brain"
    assert not after.header["cal_max"]
    np.testing.assert_array_equal(open_volume(tmp_path / "out.nii.gz").read(), LABELS)
    assert not list(tmp_path.glob("*.partial"))


def test_itk_lays_them_over_the_input(tmp_path):
    like = image(tmp_path / "in.nii.gz")
    write_label_nifti(tmp_path / "out.nii.gz", open_volume(write_image(tmp_path / "labels.zarr", LABELS)), like)
    before, after = (sitk.ReadImage(str(path)) for path in (like, tmp_path / "out.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(after), LABELS)
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_array_equal(getattr(after, get)(), getattr(before, get)())


@pytest.mark.parametrize("scale", [1e-3, 1.0], ids=["mm", "µm"])
def test_other_headers_keep_their_place(scale, tmp_path):
    """An NRRD, through an OME-Zarr that keeps its affine; ITK reads the same place from both."""
    like = sitk.GetImageFromArray(LABELS)
    like.SetSpacing((1.0 * scale, 2.0 * scale, 4.0 * scale))
    like.SetOrigin((3.0, -4.0, 5.0))
    like.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, -1))
    sitk.WriteImage(like, str(tmp_path / "in.nrrd"))
    volume = open_volume(tmp_path / "in.nrrd")
    place = {"affine": volume.affine, "origin_voxels_zyx": volume.origin_voxels_zyx}
    labels = open_volume(write_image(tmp_path / "labels.zarr", LABELS, **place))
    labels.spacing_um_zyx = volume.spacing_um_zyx
    np.testing.assert_allclose(labels.affine, volume.affine)
    write_label_nifti(tmp_path / "out.nii.gz", labels, tmp_path / "in.nrrd")
    after = sitk.ReadImage(str(tmp_path / "out.nii.gz"))
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(after, get)(), getattr(like, get)(), rtol=1e-5, atol=1e-6)
    assert open_volume(tmp_path / "out.nii.gz").spacing_um_zyx == volume.spacing_um_zyx


def test_without_a_header_voxel_size_and_origin_place_them(tmp_path):
    labels = open_volume(write_image(tmp_path / "labels.zarr", LABELS, origin_voxels_zyx=(10.0, 0.0, -2.0)))
    write_label_nifti(tmp_path / "out.nii.gz", labels, tmp_path / "stack")
    expected = np.diag([*(edge / 1e3 for edge in labels.spacing_um_zyx[::-1]), 1.0])
    expected[:3, 3] = [edge / 1e3 for edge in labels.origin_um_zyx[::-1]]
    np.testing.assert_allclose(nib.load(tmp_path / "out.nii.gz").affine, expected, rtol=1e-6)
    after = open_volume(tmp_path / "out.nii.gz")
    assert after.spacing_um_zyx == labels.spacing_um_zyx
    assert after.origin_um_zyx == pytest.approx(labels.origin_um_zyx)


def test_a_killed_writer_leaves_nothing(tmp_path, monkeypatch):
    labels = open_volume(write_image(tmp_path / "labels.zarr", LABELS))

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(labels, "read", fail)
    with pytest.raises(OSError, match="no space"):
        write_label_nifti(tmp_path / "out.nii.gz", labels, tmp_path / "stack")
    assert [path.name for path in tmp_path.iterdir()] == ["labels.zarr"]
    with pytest.raises(SelmaError, match="there is no such file"):
        write_label_nifti(tmp_path / "out.nii.gz", labels, tmp_path / "gone.nii")
