"""Projections in bins, block by block, against the whole volume in numpy."""

from itertools import pairwise

import numpy as np
import pytest

from nnunet_selma.morphology.blocks import blocks
from nnunet_selma.pictures.overview.projected_labels import class_bits
from nnunet_selma.pictures.overview.projections import (
    ANY_BIT,
    HIGHEST,
    IMAGE_PIXELS,
    SUM,
    Projections,
    bin_shape,
    count_bins,
    fine_levels,
    project_image,
)
from tests.pictures.overview.volumes import SHAPE, ArrayVolume


def whole(voxels, bin_zyx, reducer):
    """The same pictures, of the whole volume at once."""
    bins = voxels.astype(reducer.dtype)
    for axis, edge in enumerate(bin_zyx):
        bounds = [*range(0, voxels.shape[axis], edge), voxels.shape[axis]]
        parts = [reducer.function.reduce(bins.take(range(a, b), axis), axis=axis) for a, b in pairwise(bounds)]
        bins = np.stack(parts, axis)
    return [reducer.function.reduce(bins, axis=axis) for axis in range(3)]


@pytest.mark.parametrize(
    ("edge", "bin_zyx"),
    [
        ((9, 14, 11), (2, 3, 4)),
        ((1, 14, 11), (2, 3, 4)),
        ((4, 5, 3), (1, 1, 1)),
        ((4, 5, 3), (2, 3, 4)),
        ((2, 3, 4), (1, 5, 2)),
        ((1, 1, 1), (9, 14, 11)),
    ],
    ids=str,
)
@pytest.mark.parametrize(("reducer", "dtype"), [(HIGHEST, np.uint16), (ANY_BIT, np.uint8), (SUM, np.bool_)])
def test_projections_by_blocks_are_those_of_the_whole(rng, edge, bin_zyx, reducer, dtype):
    voxels = rng.integers(0, 200, SHAPE).astype(dtype)
    projections = Projections(SHAPE, bin_zyx, reducer)
    for block in blocks(SHAPE, edge):
        projections.add(block.start, voxels[block.box][block.core])
    for picture, expected in zip(projections.along, whole(voxels, bin_zyx, reducer), strict=True):
        np.testing.assert_array_equal(picture, expected)


def test_values_that_are_not_finite_do_not_spread():
    projections = Projections((1, 1, 3), (1, 1, 3), HIGHEST)
    projections.add((0, 0, 0), np.array([[[1.0, np.nan, 3.0]]]))
    assert projections.along[0].tolist() == [[3.0]]


@pytest.mark.parametrize(
    ("shape", "voxel"),
    [
        ((733, 5616, 6656), (6.0, 1.625, 1.625)),
        ((20000, 300, 300), (0.1, 100.0, 3.0)),
        ((1, 40000, 3), (1.0, 1.0, 1.0)),
        ((100, 100, 100), (0.1, 100.0, 3.0)),
        ((1, 1, 1), (1.0, 1.0, 1.0)),
    ],
)
def test_pictures_are_of_a_bounded_size(shape, voxel):
    z, y, x = count_bins(shape, bin_shape(shape, voxel, IMAGE_PIXELS))
    assert z + y <= IMAGE_PIXELS + 2
    assert z + x <= IMAGE_PIXELS + 2


def test_the_image_is_read_at_the_coarsest_resolution_that_has_a_voxel_for_each_pixel(monkeypatch):
    monkeypatch.setattr("nnunet_selma.pictures.overview.projections.IMAGE_PIXELS", 40)
    shapes = [(8, 64, 64), (8, 32, 32), (4, 8, 8)]
    image = tuple(ArrayVolume(np.full(shape, number, np.uint16)) for number, shape in enumerate(shapes))
    assert fine_levels(image, shapes[0], (1.0, 1.0, 1.0), 40) == image[:2]
    assert fine_levels(image[2:], shapes[0], (1.0, 1.0, 1.0), 40) == image[2:]
    pictures = project_image(image, shapes[0], (1.0, 1.0, 1.0))
    assert (pictures[0] == 1).all()
    assert max(pictures[0].shape) <= 40
    assert [level.reads > 0 for level in image] == [False, True, False]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_each_class_is_a_bit(dtype):
    labels = np.array([0, 1, 2, 7, 8, 200]).astype(dtype)
    assert class_bits(labels).tolist() == [0, 0b1, 0b10, 0b1000000, 0b10000000, 0b10000000]
    assert class_bits(labels[:2]).tolist() == [0, 1]
