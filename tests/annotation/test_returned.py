"""Labels that people give back: what is read from them, what is refused, and what is asked about."""

import gzip
import shutil

import nibabel
import numpy as np
import pytest

from nnunet_selma.annotation.layout import label_hash
from nnunet_selma.annotation.returned import doubts, is_folder_of_cubes, read_cubes, read_label
from nnunet_selma.errors import SelmaError
from tests.annotation.folders import SHAPE, SPACING_UM, blobs, paint, values_sha256, write_cubes, write_nifti


@pytest.fixture
def folder(tmp_path, rng):
    write_cubes(tmp_path / "cubes", rng, ["a", "b"])
    return tmp_path / "cubes"


def test_cubes_have_their_brains_and_hashes(folder, tmp_path, rng):
    assert (is_folder_of_cubes(folder), is_folder_of_cubes(tmp_path), is_folder_of_cubes(None)) == (True, False, False)
    first, second = read_cubes(folder)
    assert (first.name, first.brain, second.brain, first.round) == ("cube_0001", "a", "b", 1)
    assert label_hash(first.label) == first.handed_over
    labels = blobs(rng)
    path = paint(folder, "cube_0001", labels)
    before = path.read_bytes()
    values, digest = read_label(first)
    assert label_hash(first.label) != first.handed_over
    np.testing.assert_array_equal(values, labels)
    assert digest == values_sha256(labels)
    assert path.read_bytes() == before


def another_shape(folder, labels):
    paint(folder, "cube_0001", labels[:-1])


def another_place(folder, labels):
    write_nifti(folder / "cube_0001/label.nii.gz", labels, origin_um=(0.0, 0.0, 0.0))


def another_spacing(folder, labels):
    write_nifti(folder / "cube_0001/label.nii.gz", labels, origin_um=(1000.0, 0.0, 0.0), spacing_um=SPACING_UM[::-1])


def reversed_axis(folder, labels):
    path = paint(folder, "cube_0001", labels)
    image = nibabel.load(path)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[2] - 1
    voxels = np.asarray(image.dataobj)[::-1]
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine @ flip, image.header), path)


def without_place(folder, labels):
    path = paint(folder, "cube_0001", labels)
    image = nibabel.Nifti1Image(labels.T, None)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, path)


def fractions(folder, labels):
    paint(folder, "cube_0001", labels.astype(np.float32) / 2)


def large_value(folder, labels):
    paint(folder, "cube_0001", labels.astype(np.uint16) * 300)


def cut_short(folder, labels):
    path = paint(folder, "cube_0001", labels)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (another_shape, "has 11 × 14 × 16 voxels, the image 12 × 14 × 16"),
        (another_place, "another origin"),
        (another_spacing, "another spacing"),
        (reversed_axis, "another orientation"),
        (without_place, "states no place"),
        (fractions, "holds fractions"),
        (large_value, "holds the value 300"),
        (cut_short, "cube_0001"),
    ],
)
def test_labels_that_do_not_lie_on_the_image_are_refused(change, words, folder, rng):
    change(folder, blobs(rng))
    with pytest.raises(SelmaError, match=words):
        read_label(read_cubes(folder)[0])


def dense(rng):
    return rng.random((30, 32, 36)) < 0.1


def only(axis, planes):
    def cut(rng):
        labels = np.zeros((30, 32, 36), bool)
        kept = np.moveaxis(labels, axis, 0)
        kept[planes] = np.moveaxis(dense(rng), axis, 0)[planes]
        return labels

    return cut


def balls(rng):
    """Separate balls, which taper, in the first half only."""
    z, y, x = np.ogrid[:30, :32, :36]
    return sum(((z - 8) ** 2 + (y - c) ** 2 + (x - 2 * c) ** 2 < 25) for c in (6, 14)) > 0


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (dense, None),
        (balls, None),
        (only(0, slice(0, 12)), "no label in the 18 planes 12 to 29 along z"),
        (only(1, slice(20, 32)), "no label in the 20 planes 0 to 19 along y"),
        (only(2, [0, 12, 24]), "no label in the 11 planes 1 to 11 along x"),
        (only(0, slice(0, 27)), None),
        (lambda rng: np.zeros((30, 32, 36), bool), "is empty"),
    ],
    ids=["dense", "balls", "half z", "half y", "every twelfth x", "all but three", "empty"],
)
def test_painted_planes_that_stop_are_doubted(draw, words, folder, rng):
    labels = draw(rng).astype(np.uint8)
    result = doubts(read_cubes(folder)[0], labels)
    assert (result is None) if words is None else (words in result)


def test_a_label_that_marks_what_is_missing_is_not_doubted(folder, rng):
    labels = only(0, slice(0, 12))(rng).astype(np.uint8)
    labels[12:] = 255
    cube = read_cubes(folder)[0]
    assert doubts(cube, labels) is None
    assert "holds only 0 and 255" in doubts(cube, np.where(labels == 1, 0, labels).astype(np.uint8))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_label_that_is_saved_again_without_a_change_is_unchanged(dtype, tmp_path, rng):
    folder = tmp_path / "cubes"
    suggestion = blobs(rng)
    write_cubes(folder, rng, ["a"], suggestion=suggestion)
    before = (folder / "cube_0001/label.nii.gz").read_bytes()
    (folder / "cube_0001/label.nii.gz").unlink()
    write_nifti(folder / "cube_0001/label.nii.gz", suggestion.astype(dtype), origin_um=(1000.0, 0.0, 0.0))
    content = (folder / "cube_0001/label.nii.gz").read_bytes()
    if dtype is np.uint8:
        plain = gzip.decompress(content)
        (folder / "cube_0001/label.nii.gz").write_bytes(gzip.compress(plain, compresslevel=1, mtime=1))
    assert (folder / "cube_0001/label.nii.gz").read_bytes() != before
    (cube,) = read_cubes(folder)
    assert label_hash(cube.label) == cube.handed_over
    suggestion[-1, 0, 2] ^= 1
    paint(folder, "cube_0001", suggestion.astype(dtype))
    assert label_hash(cube.label) != cube.handed_over


def test_the_hash_of_a_label_tells_shapes_apart(tmp_path):
    paths = [tmp_path / f"{number}.nii.gz" for number in range(2)]
    for path, shape in zip(paths, [(2, 3, 4), (4, 3, 2)], strict=True):
        write_nifti(path, np.zeros(shape, np.uint8))
    assert label_hash(paths[0]) == values_sha256(np.zeros((2, 3, 4), np.uint8)) != label_hash(paths[1])


def test_a_copy_of_a_cube_is_refused(folder):
    shutil.copytree(folder / "cube_0001", folder / "cube_0001 backup")
    with pytest.raises(SelmaError, match="cube_0001 backup: holds cube_0001, so it is a copy or was renamed"):
        read_cubes(folder)


def test_a_label_that_was_not_saved_lies_beside(folder):
    (folder / "cube_0001/unsaved.nii.gz").touch()
    assert [cube.other_labels for cube in read_cubes(folder)] == [["unsaved.nii.gz"], []]
