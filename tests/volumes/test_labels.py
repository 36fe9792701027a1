from pathlib import Path

import numpy as np
import pytest

from nnunet_selma.conversion.checks import read_label
from nnunet_selma.errors import SelmaError
from nnunet_selma.evaluation.scoring import read_mask
from nnunet_selma.objects.reading import as_labels
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.labels import label_values
from tests.conftest import write_image

REFUSED = [
    (np.array([0.0, 0.5]), r"holds fractions \(0 to 0.5\)"),
    (np.array([0.0, np.nan]), "holds NaN or infinite"),
    (np.array([0, np.inf]), "holds NaN or infinite"),
    (np.array([0, -1], np.int16), "holds the values -1 to 0"),
    (np.array([0, 2.0**32]), "to 4294967295"),
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
        lambda: read_mask(path),
        lambda: as_labels(volume.read, path)(*map(slice, volume.shape)),
    )
    for read in readers:
        with pytest.raises(SelmaError, match=sentence):
            read()
