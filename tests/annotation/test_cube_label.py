"""The label of a cube, its versions and its unsaved files."""

from pathlib import Path

import numpy as np
import pytest

from nnunet_selma.annotation import cube_label
from nnunet_selma.annotation.cube_label import CubeLabel
from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes import open_volume
from tests.conftest import write_image


def test_saving_writes_the_label_and_keeps_every_version(cube):
    label = CubeLabel.open(cube)
    first = label.path.read_bytes()
    affine = open_volume(label.path).affine
    for number in (1, 2):
        label.voxels[number, 3, 4] = number
        before = Path("versions", f"label_{number:04d}.nii.gz")
        assert label.save() == f"label.nii.gz: saved; the version before is {before}"
    assert (cube / "versions" / "label_0001.nii.gz").read_bytes() == first
    assert open_volume(cube / "versions" / "label_0002.nii.gz").read().sum() == 1
    saved = open_volume(label.path)
    np.testing.assert_array_equal(saved.read(), label.voxels)
    np.testing.assert_array_equal(saved.affine, affine)
    assert label.saves == 2
    assert label.write_unsaved() is None


def test_a_kill_while_saving_keeps_the_label(cube, monkeypatch):
    label = CubeLabel.open(cube)
    before = label.path.read_bytes()
    label.voxels[:] = 1
    monkeypatch.setattr(cube_label, "write_label_nifti", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        label.save()
    assert label.path.read_bytes() == before


def test_what_was_not_saved_goes_beside_the_label(cube):
    label = CubeLabel.open(cube)
    before = label.path.read_bytes()
    label.voxels[0, 1, 2] = 7
    kept = label.write_unsaved()
    assert open_volume(kept).read()[0, 1, 2] == 7
    assert label.path.read_bytes() == before


def test_what_was_not_saved_earlier_is_kept_too(cube):
    for number in (1, 2):
        label = CubeLabel.open(cube)
        label.voxels[0, 1, 2] = number
        assert label.write_unsaved() == cube / f"unsaved_{number:04d}.nii.gz"
    assert [open_volume(path).read()[0, 1, 2] for path in CubeLabel.open(cube).unsaved_files()] == [1, 2]


def test_a_label_that_is_gone_is_saved_at_its_place(cube):
    label = CubeLabel.open(cube)
    affine = open_volume(label.path).affine
    label.path.rename(cube / "mine.nii.gz")
    label.voxels[3, 4, 5] = 1
    np.testing.assert_array_equal(open_volume(label.write_unsaved()).affine, affine)
    assert "removed or renamed meanwhile" in label.save()
    np.testing.assert_array_equal(open_volume(label.path).affine, affine)
    np.testing.assert_array_equal(open_volume(label.path).read(), label.voxels)


def test_what_another_program_saved_is_kept_and_said(cube):
    label = CubeLabel.open(cube)
    label.voxels[3, 4, 5] = 1
    (cube / "versions").mkdir()
    (cube / "versions" / "label_0007 copy.nii.gz").write_bytes(b"a copy by hand")
    label.path.write_bytes(b"of another program")
    kept = cube / "versions" / "label_0001.nii.gz"
    assert f"another program had saved it meanwhile, and that version is {kept.relative_to(cube)}" in label.save()
    assert kept.read_bytes() == b"of another program"
    assert "the version before is" in label.save()


def test_what_is_no_label_or_no_cube_is_refused(cube):
    voxels = np.zeros((20, 20, 20), np.uint32)
    voxels[1, 2, 3] = 65536
    write_image(cube / "label.nii.gz", voxels)
    with pytest.raises(SelmaError, match="holds the value 65536"):
        CubeLabel.open(cube)
    (cube / "cube.json").write_text('{"edges": 12}')
    with pytest.raises(SelmaError, match="comes from another program"):
        CubeLabel.open(cube)


@pytest.mark.parametrize(
    ("voxels", "sentence"),
    [
        (np.ones((20, 20)), "the painted layer has 20 × 20 voxels, the cube 20 × 20 × 20"),
        (np.ones((20, 20, 21), np.uint8), "has 20 × 20 × 21 voxels"),
        (np.full((20, 20, 20), -1), "whole numbers from 0 to 65535"),
        (np.full((20, 20, 20), 65536), "whole numbers from 0 to 65535"),
        (np.full((20, 20, 20), 0.5), "whole numbers from 0 to 65535"),
        (np.full((20, 20, 20), np.nan), "whole numbers from 0 to 65535"),
    ],
)
def test_what_is_no_label_of_the_cube_is_not_taken(cube, voxels, sentence):
    label = CubeLabel.open(cube)
    label.voxels[0, 1, 2] = 7
    with pytest.raises(SelmaError, match=sentence):
        label.take(voxels)
    assert label.voxels.sum() == 7


def test_values_that_are_no_labels_are_not_written(cube):
    label = CubeLabel.open(cube)
    before = label.path.read_bytes()
    label.take(label.voxels.astype(np.int64))
    label.voxels[0, 1, 2] = 300
    unsaved = label.write_unsaved()
    label.voxels[0, 1, 3] = -1
    for write in (label.write_unsaved, label.save):
        with pytest.raises(SelmaError, match="whole numbers from 0 to 65535"):
            write()
    assert label.path.read_bytes() == before
    assert open_volume(unsaved).read().sum() == 300
    assert open_volume(unsaved).dtype == np.uint16


def test_what_is_undone_or_saved_is_kept_no_longer(cube):
    label = CubeLabel.open(cube)
    for value in (0, 7):
        label.voxels[0, 1, 2] = 7
        assert label.write_unsaved() == cube / "unsaved_0001.nii.gz"
        label.voxels[0, 1, 2] = value
        if value:
            label.save()
        else:
            assert label.write_unsaved() is None
        assert not label.unsaved_files()


def test_every_window_has_a_file(cube):
    labels = [CubeLabel.open(cube) for _ in range(3)]
    for strokes in (1, 2):
        for number, label in enumerate(labels, 1):
            label.voxels[0, 0, :strokes] = number
        paths = [label.write_unsaved() for label in labels]
        assert [path.name for path in paths] == [f"unsaved_{number:04d}.nii.gz" for number in (1, 2, 3)]
        assert [open_volume(path).read()[0, 0, :2].sum() for path in paths] == [strokes, 2 * strokes, 3 * strokes]
    paths[0].unlink()  # a person refuses it while its window is open
    assert labels[0].write_unsaved() == cube / "unsaved_0004.nii.gz"
    assert open_volume(cube / "unsaved_0004.nii.gz").read().sum() == 2


def test_two_windows_that_keep_at_once_have_two_files(cube, monkeypatch):
    following = cube_label._next

    def taken(folder, name):
        """Another window takes the file before this one can."""
        path = following(folder, name)
        if path.name == "unsaved_0001.nii.gz":
            path.write_bytes(b"of another window")
        return path

    monkeypatch.setattr(cube_label, "_next", taken)
    label = CubeLabel.open(cube)
    label.voxels[0, 1, 2] = 7
    assert label.write_unsaved() == cube / "unsaved_0002.nii.gz"
    assert (cube / "unsaved_0001.nii.gz").read_bytes() == b"of another window"


def test_a_label_of_another_size_is_named(cube):
    write_image(cube / "label.nii.gz", np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(SelmaError, match="3 × 4 × 5 voxels"):
        CubeLabel.open(cube)
