"""Tables of objects, written and read back."""

import csv

import numpy as np
import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.objects.table import read_objects, table_of
from nnunet_selma.objects.table_files import write_table
from tests.objects.volumes import SPACING, blobs, measured

SHAPE = (30, 40, 50)
FILES = ["table.csv", "table.parquet"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("with_raw", [True, False])
def test_objects_are_read_as_they_were_written(name, with_raw, rng, tmp_path):
    pytest.importorskip("pyarrow")
    raw = rng.random(SHAPE).astype(np.float32) if with_raw else None
    objects, _ = measured(blobs(rng, SHAPE), (16, 16, 16), raw)
    write_table(tmp_path / name, table_of(objects, SHAPE, SPACING if with_raw else None))
    again = read_objects(tmp_path / name, SHAPE)
    assert len(again) == len(objects) > 10
    for column in objects.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, column), getattr(objects, column))
        assert getattr(again, column).dtype == getattr(objects, column).dtype


@pytest.mark.parametrize("name", FILES)
def test_a_table_without_objects_is_read(name, tmp_path):
    pytest.importorskip("pyarrow")
    objects, _ = measured(np.zeros(SHAPE, np.uint8), SHAPE)
    write_table(tmp_path / name, table_of(objects, SHAPE, None))
    assert len(read_objects(tmp_path / name, SHAPE)) == 0


def test_the_columns_of_a_table_are_those_of_the_version_before():
    objects, _ = measured(np.ones((2, 2, 2), np.uint8), (2, 2, 2))
    assert ",".join(table_of(objects, (2, 2, 2), None)) == (
        "id,label,voxels,volume_um3,centroid_z_um,centroid_y_um,centroid_x_um,centroid_z,centroid_y,centroid_x,start_z,start_y,start_x,"
        "stop_z,stop_y,stop_x,mean_intensity,max_intensity,touches_border"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop_x": "51"}, "objects outside of the segmentation, which has 30 × 40 × 50 voxels"),
        ({"start_z": "-1"}, "objects outside"),
        ({"voxels": ""}, "empty cells in voxels"),
        ({"centroid_y": "far"}, "no table of numbers"),
        ({"centroid_z": None, "start_y": None}, "no column centroid_z, start_y"),
    ],
)
def test_a_table_of_something_else_is_refused(changes, message, tmp_path, rng):
    objects, _ = measured(blobs(rng, SHAPE), SHAPE)
    columns = {name: [str(values[0])] for name, values in table_of(objects, SHAPE, SPACING).items()}
    columns |= {name: [value] for name, value in changes.items()}
    kept = {name: values for name, values in columns.items() if values != [None]}
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([kept, *zip(*kept.values(), strict=True)])
    with pytest.raises(SelmaError, match=message):
        read_objects(tmp_path / "t.csv", SHAPE)


def test_a_table_that_is_cut_short_is_refused(tmp_path, rng):
    objects, _ = measured(blobs(rng, SHAPE), SHAPE)
    write_table(tmp_path / "t.csv", table_of(objects, SHAPE, SPACING))
    text = (tmp_path / "t.csv").read_text()
    (tmp_path / "t.csv").write_text(text[: text.rindex("\n", 0, -1) + 5])
    with pytest.raises(SelmaError, match="no table of numbers"):
        read_objects(tmp_path / "t.csv", SHAPE)


@pytest.mark.parametrize(
    ("name", "message"), [("t.txt", "is .csv or .parquet; choose one"), ("t.csv", "t.csv: there is no such file")]
)
def test_a_file_that_is_no_table_is_refused(name, message, tmp_path):
    with pytest.raises(SelmaError, match=message):
        read_objects(tmp_path / name, SHAPE)
