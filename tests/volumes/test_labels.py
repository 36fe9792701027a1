from pathlib import Path

import numpy as np
import pytest

from nnunet_selma.conversion.checks import read_label
from nnunet_selma.errors import SelmaError
from nnunet_selma.objects.reading import as_labels
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.labels import label_values, read_mask
from tests.conftest import write_image

REFUSED = [
    (np.array([0.0, 0.5]), r"holds fractions \(0 to 0.5\)"),
    (np.array([0.0, np.nan]), "holds NaN or infinite"),
    (np.array([0, np.inf]), "holds NaN or infinite"),
    (np.array([0, -1], np.int16), "holds the values -1 to 0"),
    (np.array([0, 2.0**32]), "to 4294967295"),
    (np.array([0, 2**32], np.uint64), "to 4294967295"),
]


@pytest.mark.parametrize(("values", "sentence"), [*REFUSED, (np.array([1j]), "holds values of type complex")])
def test_what_is_no_label_is_refused(values, sentence):
    with pytest.raises(SelmaError, match=rf"^labels\.nii\.gz: .*{sentence}"):
        label_values(values, Path("labels.nii.gz"))


@pytest.mark.parametrize("dtype", [bool, np.uint8, ">u2", np.uint64, np.int8, np.int32, np.float32, np.float64])
def test_labels_of_every_type_become_unsigned_integers(dtype):
    for values in (np.array([[0, 1], [1, 1]]).astype(dtype), np.empty((0, 3), dtype)):
        labels = label_values(values, Path("a"))
        np.testing.assert_array_equal(labels, values)
        assert labels.dtype.kind == "u"
        assert labels.dtype.isnative


@pytest.mark.parametrize(("values", "sentence"), REFUSED)
def test_conversion_evaluation_and_objects_refuse_the_same(values, sentence, tmp_path):
    path = write_image(tmp_path / "labels.nii.gz", np.broadcast_to(values, (2, 3, 2)).copy())
    volume = open_volume(path)
    readers = (
        lambda: read_label(volume),
        lambda: read_mask(open_volume(path)),
        lambda: as_labels(volume.read, path)(*map(slice, volume.shape)),
    )
    for read in readers:
        with pytest.raises(SelmaError, match=sentence):
            read()


BALL = np.zeros((6, 8, 10), bool)
BALL[1:4, 2:5, 3:7] = True


def written(values, tmp_path, dtype=np.uint16):
    return open_volume(write_image(tmp_path / "gt.nii.gz", np.asarray(values).astype(dtype)))


CLEAR = [
    (BALL, BALL, []),
    (BALL * 255, BALL, ["label values other than 0 and 1"]),
    (BALL * (1 + np.arange(10)), BALL, ["label values other than 0 and 1"]),
    (BALL * 0, BALL & False, []),
    (BALL & (np.arange(10) == 3), BALL & (np.arange(10) == 3), ["the objects have 9 voxel(s) altogether"]),
    (~BALL * 255, ~BALL, ["the label may be inverted", "label values other than 0 and 1"]),
]


@pytest.mark.parametrize(("values", "mask", "warnings"), CLEAR)
def test_every_value_above_0_is_an_object(values, mask, warnings, tmp_path):
    objects = read_mask(written(values, tmp_path))
    np.testing.assert_array_equal(objects.mask, mask)
    assert sum(objects.values.values()) == BALL.size
    assert len(objects.warnings) == len(warnings)
    for warning, part in zip(objects.warnings, warnings, strict=True):
        assert part in warning


DOUBTFUL = [
    (np.where(BALL, 1, 2), r"no background of 0; the values are 1 \(36 voxels\), 2 \(444 voxels\)", 1),
    (np.where(BALL, 2, 1), r"no background of 0", 2),
    (np.ones_like(BALL), r"no background of 0", 1),
    (np.where(BALL, 1, np.where(np.arange(10) > 8, 255, 0)), r"255 beside 1", 1),
]


@pytest.mark.parametrize(("values", "sentence", "foreground"), DOUBTFUL)
def test_a_ground_truth_that_leaves_a_doubt_is_asked_about(values, sentence, foreground, tmp_path):
    volume = written(values, tmp_path)
    with pytest.raises(SelmaError, match=sentence) as refused:
        read_mask(volume)
    assert "--foreground" in refused.value.for_command({"--foreground"})
    np.testing.assert_array_equal(read_mask(volume, foreground).mask, np.asarray(values) == foreground)
    np.testing.assert_array_equal(read_mask(volume, truth=False).mask, np.asarray(values) > 0)
    with pytest.raises(SelmaError, match="foreground value 7 does not occur"):
        read_mask(volume, 7)


def test_an_image_in_place_of_a_label_is_refused(tmp_path, rng):
    values = np.arange(1200).reshape(10, 10, 12)
    image = rng.poisson(400, (20, 30, 40))  # hundreds of values, each in many voxels
    for voxels, count in ((values, 1200), (image, len(np.unique(image)))):
        for truth in (True, False):
            with pytest.raises(
                SelmaError, match=f"holds {count} values that change from voxel to voxel, as in an image"
            ):
                read_mask(written(voxels, tmp_path), truth=truth)


def test_labels_of_many_objects_are_no_image(tmp_path):
    values = np.arange(1200).reshape(10, 10, 12)
    instances = np.repeat(values, 8, axis=0)  # 1199 objects of eight voxels
    assert read_mask(written(instances, tmp_path)).mask.sum() == 8 * 1199
    points = np.zeros((20, 20, 24), int)
    points[::2, ::2, ::2] = values  # objects of one voxel that touch no other
    assert read_mask(written(points, tmp_path)).mask.sum() == 1199
