"""Objects measured in blocks against the whole volume in cc3d, scikit-image and Dask."""

import cc3d
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import regionprops

from nnunet_selma.morphology.blocks import blocks
from nnunet_selma.objects.measuring import MeasuredComponents
from nnunet_selma.objects.table import table_of
from tests.morphology.masks import edges
from tests.objects.volumes import SPACING, blobs, labels, measured

COLUMNS = ("label", "voxels", "centroid", "start", "stop", "mean_intensity", "max_intensity")
EDGES = [(30, 40, 50), (16, 16, 16), (7, 40, 13), (1, 50, 50), (30, 3, 64)]


def one_by_one(values, raw, connectivity):
    """Every object of the whole volume, in raster order of first voxels, by definition."""
    numbers = cc3d.connected_components(values, connectivity=connectivity)
    firsts = {int(n): i for i, n in reversed(list(enumerate(numbers.ravel()))) if n}
    for number in sorted(firsts, key=firsts.get):
        at = np.argwhere(numbers == number)
        grey = raw[numbers == number]
        yield {
            "label": values[tuple(at[0])],
            "voxels": len(at),
            "centroid": at.mean(axis=0),
            "start": at.min(axis=0),
            "stop": at.max(axis=0) + 1,
            "mean_intensity": grey.mean(dtype=np.float64),
            "max_intensity": grey.max(),
        }


@given(
    values=labels(), edge=edges, connectivity=st.sampled_from([6, 26]), dtype=st.sampled_from([np.uint16, np.float32])
)
def test_blocks_give_the_objects_of_the_whole(values, edge, connectivity, dtype):
    raw = (np.random.default_rng(3).random(values.shape) * 65535).astype(dtype)
    found, _ = measured(values, edge, raw, connectivity)
    expected = list(one_by_one(values, raw, connectivity))
    assert len(found) == len(expected)
    for name in COLUMNS:
        ours = getattr(found, name)
        np.testing.assert_allclose(ours, np.reshape([row[name] for row in expected], ours.shape), rtol=1e-13)


@given(values=labels(), edge=edges)
def test_every_shape_of_blocks_gives_the_same_bits(values, edge):
    raw = np.random.default_rng(4).integers(0, 65535, values.shape, dtype=np.uint16, endpoint=True)
    found, whole = measured(values, edge, raw)[0], measured(values, values.shape, raw)[0]
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("connectivity", [6, 26])
def test_objects_are_those_of_regionprops(edge, connectivity, rng):
    values = blobs(rng)
    raw = rng.integers(0, 65535, values.shape, dtype=np.uint16)
    found, _ = measured(values, edge, raw, connectivity)
    numbers = cc3d.connected_components(values, connectivity=connectivity)
    expected = regionprops(numbers, raw)
    assert len(found) == len(expected) > 10
    columns = table_of(found, values.shape, SPACING)
    rows = {tuple(found.centroid[i].round(9)): i for i in range(len(found))}
    border = np.pad(np.zeros(np.array(values.shape) - 2, bool), 1, constant_values=True)
    for region in expected:
        i = rows[tuple(np.round(region.centroid, 9))]
        assert (columns["voxels"][i], columns["volume_um3"][i]) == (region.area, region.area * 12.0)
        assert [columns[f"centroid_{axis}_um"][i] for axis in "zyx"] == pytest.approx(
            np.multiply(region.centroid, SPACING)
        )
        assert (*found.start[i], *found.stop[i]) == region.bbox
        assert columns["mean_intensity"][i] == pytest.approx(region.intensity_mean)
        assert columns["max_intensity"][i] == region.intensity_max
        assert columns["touches_border"][i] == border[numbers == region.label].any()
    assert 0 < columns["touches_border"].sum() < len(expected)


def test_the_number_and_sizes_are_those_of_dask_image(rng):
    dask_image = pytest.importorskip("dask_image.ndmeasure")
    dask = pytest.importorskip("dask.array")
    mask = blobs(rng, classes=1)
    labelled = dask_image.label(dask.from_array(mask, chunks=(15, 20, 25)), np.ones((3, 3, 3)))
    numbers, count = dask.compute(*labelled, scheduler="synchronous")
    found, _ = measured(mask, (16, 16, 16))
    assert len(found) == count
    assert sorted(found.voxels) == sorted(np.bincount(numbers.ravel())[1:])


def test_without_an_image_there_are_no_intensities(rng):
    found, _ = measured(blobs(rng), (16, 16, 16))
    assert np.isnan(found.mean_intensity).all()
    assert np.isnan(found.max_intensity).all()


def test_classes_that_touch_are_two_objects_and_corners_join():
    values = np.zeros((4, 4, 4), np.uint16)
    values[:2, :2, :2], values[:2, :2, 2:], values[2, 2, 2] = 300, 7, 300
    for edge in ((4, 4, 4), (1, 2, 2)):
        assert measured(values, edge)[0].label.tolist() == [300, 7]
        assert measured(values, edge, connectivity=6)[0].label.tolist() == [300, 7, 300]


@pytest.mark.parametrize("edge", [(4, 4, 4), (2, 3, 1)])
def test_no_object(edge):
    found, which = measured(np.zeros((4, 5, 6), np.uint8), edge)
    assert len(found) == len(which) == 0
    assert all(len(column) == 0 for column in table_of(found, (4, 5, 6), None).values())


def test_without_a_voxel_size_columns_in_um_are_nan(rng):
    columns = table_of(measured(blobs(rng), (16, 16, 16))[0], (30, 40, 50), None)
    for name, column in columns.items():
        if name.endswith(("_um", "_um3")):
            assert np.isnan(column).all()
    assert np.isfinite(columns["centroid_z"]).all()


def test_grey_values_are_no_labels(rng):
    image = rng.integers(0, 65535, (32, 32, 32), dtype=np.uint16)
    with pytest.raises(ValueError, match="objects in 32768 voxels"):
        MeasuredComponents().add(next(iter(blocks(image.shape, image.shape))), image)


def test_points_are_objects():
    points = np.zeros((64, 64, 64), np.uint8)
    points[::2, ::2, ::2] = 1
    assert len(measured(points, (64, 64, 64))[0]) == 32**3
